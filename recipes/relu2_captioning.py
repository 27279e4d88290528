"""Squared ReLU in an image adapter beside SwiGLU: dense and 2:4, equal parameters, several seeds, real captions.

    python recipes/relu2_captioning.py --publish docs/results            # nine short runs of recipes/image_adapter.py
    python recipes/relu2_captioning.py --seeds 0 --steps 60 --most 100   # what is done is not done again

Trains the demo's adapter from its lexical start with each feed-forward and seed, then scores what each says of pictures
it has never seen. A run that was killed goes on where it stood. Runs are short, so that the 2:4 side goes over to
sparse steps after `warm_up` steps whatever its zeros, well before the share of zeros (85%) that a long run waits for:
that is the harder case, and the groups that lose something are counted in the result.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from multimodal import Image, load
from multimodal.evaluation import Measure, Result, difference, interval, mean_of, score_captions
from multimodal.evaluation.pictures import Sample, captions, read_samples
from multimodal.training import read_metrics
from multimodal.training.publication import write_text

Arm = Literal["relu2", "relu2_dense", "swiglu"]
ARMS: tuple[Arm, ...] = ("relu2", "relu2_dense", "swiglu")
METRICS = ("cider", "word_f1", "exact")
COUNTERS = ("zeros", "violating_groups", "lost_energy", "sparse")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which runs are compared, how long they learn, and on what they are scored."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 80
    warm_up: int = 20
    """Dense steps of the 2:4 side."""
    test: str = "downloads/shards/scenes-combinations"
    """Shards that are scored: the demo's scenes whose combinations were never trained on."""
    most: int = 150
    """Pictures of the test at most; 0: all."""
    more: str = ""
    """Words for the command line of recipes/image_adapter.py, after its own: another preset's data, a text model."""
    out: str = "runs/relu2_captioning"
    publish: str = ""
    """Folder for the figures that the documentation claims: docs/results."""


def words(arm: Arm, seed: int, out: Path, c: Config) -> list[str]:
    """The command line of one run."""
    told = {
        "--out": out,
        "--training.steps": c.steps,
        "--training.seed": seed,
        "--data.seed": seed,
        "--adapter.activation": arm,
        # By the warm-up alone: whatever is measured allows it.
        "--adapter.sparsity.warmup": c.warm_up,
        "--adapter.sparsity.zeros": 0.01,
        "--adapter.sparsity.slack": 0.0,
        "--adapter.sparsity.violating": 1.0,
        "--save-every": 20,
    }
    recipe = Path(__file__).with_name("image_adapter.py")
    return [str(recipe), *(str(word) for pair in told.items() for word in pair), *shlex.split(c.more)]


def learn(arm: Arm, seed: int, c: Config) -> Path:
    """The folder of a finished run; what was begun goes on, what is done stays."""
    out = Path(c.out) / f"{arm}-{seed}"
    command = words(arm, seed, out, c)
    if not (out / "training.json").exists():
        # As a program of its own: a recipe may be killed and go on, and none is a part of another.
        resume = ["--resume"] if (out / "state").is_dir() else []
        done = subprocess.run([sys.executable, *command, *resume], check=False)
        if done.returncode or not (out / "training.json").exists():
            raise SystemExit(f"{shlex.join(command)} ended with status {done.returncode}; run this again to go on")
    if (made := json.loads((out / "training.json").read_text())["steps"]) != c.steps:
        raise SystemExit(f"{out} holds a run of {made} steps, not {c.steps}; remove it or choose another --out")
    return out


def score(run: Path, samples: Sequence[Sample], c: Config) -> dict[str, Any]:
    """Each sample's figures, the losses, the counters: kept in the run's folder, so that nothing is said twice."""
    file, asked = run / "scored.json", {"test": c.test, "most": c.most}
    if file.exists() and (made := json.loads(file.read_text()))["asked"] == asked:
        return made
    began = time.monotonic()
    said = captions(load(run), [Image(sample.picture) for sample in samples])
    measures = score_captions(said, [sample.captions for sample in samples])
    lines, training = read_metrics(run / "metrics.jsonl"), json.loads((run / "training.json").read_text())
    last = lines[-1]
    counters = {
        name: statistics.fmean(values)
        for name in COUNTERS
        if (values := [value for key, value in last.items() if key.endswith(f"feed_forward.{name}")])
    }
    made = {
        "asked": asked,
        "samples": {name: measures[name].samples[:, 0].tolist() for name in METRICS},
        "losses": [round(line["loss"], 4) for line in lines],
        "counters": counters,
        "trained_parameters": training["trained_parameters"],
        "train_seconds": training["train_seconds"],
        "eval_seconds": round(time.monotonic() - began, 1),
    }
    write_text(file, json.dumps(made) + "\n")
    return made


def result(scored: dict[tuple[Arm, int], dict[str, Any]], c: Config, command: str) -> Result:
    """Ours is the 2:4 side; the others are baselines on the same pictures, seed by seed and together."""
    figures = {arm: _figures([scored[arm, seed] for seed in c.seeds], c.seeds) for arm in ARMS}
    over = {arm: _over_seeds([scored[arm, seed] for seed in c.seeds]) for arm in ARMS}
    within = {
        arm: {name: _overlap(figures["relu2"], figures[arm], name, c.seeds) for name in (*METRICS, "last_loss")}
        for arm in ARMS[1:]
    }
    gaps = {arm: {name: _gap(over["relu2"][name], over[arm][name]) for name in METRICS} for arm in ARMS[1:]}
    return Result(
        task="relu2_captioning",
        data=Path(c.test).name,
        n=len(next(iter(scored.values()))["samples"]["cider"]),
        command=command,
        metrics=figures["relu2"],
        interval={name: interval(over["relu2"][name]) for name in METRICS},
        baselines={arm: figures[arm] for arm in ARMS[1:]},
        differences=gaps,
        cost={
            "steps": c.steps,
            "runs": len(scored),
            "train_seconds": round(sum(one["train_seconds"] for one in scored.values()), 1),
            "eval_seconds": round(sum(one["eval_seconds"] for one in scored.values()), 1),
            "trained_parameters": scored["relu2", c.seeds[0]]["trained_parameters"],
        },
        metadata={
            "seeds": "a figure without a seed is the mean over seeds; intervals are over pictures, not over seeds",
            "spreads_overlap": within,
            "trained_parameters": {arm: scored[arm, c.seeds[0]]["trained_parameters"] for arm in ARMS},
            "counters_at_the_end": {arm: [scored[arm, seed]["counters"] for seed in c.seeds] for arm in ARMS[:2]},
            "losses_by_seed": {arm: [scored[arm, seed]["losses"] for seed in c.seeds] for arm in ARMS},
        },
    )


def _figures(runs: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, float | int]:
    """Means over seeds, and each seed's own; `last_loss` is the mean of a run's last ten steps."""
    found: dict[str, float | int] = {}
    each = {name: [statistics.fmean(run["samples"][name]) for run in runs] for name in METRICS}
    each["last_loss"] = [statistics.fmean(run["losses"][-10:]) for run in runs]
    for name, values in each.items():
        found[name] = statistics.fmean(values)
        found |= {f"{name}_seed_{seed}": value for seed, value in zip(seeds, values, strict=True)}
    return found


def _over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Measure]:
    return {
        name: mean_of([statistics.fmean(one) for one in zip(*(run["samples"][name] for run in runs), strict=True)])
        for name in METRICS
    }


def _gap(ours: Measure, theirs: Measure) -> tuple[float, float, float]:
    gap = difference(ours, theirs)
    return gap.value, gap.low, gap.high


def _overlap(ours: dict[str, Any], theirs: dict[str, Any], name: str, seeds: Sequence[int]) -> bool:
    """Whether the seeds' figures of two sides lie within each other's range: no side's all above the other's."""
    mine, other = ([side[f"{name}_seed_{seed}"] for seed in seeds] for side in (ours, theirs))
    return max(min(mine), min(other)) <= min(max(mine), max(other))


def main(c: Config) -> None:
    samples = read_samples(c.test, most=c.most)
    scored: dict[tuple[Arm, int], dict[str, Any]] = {}
    for seed in c.seeds:
        for arm in ARMS:
            scored[arm, seed] = made = score(learn(arm, seed, c), samples, c)
            means = ", ".join(f"{name} {statistics.fmean(made['samples'][name]):.3f}" for name in METRICS)
            print(f"seed {seed} {arm}: {means}; {made['counters']}", flush=True)
    told = result(scored, c, shlex.join(["python", "recipes/relu2_captioning.py", *sys.argv[1:]]))
    print(told.save(Path(c.out)))
    if c.publish:
        print(told.publish(Path(c.publish)))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
