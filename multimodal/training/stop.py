"""SIGTERM and SIGINT as a wish: the step in hand is finished and saved before the process ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes Ctrl-C on to processes that the terminal has already told: that echo is no second wish.
_ECHO = 3.0


class StopSignal:
    """`with StopSignal() as stop:` remembers the signal; Ctrl-C again, seconds later, ends the process at once.

    The loop ends after the step in hand in every process, also in those that got no signal; the recipe saves, and on
    leaving the `with` the process exits with 143 (SIGTERM) or 130 (SIGINT). Only for the main thread, as signals are.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._process = 0
        self._before: dict[int, object] = {}

    @property
    def asked(self) -> bool:
        return self.received is not None

    def __enter__(self) -> StopSignal:
        self._process = os.getpid()
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self.received is not None and kind is None:
            sys.exit(128 + self.received)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A loader's worker inherits the handler: Ctrl-C is its parent's affair, anything else ends it.
            if number != signal.SIGINT:
                os._exit(128 + number)
        elif self.received is None:
            self.received, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _ECHO:
            raise KeyboardInterrupt
