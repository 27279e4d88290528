"""The one shape of an evaluation's figures, as a value and as JSON; scored here from plain lists of answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from multimodal.data.sentences import Slots
from multimodal.evaluation.bootstrap import DRAWS, difference, interval
from multimodal.evaluation.captioning import METADATA, References, score_captions
from multimodal.evaluation.measure import Measure, mean_of
from multimodal.evaluation.slots import score_scenes
from multimodal.training.publication import write_text

_TASK = re.compile(r"[a-z0-9][a-z0-9_.]*")
_NUMBERS = re.compile(r"\[\s+-?[0-9][^\[\]{}\"]*\]")
_REQUIRED = ("task", "data", "n", "command", "metrics", "interval", "controls", "baselines", "cost")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `eval_<task>.json` and `docs/results/<task>.json` hold."""

    task: str
    data: str
    n: int
    command: str
    """The command that makes these figures again."""
    metrics: dict[str, float | int]
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95% bootstrap interval (low, high) of each metric."""
    controls: dict[str, dict[str, float | int]] = field(default_factory=dict)
    baselines: dict[str, dict[str, float | int]] = field(default_factory=dict)
    cost: dict[str, float | int] = field(default_factory=dict)
    differences: dict[str, dict[str, tuple[float, float, float]]] = field(default_factory=dict)
    """Ours minus a control's or a baseline's figure on the same samples: (difference, low, high), by its name."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """How a figure came to be, by metric: its tokenizer, its definition."""

    def __post_init__(self) -> None:
        if not _TASK.fullmatch(self.task):
            raise ValueError(f"task {self.task!r} names a file: lower-case letters, digits, '_' and '.' only")
        if self.n < 1 or not self.metrics:
            raise ValueError(
                f"{self.task}: n ({self.n}) and the number of metrics ({len(self.metrics)}) must be at least 1"
            )
        if not self.command.strip():
            raise ValueError(f"{self.task}: the command that makes the figures is missing")
        for where, figures in (
            ("metrics", self.metrics),
            ("cost", self.cost),
            *((f"controls.{name}", one) for name, one in self.controls.items()),
            *((f"baselines.{name}", one) for name, one in self.baselines.items()),
        ):
            for name, value in figures.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise ValueError(f"{self.task}: {where}.{name} is {value!r}, not a finite number")
        for name, (low, high) in self.interval.items():
            if name not in self.metrics:
                raise ValueError(f"{self.task}: interval {name!r} has no metric; metrics are {sorted(self.metrics)}")
            if not low <= high:
                raise ValueError(f"{self.task}: interval {name} is [{low}, {high}]; the first must not be above")

    def as_json(self) -> str:
        """The file's text; `differences` and `metadata` only where there are any."""
        record = asdict(self)
        text = json.dumps({k: v for k, v in record.items() if v or k in _REQUIRED}, indent=2, allow_nan=False)
        # An interval reads better on one line.
        return _NUMBERS.sub(lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text) + "\n"

    def save(self, folder: Path) -> Path:
        """Writes `folder/eval_<task>.json` (a run's folder) and gives its path."""
        return self._write(folder / f"eval_{self.task}.json")

    def publish(self, folder: Path) -> Path:
        """Writes `folder/<task>.json` (docs/results) and gives its path."""
        return self._write(folder / f"{self.task}.json")

    def _write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.as_json())
        return path


def read_result(path: Path) -> Result:
    """The result in a file; ValueError with the path where a key is missing, unknown or out of shape."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}, not an object with {list(_REQUIRED)}")
    known = {entry.name for entry in fields(Result)}
    if missing := [key for key in _REQUIRED if key not in record]:
        raise ValueError(f"{path} lacks {missing}; a result has {list(_REQUIRED)}")
    if unknown := sorted(record.keys() - known):
        raise ValueError(f"{path} has unknown keys {unknown}; a result has {sorted(known)}")
    try:
        record["interval"] = {name: (low, high) for name, (low, high) in record["interval"].items()}
        record["differences"] = {
            other: {name: (gap, low, high) for name, (gap, low, high) in figures.items()}
            for other, figures in record.get("differences", {}).items()
        }
        return Result(**record)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def evaluate(
    task: str,
    predictions: Sequence[str],
    references: References,
    *,
    data: str,
    command: str,
    nouns: Sequence[str] | None = None,
    slots: Sequence[Slots] | None = None,
    controls: Mapping[str, Sequence[str]] | None = None,
    baselines: Mapping[str, Sequence[str]] | None = None,
    likelihoods: Mapping[str, Sequence[float]] | None = None,
    cost: Mapping[str, float | int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Result:
    """The result of a captioning evaluation from what was said: by the model, by its controls and by its baselines.

    All lists are of the same samples in the same order. `controls` holds the answers to `wrong_medium` and `no_medium`,
    `baselines` those of `nearest_neighbour`. With `nouns` the noun is scored too, with `slots` the slots of scenes;
    `likelihoods` holds the true captions' log-probabilities, ours by the name "" and each control's by its own.
    """

    def scored(answers: Sequence[str], name: str = "") -> dict[str, Measure]:
        measures = score_captions(answers, references, nouns)
        if slots is not None:
            measures |= score_scenes(answers, slots)
        if likelihoods is not None and name in likelihoods:
            measures["log_likelihood"] = mean_of(likelihoods[name])
        return measures

    left_out = {"exact_noun"} if nouns is None else set()
    left_out |= {"log_likelihood"} if likelihoods is None else set()
    return measured(
        task,
        scored(predictions),
        data=data,
        command=command,
        controls={name: scored(answers, name) for name, answers in (controls or {}).items()},
        baselines={name: scored(answers, name) for name, answers in (baselines or {}).items()},
        cost=cost,
        metadata={name: how for name, how in METADATA.items() if name not in left_out},
        draws=draws,
        seed=seed,
    )


def measured(
    task: str,
    ours: Mapping[str, Measure],
    *,
    data: str,
    command: str,
    controls: Mapping[str, Mapping[str, Measure]] | None = None,
    baselines: Mapping[str, Mapping[str, Measure]] | None = None,
    cost: Mapping[str, float | int] | None = None,
    metadata: Mapping[str, Any] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Result:
    """The result of measures of any kind: values, 95% intervals, paired differences to every control and baseline."""
    controls, baselines = controls or {}, baselines or {}
    if both := sorted(controls.keys() & baselines.keys()):
        raise ValueError(f"{both} are named as controls and as baselines; give them different names")

    def gaps(theirs: Mapping[str, Measure]) -> dict[str, tuple[float, float, float]]:
        found = {name: difference(ours[name], theirs[name], draws=draws, seed=seed) for name in ours if name in theirs}
        return {name: (gap.value, gap.low, gap.high) for name, gap in found.items()}

    return Result(
        task=task,
        data=data,
        n=len(next(iter(ours.values()))),
        command=command,
        metrics=_values(ours),
        interval={name: interval(measure, draws=draws, seed=seed) for name, measure in ours.items()},
        controls={name: _values(theirs) for name, theirs in controls.items()},
        baselines={name: _values(theirs) for name, theirs in baselines.items()},
        cost=dict(cost or {}),
        differences={name: gaps(theirs) for name, theirs in [*controls.items(), *baselines.items()]},
        metadata=dict(metadata or {}),
    )


def _values(measures: Mapping[str, Measure]) -> dict[str, float | int]:
    return {name: measure.value for name, measure in measures.items()}
