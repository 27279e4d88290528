"""How much bad data a run bears: every skip is counted by its reason, and too many of them stop the run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


class BadSample(ValueError):  # noqa: N818 (said as it is)
    """A sample that cannot be used, with the reason it is counted under; any other error is a fault of ours."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class TooManyBadSamples(ValueError):  # noqa: N818 (said as it is)
    """More samples were bad than the run allows."""


@dataclass(kw_only=True)
class Tolerance:
    """Counts outcomes in order and stops at a share or a row of bad samples."""

    max_bad_share: float = 0.05
    in_a_row: int = 100
    """So many bad samples one behind the other are a wrong setting, not bad luck."""
    after: int = 200
    """The share is judged from this many samples on."""
    seen: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    _row: int = 0
    _last: str = ""

    def count(self, reason: str | None, detail: str = "") -> None:
        """One more sample: good (None) or bad for `reason`. TooManyBadSamples when it is one too many."""
        self.seen += 1
        if reason is None:
            self._row = 0
            return
        self.skipped[reason] += 1
        self._row += 1
        self._last = detail or self._last
        bad = self.skipped.total()
        if self._row >= self.in_a_row:
            raise TooManyBadSamples(f"{self._row} bad samples one behind the other: {self._told()}")
        if self.seen >= self.after and bad > self.max_bad_share * self.seen:
            share = f"more than max_bad_share ({self.max_bad_share}) allows"
            raise TooManyBadSamples(f"{bad} of {self.seen} samples are bad, {share}: {self._told()}")

    def _told(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.skipped.most_common())
        return f"{reasons}; the last: {self._last or 'no detail'}; repair the data, or allow a larger share"
