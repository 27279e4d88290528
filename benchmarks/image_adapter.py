"""Adapter training and generation beside transformers' Mllama: same shapes, same machine, one run, turn and turn about.

    python benchmarks/image_adapter.py            # about five minutes on two cores
    python benchmarks/image_adapter.py --quick    # a tiny model, seconds: does the benchmark run?

The same on both sides: sizes of tower (12 + 2 global layers), text model (16 blocks) and adapter (4 blocks) and so the
number of parameters; the text model's and the adapter's weights, checked before anything is timed by the logits for the
same image features; float32; the rows, tokens and pictures, one tile each; what learns (projector and cross-attention
blocks), fused AdamW, clipping; the number of target tokens; greedy decoding with every gate open.

What differs: Mllama always computes four tiles a picture, pads each to a multiple of eight rows and gives the head
every token of a batch, ours computes the tile that is there and the tokens that have a target. Mllama cannot train from
remembered features, so ours with the feature cache stands against Mllama without one. `features` leaves out the tower;
`stream`, which is what a recipe does, also remembers the frozen text blocks below the adapter, as from the second epoch
on. Decoding is the time of many new tokens less that of one, and Mllama's is the best of its cache settings; its
prefill is the better of one call of the model and `generate` of one token. Memory is the peak resident size of a
process that does nothing but two training steps, all libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.mllama import TINY, Ours, Peer, Shape, difference, share_weights

OUT = Path("docs/results/bench_image_adapter.json")
BARS = {
    "transformers_uncached": 4.0,
    "transformers_cached": 8.0,
    "transformers_memory": 1 / 0.6,
    "transformers_prefill": 3.0,
    "transformers_decode": 2.5,
}
"""What the project promises for one-tile pictures: ours over Mllama in work per second; memory the other way."""
_CACHES = ("dynamic", "static", "none")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    shape: Shape
    rounds: int
    new_tokens: int
    """Tokens that decoding is timed over."""
    command: str = "python benchmarks/image_adapter.py"


FULL = Plan(shape=Shape(), rounds=5, new_tokens=32)
QUICK = Plan(shape=TINY, rounds=2, new_tokens=4, command=f"{FULL.command} --quick")


def measure(plan: Plan, *, memory: Callable[[str], float]) -> dict[str, Any]:
    """The record of docs/results; `memory(side)` is the peak of training in MiB, in a process of its own."""
    shape, new = plan.shape, plan.new_tokens
    ours, peer = Ours(shape), Peer(shape)
    share_weights(ours, peer)
    agreement = difference(ours, peer)
    if agreement > 1e-4:
        raise RuntimeError(f"the two sides do not compute the same: logits differ by {agreement:.1e} of their range")
    _check_sizes(ours, peer)
    losses = _learning(ours, peer)
    cache = _best_cache(peer)

    jobs: dict[str, Callable[[], object]] = {
        "peer_train": peer.step,
        "ours_train": ours.step,
        "ours_train_features": lambda: ours.step("features"),
        "ours_train_stream": lambda: ours.step("stream"),
        "peer_read": peer.read,
        "ours_one_token": lambda: ours.tokens(1),
        "peer_one_token": lambda: peer.tokens(1, cache=cache),
        "ours_many_tokens": lambda: ours.tokens(1 + new),
        "peer_many_tokens": lambda: peer.tokens(1 + new, cache=cache),
    }
    for name, job in jobs.items():
        if name != "peer_train":
            job()
    load = os.getloadavg()[0]
    runs = []
    for number in range(plan.rounds):
        runs.append({name: _seconds(job) for name, job in jobs.items()})
        print(f"round {number + 1} of {plan.rounds}", file=sys.stderr)
    peak = {side: memory(side) for side in ("peer", "ours", "ours_stream")}

    each = [_figures(run, rows=shape.rows, new=new) for run in runs]
    middle = {name: statistics.median(one[name] for one in each) for name in each[0]}
    ratio = {
        "transformers_uncached": _median_ratio(each, "ours_train", "peer_train"),
        "transformers_cached": _median_ratio(each, "ours_train_stream", "peer_train"),
        "transformers_cached_features_only": _median_ratio(each, "ours_train_features", "peer_train"),
        "transformers_prefill": _median_ratio(each, "ours_prefill", "peer_prefill"),
        "transformers_decode": _median_ratio(each, "ours_decode", "peer_decode"),
        "transformers_memory": peak["peer"] / peak["ours"],
        "transformers_memory_cached": peak["peer"] / peak["ours_stream"],
    }
    return {
        "what": (
            "training samples/s, picture prompts/s and greedy tokens/s of the image adapter and of transformers' "
            "Mllama, one-tile pictures; memory is the peak of training in MiB, its ratio peer over ours; "
            f"Mllama decodes with its {cache} cache"
        ),
        "command": plan.command,
        "machine": _machine(load),
        "ours": {
            "training_samples_per_second": middle["ours_train"],
            "training_samples_per_second_features_cached": middle["ours_train_features"],
            "training_samples_per_second_features_and_stream_cached": middle["ours_train_stream"],
            "training_peak_mib": peak["ours"],
            "training_peak_mib_cached": peak["ours_stream"],
            "prefill_per_second": middle["ours_prefill"],
            "decode_tokens_per_second": middle["ours_decode"],
        },
        "peers": {
            "transformers_training_samples_per_second": middle["peer_train"],
            "transformers_training_peak_mib": peak["peer"],
            "transformers_prefill_per_second": middle["peer_prefill"],
            "transformers_decode_tokens_per_second": middle["peer_decode"],
        },
        "ratio": ratio,
        "bars": BARS,
        "checks": {"logits_difference": agreement, "target_tokens": losses.pop("targets"), "losses": losses},
        "runs": runs,
    }


def peak_of(side: str, *, quick: bool) -> float:
    """Peak resident MiB of a fresh process that trains two steps on `side`: peer, ours, ours_stream."""
    command = [sys.executable, __file__, "--memory", side, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {side} failed:\n{done.stderr}")
    return float(done.stdout)


def table(record: dict[str, Any]) -> str:
    """The record for a person."""
    lines = [record["machine"], ""]
    for name, value in {**record["ours"], **record["peers"]}.items():
        lines.append(f"{name:<58}{value:>10.2f}")
    lines.append("")
    for name, value in record["ratio"].items():
        bar = record["bars"].get(name)
        verdict = "" if bar is None else f"   bar {bar:.2f}: {'met' if value >= bar else 'MISSED'}"
        lines.append(f"{name:<58}{value:>9.2f}x{verdict}")
    return "\n".join(lines)


def _figures(run: dict[str, float], *, rows: int, new: int) -> dict[str, float]:
    """Work per second from one round's seconds."""
    figures = {name: rows / seconds for name, seconds in run.items() if "train" in name}
    figures["ours_prefill"] = 1 / run["ours_one_token"]
    figures["peer_prefill"] = 1 / min(run["peer_read"], run["peer_one_token"])
    for side in ("ours", "peer"):
        figures[f"{side}_decode"] = new / max(1e-9, run[f"{side}_many_tokens"] - run[f"{side}_one_token"])
    return figures


def _median_ratio(each: list[dict[str, float]], ours: str, peer: str) -> float:
    return statistics.median(one[ours] / one[peer] for one in each)


def _seconds(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def _check_sizes(ours: Ours, peer: Peer) -> None:
    towers = ours.model.encoders.parameters(), peer.model.model.vision_model.parameters()
    here, there = (sum(weight.numel() for weight in tower) for tower in towers)
    if here != there:
        raise RuntimeError(f"the towers are not the same size: {here} and {there} parameters")


def _learning(ours: Ours, peer: Peer) -> dict[str, Any]:
    """Losses of the first two steps: both sides learn, from the same number of tokens."""
    first, second = ours.step(), ours.step()
    theirs = [peer.step(), peer.step()]
    if not (second.loss < first.loss and theirs[1] < theirs[0]):
        raise RuntimeError(f"a step did not lower the loss: {first.loss} -> {second.loss}; peer {theirs}")
    expected = ours.shape.rows * (ours.shape.tokens - 2)
    if first.targets != expected:
        raise RuntimeError(f"ours learns from {first.targets} tokens, Mllama from {expected}")
    return {"ours": [first.loss, second.loss], "transformers": theirs, "targets": first.targets}


def _best_cache(peer: Peer) -> str:
    seconds = {}
    for cache in _CACHES:
        peer.tokens(2, cache=cache)
        seconds[cache] = _seconds(lambda cache=cache: peer.tokens(5, cache=cache))
    return min(seconds, key=seconds.__getitem__)


def _machine(load: float) -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate"))
    # A load beyond the threads means that others were at work too: then the ratios tell more than the figures.
    return (
        f"{cpu} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores, {torch.get_num_threads()} "
        f"threads, load {load:.1f}; Python {platform.python_version()}, {libraries}"
    )


def _peak() -> float:
    """The largest resident size of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux a new process begins with that of the one which started it.
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _train_only(side: str, shape: Shape) -> float:
    if side == "peer":
        peer = Peer(shape)
        for _ in range(2):
            peer.step()
    else:
        ours = Ours(shape)
        for _ in range(2):
            ours.step("stream" if side == "ours_stream" else "none")
    return _peak()


def main(arguments: list[str] | None = None) -> None:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model; prints the table and writes no file")
    parser.add_argument("--out", type=Path, default=OUT, help="where the record goes (default: %(default)s)")
    parser.add_argument("--memory", choices=("peer", "ours", "ours_stream"), help="only print this side's peak in MiB")
    parser.add_argument("--threads", type=int, help="of both sides (default: PyTorch's choice, one a core)")
    parser.add_argument("--rounds", type=int, help="times that everything is measured (default: 5)")
    chosen = parser.parse_args(arguments)
    plan = QUICK if chosen.quick else FULL
    if chosen.rounds:
        plan = replace(plan, rounds=chosen.rounds, command=f"{plan.command} --rounds {chosen.rounds}")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
        plan = replace(plan, command=f"{plan.command} --threads {chosen.threads}")
    if chosen.memory:
        print(_train_only(chosen.memory, plan.shape))
        return
    record = measure(plan, memory=lambda side: peak_of(side, quick=chosen.quick))
    print(table(record))
    if not chosen.quick:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
