"""2-simplicial attention on the CPU beside what PyTorch offers for it: same tensors, one run, turn and turn about.

    python benchmarks/simplicial_attention.py            # about two minutes on two cores
    python benchmarks/simplicial_attention.py --quick    # a short text, seconds: does the benchmark run?

The peers compute the same numbers, which is checked before anything is timed:

eager     blocked PyTorch, the fastest of several: forward `reference.py` at the best of some block sizes or `blocked`
          below; with the backward pass autograd through `blocked` or the explicit formulas of `reference.py`
merge     one flash attention of PyTorch's a distance of the small window, merged by their log-sums: an exact identity,
          and the strongest use of what is there (forward only: autograd does not know the log-sum's gradient)

On a GPU (`--gpu`, never run so far) the Triton kernels are timed against compiled FlexAttention on the same identity,
and the fraction of the card's peak is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import simplicial_attention
from kernels.simplicial_attention import cpu, reference

OUT = Path("docs/results/bench_simplicial_attention.json")
BARS = {"eager_forward": 4.0, "merge_forward": 2.0, "eager_forward_backward": 3.0}
"""What the project promises at 1024 tokens and windows of 32 and 128: ours over peer in work per second."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is computed: B rows, T tokens, H heads on N key heads, D wide."""

    B: int = 1
    T: int = 1024
    H: int = 8
    N: int = 2
    D: int = 64
    window1: int = 32
    window2: int = 128

    @property
    def flop(self) -> float:
        """Of the two matrix products of the forward pass, over the pairs that are seen."""
        pairs = sum(min(i + 1, self.window1) * min(i + 1, self.window2) for i in range(self.T))
        return 4.0 * self.B * self.H * self.D * pairs


def measure(shape: Shape, rounds: int, command: str) -> dict[str, Any]:
    """The record of docs/results."""
    dice = torch.Generator().manual_seed(0)
    heads = (shape.H, *[shape.N] * 4, shape.H)
    q, k1, v1, k2, v2, grad = (torch.randn(shape.B, shape.T, h, shape.D, generator=dice) for h in heads)
    inputs, scale = (q, k1, v1, k2, v2), shape.D**-0.5
    settings = (shape.window1, shape.window2, scale, "trilinear")
    ours, lse = cpu.forward(*inputs, *settings)
    theirs, eager_lse = reference.forward(*inputs, *settings)

    def merged() -> Tensor:
        return merge(q, k1, v1, k2, v2, shape.window1, shape.window2)

    differences = {
        "eager": float((ours - theirs).abs().max()),
        "merge": float((ours - merged()).abs().max()),
    }
    if max(differences.values()) > 1e-4:
        raise RuntimeError(f"the sides do not compute the same: {differences}")
    budgets = [1 << bits for bits in (18, 20, 22)]
    no_lse = torch.zeros_like(lse)

    def backward(budget: int) -> object:
        return reference.backward(grad, no_lse, *inputs, theirs, eager_lse, *settings, budget)

    forward_budget = _best(budgets, lambda budget: reference.forward(*inputs, *settings, budget))
    backward_budget = _best(budgets, backward)
    leaves = [x.clone().requires_grad_() for x in inputs]

    def train() -> object:
        out = simplicial_attention(*leaves, window1=shape.window1, window2=shape.window2, backend="cpu")
        return torch.autograd.grad(out, leaves, grad)

    def eager_explicit() -> object:
        reference.forward(*inputs, *settings, forward_budget)
        return backward(backward_budget)

    def eager_blocked() -> object:
        with torch.no_grad():
            return blocked(*leaves, window1=shape.window1, window2=shape.window2)

    def eager_autograd() -> object:
        out = blocked(*leaves, window1=shape.window1, window2=shape.window2)
        return torch.autograd.grad(out, leaves, grad)

    exact, mine = reference.backward(grad, no_lse, *inputs, theirs, eager_lse, *settings), train()
    assert isinstance(mine, tuple)
    differences["gradients"] = max(float((a - b).abs().max()) for a, b in zip(mine, exact, strict=True))
    jobs: dict[str, Callable[[], object]] = {
        "ours_forward": lambda: cpu.forward(*inputs, *settings),
        "eager_reference": lambda: reference.forward(*inputs, *settings, forward_budget),
        "eager_blocked": eager_blocked,
        "merge_forward": merged,
        "ours_forward_backward": train,
        "eager_explicit": eager_explicit,
        "eager_autograd": eager_autograd,
    }
    load, runs = os.getloadavg()[0], []
    for _ in range(rounds + 1):
        runs.append({name: _seconds(job) for name, job in jobs.items()})
    runs = runs[1:]  # the first warms up
    for run in runs:
        run["eager_forward"] = min(run["eager_reference"], run["eager_blocked"])
        run["eager_forward_backward"] = min(run["eager_explicit"], run["eager_autograd"])
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    ratio = {
        "eager_forward": statistics.median(run["eager_forward"] / run["ours_forward"] for run in runs),
        "merge_forward": statistics.median(run["merge_forward"] / run["ours_forward"] for run in runs),
        "eager_forward_backward": statistics.median(
            run["eager_forward_backward"] / run["ours_forward_backward"] for run in runs
        ),
        "eager_autograd_forward_backward": statistics.median(
            run["eager_autograd"] / run["ours_forward_backward"] for run in runs
        ),
    }
    return {
        "what": "calls/s of 2-simplicial attention in float32 on the CPU: C++ beside PyTorch's blocked products and "
        "beside a merge of its flash attentions",
        "command": command,
        "machine": _machine(load),
        "shape": asdict(shape),
        "ours": {
            "forward_per_second": 1 / middle["ours_forward"],
            "forward_gflop_per_second": shape.flop / middle["ours_forward"] / 1e9,
            "forward_backward_per_second": 1 / middle["ours_forward_backward"],
            "forward_backward_gflop_per_second": 3.5 * shape.flop / middle["ours_forward_backward"] / 1e9,
            "instructions": cpu.instruction_set(),
        },
        "peers": {
            "eager_forward_per_second": 1 / middle["eager_forward"],
            "merge_forward_per_second": 1 / middle["merge_forward"],
            "eager_forward_backward_per_second": 1 / middle["eager_forward_backward"],
            "eager_autograd_forward_backward_per_second": 1 / middle["eager_autograd"],
        },
        "ratio": ratio,
        "bars": BARS,
        "checks": {"largest_difference": differences},
        "runs": runs,
    }


def merge(q: Tensor, k1: Tensor, v1: Tensor, k2: Tensor, v2: Tensor, window1: int, window2: int) -> Tensor:
    """out = sum_r softmax_r(lse_r) v1[i - r] * attention(q_i * k1[i - r], k2, v2), one flash attention a query block.

    A block's window is a band, which the CPU's flash attention takes as an additive mask.
    """
    T, H = q.shape[1:3]
    G, block = H // k1.shape[2], min(T, window2)
    out = torch.empty_like(q)
    distance = torch.arange(window1)
    for begin in range(0, T, block):
        end, first = min(T, begin + block), max(0, begin - window2 + 1)
        at, row = torch.arange(begin, end), torch.arange(first, end)
        band = torch.zeros(len(at), len(row)).masked_fill_(
            (row > at[:, None]) | (row <= at[:, None] - window2), -torch.inf
        )
        back = at - distance[:, None]  # R b
        keys, values = (x[:, back.clamp(min=0)].repeat_interleave(G, 3) for x in (k1, v1))  # B R b H D
        folded = (q[:, None, begin:end] * keys).transpose(2, 3).flatten(1, 2)  # B RH b D
        kk, vv = (x[:, first:end].repeat_interleave(G, 2).transpose(1, 2).repeat(1, window1, 1, 1) for x in (k2, v2))
        part, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(folded, kk, vv, attn_mask=band)
        part, log = part.unflatten(1, (window1, H)), log.unflatten(1, (window1, H))  # B R H b (D)
        log = log.masked_fill((back < 0)[:, None], -torch.inf)
        weights = log.softmax(1)[..., None]
        out[:, begin:end] = (weights * part * values.transpose(2, 3)).sum(1).transpose(1, 2)
    return out


def blocked(q: Tensor, k1: Tensor, v1: Tensor, k2: Tensor, v2: Tensor, window1: int, window2: int) -> Tensor:
    """Plain PyTorch under autograd: the products of a block of queries, as `reference.py` has them."""
    T, D, N = q.shape[1], q.shape[3], k1.shape[2]
    out, block = [], 32
    back = torch.arange(window1)
    for begin in range(0, T, block):
        end, first = min(T, begin + block), max(0, begin - window2 + 1)
        at, row = torch.arange(begin, end)[:, None], torch.arange(first, end)
        small = at - back
        blind = ~(((row <= at) & (row > at - window2))[:, None] & (small >= 0)[:, :, None])
        query = q[:, begin:end].unflatten(2, (N, -1)).transpose(1, 2)[..., None, :]
        keys, values = (x[:, small.clamp(min=0)].permute(0, 3, 1, 2, 4)[:, :, :, None] for x in (k1, v1))
        folded = query * keys
        scores = (folded.flatten(2, 4) @ k2[:, first:end].transpose(1, 2).mT).unflatten(2, folded.shape[2:5])
        scores = (scores * D**-0.5).masked_fill(blind[:, None], -torch.inf).flatten(-2)
        weights = scores.softmax(-1).unflatten(-1, (window1, -1))
        each = (weights.flatten(2, 4) @ v2[:, first:end].transpose(1, 2)).unflatten(2, weights.shape[2:5])
        out.append((each * values).sum(-2).transpose(1, 2).flatten(2, 3))
    return torch.cat(out, dim=1)


def table(record: dict[str, Any]) -> str:
    """The record for a person."""
    lines = [record["machine"], ""]
    for name, value in {**record["ours"], **record["peers"]}.items():
        lines.append(f"{name:<50}{value:>10}" if isinstance(value, str) else f"{name:<50}{value:>10.2f}")
    lines.append("")
    for name, value in record["ratio"].items():
        bar = record["bars"].get(name)
        verdict = "" if bar is None else f"   bar {bar:.2f}: {'met' if value >= bar else 'MISSED'}"
        lines.append(f"{name:<50}{value:>9.2f}x{verdict}")
    return "\n".join(lines)


def _best(budgets: list[int], job: Callable[[int], object]) -> int:
    """The block size that is fastest on this machine."""
    for budget in budgets:
        job(budget)
    return min(budgets, key=lambda budget: min(_seconds(lambda: job(budget)) for _ in range(3)))


def _seconds(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def _machine(load: float) -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{names[0] if names else platform.machine()} ({cpu.instruction_set()}), {cores} cores, "
        f"{torch.get_num_threads()} threads, load {load:.1f}; Python {platform.python_version()}, torch "
        f"{torch.__version__.split('+')[0]}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a short text; the record is printed, not kept")
    parser.add_argument("--gpu", action="store_true", help="time the Triton kernels instead; needs a GPU")
    told = parser.parse_args()
    if told.gpu:
        from benchmarks.simplicial_attention_gpu import report

        print(report())
        return
    shape = Shape(T=96, window1=4, window2=24) if told.quick else Shape()
    command = "python benchmarks/simplicial_attention.py" + (" --quick" if told.quick else f" --rounds {told.rounds}")
    record = measure(shape, 2 if told.quick else told.rounds, command)
    print(table(record))
    if not told.quick:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
