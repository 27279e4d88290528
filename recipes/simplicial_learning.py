"""Does attention to pairs learn what it is for? A simplicial every fourth layer beside plain attention, from scratch.

    python recipes/simplicial_learning.py --publish docs/results     # about half an hour on one core
    python recipes/simplicial_learning.py --tasks match3 --seeds 0   # one comparison; what is done is not done again

Two tasks: `match3` (multimodal/evaluation/match3.py), made for pairs, and `text`, bytes of real English (the language
reference that comes with Python, or --text FILE). Both sides have the same number of parameters but for three norms of
a head, the same data in the same order, and the same FLOP a token: the windows are chosen so that window1 * window2
pairs are as many as the tokens that plain attention sees on average. The size of match3 (4 bits) and the learning rate
were chosen by short runs of seed 0, the simplicial side alone at that size: with 3 bits both sides learn it in a
hundred steps, with 5 the simplicial side does not in three hundred. Each run lies in runs/simplicial_learning when it
is done and is not made again; the figures come out whichever way they come out.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from torch import Tensor

from multimodal.evaluation import Result, difference, interval, mean_of
from multimodal.evaluation.byte_text import ByteText
from multimodal.evaluation.match3 import Match3
from multimodal.training import TrainingConfig, prepare, train
from multimodal.training.publication import write_text
from text_backbone import LlamaConfig, Simplicial, TextBackbone

Task = Literal["match3", "text"]
Arm = Literal["simplicial", "dot_product"]
ARMS: tuple[Arm, ...] = ("simplicial", "dot_product")
METRICS: dict[Task, str] = {"match3": "match3_accuracy", "text": "text_bits_per_byte"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which comparisons are made, and how long each side learns."""

    tasks: tuple[Task, ...] = ("match3", "text")
    seeds: tuple[int, ...] = (0, 1, 2)
    text: str = ""
    """A file of text; empty: the language reference that comes with Python."""
    steps: int = 600
    rows: int = 32
    """Rows of a step on match3; a quarter as many, some four times as long, on text."""
    held_out: int = 128
    """Rows that are never trained on, which the figures are of."""
    learning_rate: float = 5e-3
    curve: int = 20
    """Steps that a point of the curves is a mean of."""
    out: str = "runs/simplicial_learning"
    publish: str = ""
    """Folder for the figures that the documentation claims: docs/results."""


class Rows(NamedTuple):
    """Tokens and what is to be said after each."""

    tokens: Tensor
    targets: Tensor


def shape(task: Task, arm: Arm) -> LlamaConfig:
    """Four blocks; the last one's attention is the arm's."""
    windows, context = ((6, 6), 72) if task == "match3" else ((8, 16), 256)
    plain = LlamaConfig(
        vocabulary=Match3().vocabulary if task == "match3" else 256,
        width=64,
        layers=4,
        heads=16,
        kv_heads=2,
        head_width=8,
        feed_forward=128,
        rope_theta=10_000.0,
        context=context,
        begin=None,
        stops=(),
        pad=0,
    )
    pairs = Simplicial(heads=16, kv_heads=1, head_width=8, window1=windows[0], window2=windows[1])
    return plain if arm == "dot_product" else replace(plain, simplicial_every=4, simplicial=pairs)


def flop(config: LlamaConfig) -> float:
    """Of the matrix products of a forward pass, a token, on rows as long as the context."""
    T = config.context
    model = TextBackbone(config)
    products = sum(
        weight.numel() for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name
    )
    seen = 0.0
    for layer in range(config.layers):
        pairs = config.simplicial if config.is_simplicial(layer) else None
        if pairs is None:
            seen += config.heads * config.head_width * (T + 1) / 2
        else:
            each = sum(min(i + 1, pairs.window1) * min(i + 1, pairs.window2) for i in range(T)) / T
            seen += pairs.heads * pairs.head_width * each
    return 2.0 * products + 4.0 * seen


def rows_of(task: Task, c: Config, count: int, dice: torch.Generator, *, held: bool) -> Iterator[Rows]:
    """Batches without end; held-out text is the last tenth."""
    context = shape(task, "simplicial").context
    if task == "match3":
        while True:
            yield Rows(*Match3().draw(count, context, dice))
    text = ByteText.read(Path(c.text) if c.text else None)
    while True:
        drawn = text.draw(count, context + 1, dice, held=held)
        yield Rows(drawn[:, :-1], drawn[:, 1:])


def loss(model: TextBackbone, batch: Rows) -> tuple[Tensor, int]:
    """Summed cross-entropy in nats, and the number of answers."""
    logits = model(batch.tokens)
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum"), batch.targets.numel()


@torch.no_grad()
def score(task: Task, model: TextBackbone, c: Config) -> list[float]:
    """A held-out row each: the share of right answers, or bits a byte. The same rows whatever the seed and the arm."""
    model.eval()
    batch = next(rows_of(task, c, c.held_out, torch.Generator().manual_seed(10_007), held=True))
    found: list[float] = []
    for tokens, targets in zip(batch.tokens.split(16), batch.targets.split(16), strict=True):
        logits = model(tokens)
        if task == "match3":
            found += (logits.argmax(-1) == targets).float().mean(1).tolist()
        else:
            nats = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)
            found += (nats / torch.tensor(2.0).log()).tolist()
    return found


def build(task: Task, arm: Arm, seed: int) -> TextBackbone:
    """A fresh model; on match3 the embedding begins with the features' signs, for both arms alike."""
    torch.manual_seed(seed)
    model = TextBackbone(shape(task, arm))
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=(1.0 if "embed" in name else weight.shape[1] ** -0.5))
    if task == "match3":
        signs = Match3().signs()
        place = torch.randn(signs.shape[1], model.config.width, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(signs @ place / signs.shape[1] ** 0.5)
    return model


def run(task: Task, arm: Arm, seed: int, c: Config) -> dict[str, Any]:
    """One model from its beginning to its held-out figures; read from its file where it was made before."""
    file = Path(c.out) / f"{task}-{arm}-{seed}.json"
    settings = {**asdict(replace(c, tasks=(), seeds=(), out="", publish="")), "shape": asdict(shape(task, arm))}
    settings = json.loads(json.dumps(settings))
    if file.exists() and (made := json.loads(file.read_text()))["settings"] == settings:
        return made
    model, began = build(task, arm, seed), time.monotonic()
    learns = TrainingConfig(
        learns=((r".*", 1.0),),
        steps=c.steps,
        learning_rate=c.learning_rate,
        warm_up=min(50, c.steps // 2),
        floor=0.05,
        weight_decay=0.01,
        betas=(0.9, 0.98),
        seed=seed,
    )
    accelerator = Accelerator(cpu=True)
    model, optimizer = prepare(accelerator, model, learns)
    rows = c.rows if task == "match3" else max(1, c.rows // 4)
    batches = rows_of(task, c, rows, torch.Generator().manual_seed(seed), held=False)
    losses = [step.loss for step in train(accelerator, model, optimizer, batches, loss, learns)]
    points = [losses[at : at + c.curve] for at in range(0, len(losses), c.curve)]
    made = {
        "settings": settings,
        "seconds": round(time.monotonic() - began, 1),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "flop_a_token": flop(model.config),
        "curve": [round(statistics.fmean(point), 4) for point in points],
        "held_out": score(task, model, c),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(made) + "\n")
    return made


def result(runs: dict[tuple[Task, Arm, int], dict[str, Any]], c: Config, command: str) -> Result:
    """The figures of all runs: means over seeds, each seed's own, intervals over held-out rows, curves."""
    metrics: dict[str, float | int] = {}
    theirs: dict[str, float | int] = {}
    intervals, gaps, curves, about = {}, {}, {}, {}
    for task in c.tasks:
        name = METRICS[task]
        sides = []
        for arm, figures in zip(ARMS, (metrics, theirs), strict=True):
            each = [runs[task, arm, seed] for seed in c.seeds]
            means = [statistics.fmean(one["held_out"]) for one in each]
            figures[name] = statistics.fmean(means)
            figures |= {f"{name}_seed_{seed}": mean for seed, mean in zip(c.seeds, means, strict=True)}
            sides.append(
                mean_of([statistics.fmean(row) for row in zip(*(one["held_out"] for one in each), strict=True)])
            )
            curves[f"{task}_{arm}"] = [one["curve"] for one in each]
            about[f"{task}_{arm}"] = {key: each[0][key] for key in ("parameters", "flop_a_token")} | {
                "train_seconds": [one["seconds"] for one in each]
            }
        intervals[name] = interval(sides[0])
        gap = difference(*sides)
        gaps[name] = (gap.value, gap.low, gap.high)
    return Result(
        task="simplicial_learning",
        data=f"Match3 of 4 bits in windows of 6 x 6; bytes of {Path(c.text).name or ByteText.ORIGIN}",
        n=c.held_out,
        command=command,
        metrics=metrics,
        interval=intervals,
        baselines={"dot_product": theirs},
        differences={"dot_product": gaps},
        cost={"train_seconds": sum(one["seconds"] for one in runs.values()), "runs": len(runs), "steps": c.steps},
        metadata={
            "seeds": "a figure without a seed is the mean over seeds; intervals are over held-out rows, not over seeds",
            "chosen": "match3's size and the learning rate by short runs of seed 0 of the simplicial side alone",
            "curves": {"steps_a_point": c.curve, "training_loss_nats_by_seed": curves},
            "models": about,
        },
    )


def main(c: Config) -> None:
    runs: dict[tuple[Task, Arm, int], dict[str, Any]] = {}
    for seed in c.seeds:
        for task in c.tasks:
            for arm in ARMS:
                runs[task, arm, seed] = made = run(task, arm, seed, c)
                figure = statistics.fmean(made["held_out"])
                print(f"seed {seed} {METRICS[task]} {arm}: {figure:.4f} ({made['seconds']:.0f} s)", flush=True)
    told = result(runs, c, shlex.join(["python", "recipes/simplicial_learning.py", *sys.argv[1:]]))
    print(told.save(Path(c.out)))
    if c.publish:
        print(told.publish(Path(c.publish)))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
