"""The page of a run that hears: scores, by whom and how long, players of what was drawn and of what is worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multimodal.data.recordings import Recording
from multimodal.evaluation.measure import Measure
from multimodal.evaluation.recordings import player
from multimodal.evaluation.report import (
    Played,
    costs,
    groups,
    guarantees,
    header,
    loss_curve,
    pick_random,
    pick_worst,
    recordings,
    scores,
    write_report,
)
from multimodal.evaluation.result import Result
from multimodal.training.metrics import read_metrics


@dataclass(frozen=True, kw_only=True)
class HearingTest:
    """One test: its recordings, what was heard, what a baseline says, the figures."""

    title: str
    samples: Sequence[Recording]
    references: Sequence[str]
    said: Sequence[str]
    baseline: Sequence[str]
    """What stands in small type under an answer; empty for none."""
    baseline_name: str
    ours: Measure
    """The measure that decides what is worst: errors over what is there (or anything of which less is worse, with
    `more_is_better`)."""
    more_is_better: bool = False
    result: Result


def write_speech_report(
    run: Path,
    tests: Sequence[HearingTest],
    *,
    lede: str,
    facts: Mapping[str, str],
    by: Mapping[str, Mapping[str, Mapping[str, float]]],
    unchanged: Mapping[str, float],
    frozen_tensors: int,
) -> Path:
    """Writes `run`/report.html and gives its path; `by` is title -> group -> score and number of a measure."""
    sections = [header("What it hears", lede, facts)]
    for test in tests:
        sections.append(scores(test.result, title=test.title))
        keys = [sample.key for sample in test.samples]
        sections += [
            recordings(
                [_played(test, i) for i in pick_random(keys, 8)],
                title="What it hears",
                note="Not chosen: drawn by a hash of the samples' names.",
            ),
            recordings([_played(test, i) for i in pick_worst(keys, _right(test), 6)], title="Where it is worst"),
        ]
    sections += [groups(found, title=title) for title, found in by.items()]
    start, rest = run / "metrics-start.jsonl", run / "metrics.jsonl"
    sections += [
        guarantees(unchanged, frozen_tensors=frozen_tensors),
        loss_curve(read_metrics(start), title="Loss of the first course (reading)") if start.is_file() else "",
        loss_curve(read_metrics(rest), title="Loss through the text model") if rest.is_file() else "",
        costs(tests[0].result.cost),
    ]
    path = run / "report.html"
    write_report(path, f"{run.name}: what it hears", sections)
    return path


def _right(test: HearingTest) -> list[float]:
    """How right each answer is; the lowest is the worst."""
    values = [
        Measure(samples=test.ours.samples[i : i + 1], of_means=test.ours.of_means).value for i in range(len(test.ours))
    ]
    return values if test.more_is_better else [-value for value in values]


def _played(test: HearingTest, i: int) -> Played:
    sample = test.samples[i]
    note = f"{test.baseline_name}: {test.baseline[i]}" if test.baseline else ""
    speaker = f"{sample.speaker}. " if sample.speaker else ""
    return Played(sound=player(sample), said=test.said[i], true=test.references[i], note=f"{speaker}{note}")
