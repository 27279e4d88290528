"""Row-skipping decode on the CPU beside dense products: batch 1, cold weights, one run, turn and turn about.

    OMP_NUM_THREADS=2 python benchmarks/sparse_relu2.py      # some minutes, 5 GB of memory at its peak
    python benchmarks/sparse_relu2.py --quick                # small matrices: does the benchmark run?

Each call reads another of several matrices, together more than the last-level cache holds, and another activation, so
that nothing is warm. The dense peers: torch's product with the weight as nn.Linear has it and transposed, and our own
C++ with every row active; the best of them is the baseline. `embedding_bag` is what PyTorch has for skipping rows.
On a GPU nothing of this was ever timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.library import addresses
from kernels.sparse_relu2 import cpu, skip_rows

OUT = Path("docs/results/bench_sparse_relu2.json")
BARS = {"down_0.9": 8.0, "down_0.95": 16.0, "feed_forward_0.95": 1.7}
"""What the project promises in the better of float32 and bfloat16, with two threads: best dense time over ours."""

ZEROS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 0.95)

DENSE = ("linear", "transposed", "own_dense")


def activations(width: int, zeros: float, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Pre-activations whose squared ReLU has exactly this fraction of zeros, in random places."""
    made = []
    for _ in range(count):
        h = torch.rand(1, width) + 0.1
        off = torch.randperm(width)[: round(zeros * width)]
        h[0, off] *= -1
        made.append(h.to(dtype))
    return made


def measure_down(width: int, D: int, dtype: torch.dtype, zeros: float, rounds: int, copies: int) -> dict[str, Any]:
    """Median seconds of the down-projection [width] -> [D] by each way."""
    turned = [(torch.randn(width, D) * 0.01).to(dtype) for _ in range(copies)]
    plain = [one.T.contiguous() for one in turned]
    hs, full = activations(width, zeros, dtype, copies), activations(width, 0.0, dtype, copies)
    squares, full_squares = [h.relu().square() for h in hs], [h.square() for h in full]
    offset = torch.zeros(1, dtype=torch.long)

    def own(square: Tensor, weight: Tensor) -> Tensor:
        """Our C++ whatever the density."""
        out, wide = torch.empty(1, D), square.float()
        places, values = torch.empty(width, dtype=torch.int32), torch.empty(width)
        library = cpu._library()
        n = library.sparse_relu2_nonzeros(*addresses(wide, places, values), width, 0)
        library.sparse_relu2_skip_rows(
            *(*addresses(places, values), n, *addresses(weight, out), D, int(dtype == torch.bfloat16)),
            *(torch.get_num_threads(), 0),
        )
        return out

    def bag(i: int, j: int) -> Tensor:
        places = squares[j][0].nonzero()[:, 0]
        return F.embedding_bag(places, turned[i], offset, mode="sum", per_sample_weights=squares[j][0, places])

    jobs: dict[str, Callable[[int, int], Tensor]] = {
        "ours": lambda i, j: skip_rows(hs[j], turned[i], "relu2", backend="cpu"),
        "linear": lambda i, j: F.linear(squares[j], plain[i]),
        "transposed": lambda i, j: squares[j] @ turned[i],
        "own_dense": lambda i, j: own(full_squares[j], turned[i]),
        "own_skipping": lambda i, j: own(squares[j], turned[i]),
        "embedding_bag": bag,
    }
    exact = squares[0].double() @ turned[0].double()
    away = float((jobs["ours"](0, 0) - exact).norm() / exact.norm())
    if away > (1e-5 if dtype == torch.float32 else 1e-2):
        raise RuntimeError(f"rows skipped and dense differ by {away}")
    return _turns(jobs, rounds, copies)


def measure_whole(width: int, D: int, dtype: torch.dtype, zeros: float, rounds: int, copies: int) -> dict[str, Any]:
    """Median seconds of the whole feed-forward for one token; zeros are forced by a feature's sign in the input."""
    ups = [(torch.rand(width, D) * 0.01).to(dtype) for _ in range(copies)]
    for up in ups:
        up[torch.randperm(width)[: round(zeros * width)]] *= -1
    turned = [(torch.randn(width, D) * 0.01).to(dtype) for _ in range(copies)]
    plain = [one.T.contiguous() for one in turned]
    xs = [torch.rand(1, D).to(dtype) for _ in range(copies)]
    jobs: dict[str, Callable[[int, int], Tensor]] = {
        "ours": lambda i, j: skip_rows(F.linear(xs[j], ups[i]), turned[i], "relu2", backend="cpu"),
        "linear": lambda i, j: F.linear(F.linear(xs[j], ups[i]).relu().square(), plain[i]),
        "transposed": lambda i, j: F.linear(xs[j], ups[i]).relu().square() @ turned[i],
    }
    return _turns(jobs, rounds, copies)


def _turns(jobs: dict[str, Callable[[int, int], Tensor]], rounds: int, copies: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for number, (name, job) in enumerate(jobs.items()):
            at = (turn + number) % copies
            began = time.perf_counter()
            job(at, turn % copies)
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(all_) for name, all_ in times.items()}
    dense = min(middle[name] for name in DENSE if name in middle)
    return {
        "seconds": middle,
        "least": {name: min(all_) for name, all_ in times.items()},
        "ratio": dense / middle["ours"],
    }


def record(width: int, D: int, rounds: int, copies: int, command: str) -> dict[str, Any]:
    """The results of every dtype and fraction of zeros."""
    load, runs, ratio = os.getloadavg()[0], {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for zeros in ZEROS:
            runs[f"down_{zeros}_{name}"] = measure_down(width, D, dtype, zeros, rounds, copies)
            print(f"down {name} {zeros}: {runs[f'down_{zeros}_{name}']}", flush=True)
        runs[f"feed_forward_0.95_{name}"] = measure_whole(width, D, dtype, 0.95, rounds, copies)
    for key, run in runs.items():
        ratio[key] = run["ratio"]
    best = {bar: max(ratio[f"{bar}_float32"], ratio[f"{bar}_bfloat16"]) for bar in BARS}
    return {
        "what": f"calls/s of a squared-ReLU down-projection {width} -> {D} at batch 1 by reading only active rows, and "
        "of the whole feed-forward, beside the best dense product; keys end in the weight's dtype, numbers are the "
        "fraction of zeros",
        "command": command,
        "machine": _machine(load),
        "ours": {key: 1 / run["seconds"]["ours"] for key, run in runs.items()},
        "peers": {
            f"{key}_{peer}": 1 / seconds
            for key, run in runs.items()
            for peer, seconds in run["seconds"].items()
            if peer not in ("ours", "own_skipping")
        },
        "ratio": ratio,
        "best": best,
        "bars": BARS,
        "break_even_density": {name: break_even(runs, name) for name in ("float32", "bfloat16")},
        "runs": runs,
    }


def break_even(runs: dict[str, Any], dtype: str) -> float:
    """The density up to which skipping rows beats the best dense product: `cpu.DENSE_ABOVE` on this machine.

    Between two measured densities the ratio is taken to be straight; an end of the scale where it never crosses 1.
    """
    points = []
    for zeros in ZEROS:
        seconds = runs[f"down_{zeros}_{dtype}"]["seconds"]
        points.append((1 - zeros, min(seconds[name] for name in DENSE) / seconds["own_skipping"]))
    points.sort()
    if points[0][1] < 1:
        return 0.0
    for (low, above), (high, below) in itertools.pairwise(points):
        if below < 1:
            return round(low + (high - low) * (above - 1) / (above - below), 3)
    return points[-1][0]


def _machine(load: float) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.machine()} ({cpu.instruction_set()}), {torch.get_num_threads()} threads, "
        f"load {load:.1f}; Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="small matrices; the record is printed, not kept")
    told = parser.parse_args()
    if told.quick:
        found = record(512, 256, 2, 2, "python benchmarks/sparse_relu2.py --quick")
    else:
        command = f"OMP_NUM_THREADS={torch.get_num_threads()} python benchmarks/sparse_relu2.py --rounds {told.rounds}"
        found = record(14336, 4096, told.rounds, 4, command)
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(found, indent=2) + "\n")
    print(found["machine"])
    print(f"skipping pays up to a density of {found['break_even_density']}; cpu.DENSE_ABOVE is {cpu.DENSE_ABOVE}")
    for name, bar in BARS.items():
        print(
            f"{name:<20}{found['best'][name]:>7.2f}x   bar {bar}: {'met' if found['best'][name] >= bar else 'MISSED'}"
        )


if __name__ == "__main__":
    main()
