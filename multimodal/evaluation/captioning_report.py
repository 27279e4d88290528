"""The captioning run's page: scores of each test, what the model says, what did not change, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from encoders.pixels import read_image
from multimodal.evaluation.captioning import is_exact, score_captions
from multimodal.evaluation.pictures import Said, Sample
from multimodal.evaluation.report import (
    Example,
    Exchange,
    costs,
    examples,
    exchanges,
    guarantees,
    header,
    loss_curve,
    pick_random,
    pick_worst,
    scores,
    write_report,
)
from multimodal.evaluation.result import Result
from multimodal.evaluation.slots import score_scenes
from multimodal.training.metrics import read_metrics


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One test: its samples, what was said of them, the nearest neighbour's captions, the figures."""

    title: str
    samples: Sequence[Sample]
    said: Said
    neighbours: Sequence[str]
    result: Result


def write_captioning_report(
    run: Path,
    tested: Sequence[Tested],
    *,
    facts: Mapping[str, str],
    unchanged: Mapping[str, float],
    frozen_tensors: int,
    several: Sequence[Exchange],
    cost: Mapping[str, float],
) -> Path:
    """Writes `run`/report.html and gives its path."""
    lede = (
        "A frozen text model learned to see. What it says of pictures that it was never shown, and what that rests on."
    )
    sections = [header("What it sees", lede, facts)]
    for one in tested:
        sections += [scores(one.result, title=one.title), *_shown(one)]
    sections += [
        exchanges(several, title="Several pictures in one prompt", note="Each answer follows its own picture."),
        guarantees(unchanged, frozen_tensors=frozen_tensors),
        loss_curve(read_metrics(run / "metrics.jsonl")),
        costs(cost),
    ]
    path = run / "report.html"
    write_report(path, f"{run.name}: what it sees", sections)
    return path


def _shown(one: Tested) -> list[str]:
    keys = [sample.key for sample in one.samples]
    drawn = examples(
        [_card(one, i) for i in pick_random(keys, 12)],
        title="What it says",
        note="Not chosen: drawn by a hash of the samples' names.",
    )
    worst = examples([_card(one, i) for i in pick_worst(keys, _scored(one), 4)], title="Where it is worst")
    return [drawn, worst]


def _scored(one: Tested) -> list[float]:
    """How right each answer is: its slots where the test has them, else its words."""
    if all(sample.slots is not None for sample in one.samples):
        slots = [sample.slots for sample in one.samples if sample.slots is not None]
        right, asked = score_scenes(one.said.right, slots)["slots"].samples.T
        return (right / asked.clip(min=1)).tolist()
    captions = [sample.captions for sample in one.samples]
    return score_captions(one.said.right, captions)["word_f1"].samples[:, 0].tolist()


def _card(one: Tested, i: int) -> Example:
    sample, said = one.samples[i], one.said.right[i]
    return Example(
        pictures=(_picture(sample),),
        said=said,
        true=sample.caption,
        right=any(is_exact(said, caption) for caption in sample.captions),
        note=f"nearest neighbour: {one.neighbours[i]}" if one.neighbours else "",
    )


def _picture(sample: Sample) -> PIL.Image.Image:
    return read_image(sample.picture)
