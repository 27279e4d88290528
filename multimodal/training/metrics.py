"""metrics.jsonl: one line of numbers for each step, without holes and without doubles over any number of resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType

from multimodal.training.publication import write_text


class Metrics:
    """`with Metrics(file, after=start.step) as metrics: metrics.write(step=..., loss=...)`.

    Lines of steps after `after` are of a past that was lost with its state, and go, as does a torn line.
    """

    def __init__(self, file: Path, *, after: int = 0) -> None:
        self._file, self._after = file, after

    def __enter__(self) -> Metrics:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if self._file.exists():
            kept = [line for line in self._file.read_text(encoding="utf-8").splitlines() if _step(line) <= self._after]
            write_text(self._file, "".join(f"{line}\n" for line in kept))
        self._stream = self._file.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def write(self, *, step: int, **values: float | int | str | None) -> None:
        """One line, on its way to the disk at once; a value that is not finite becomes null, for JSON has none."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._stream.write(json.dumps({"step": step, **finite}) + "\n")
        self._stream.flush()


def read_metrics(file: Path) -> list[dict]:
    """The lines of a metrics.jsonl, a torn one left out."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if math.isfinite(_step(line))]


def _step(line: str) -> float:
    """The step that a line is of; infinity for a line that a kill has torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
