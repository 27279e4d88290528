"""What a person sees of a run while it goes: a live line in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from io import TextIOBase
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from multimodal.training.loop import Step

# How fast the shown loss and speed follow the latest step.
_SMOOTHING = 0.1


class LiveProgress:
    """`with LiveProgress(steps, start=...) as progress: progress.show(step)`: loss, samples a second, time left.

    In a terminal one line that lives; elsewhere (`stream` is a file or a pipe) a line at most every `seconds`, and the
    last one. `quiet` shows nothing: for all processes but the main one.
    """

    def __init__(
        self,
        steps: int,
        *,
        start: int = 0,
        seconds: float = 20.0,
        quiet: bool = False,
        stream: TextIOBase | None = None,
    ) -> None:
        self._steps, self._start, self._seconds, self._quiet = steps, start, seconds, quiet
        self._stream: Any = stream or sys.stderr
        self._live: Progress | None = None
        self._loss: float | None = None
        self._speed: float | None = None
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> LiveProgress:
        self._began = self._shown = time.monotonic()
        if not self._quiet and self._stream.isatty():
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._live = Progress(*columns, console=Console(file=self._stream))
            self._live.start()
            self._task = self._live.add_task("", total=self._steps, completed=self._start, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, step: Step) -> None:
        """Takes in a step; call it for each."""
        if self._quiet:
            return
        if not step.skipped:
            self._loss = _follow(self._loss, step.loss)
        self._speed = _follow(self._speed, step.samples / step.seconds if step.seconds else 0.0)
        if step.skipped:
            self.note(f"step {step.index} was not finite and was skipped; samples: {', '.join(step.keys[:8])}")
        numbers = f"loss {self._loss or 0.0:.3f}  {self._speed:.1f} samples/s"
        if self._live is not None:
            self._live.update(self._task, completed=step.index, numbers=numbers)
            return
        now = time.monotonic()
        if step.last or now - self._shown >= self._seconds:
            self._shown = now
            done = step.index - self._start
            left = (now - self._began) / done * (self._steps - step.index)
            self.note(f"step {step.index}/{self._steps}  {numbers}  {_clock(left)} left")

    def note(self, line: str) -> None:
        """A line of text above the live one."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self._stream, flush=True)


def _follow(smooth: float | None, value: float) -> float:
    return value if smooth is None else smooth + _SMOOTHING * (value - smooth)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
