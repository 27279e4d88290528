"""Batches of samples that are about equally long, in an order that is still a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from multimodal.data.order import Mixture, Place, permutation


class Buckets:
    """A mixture whose positions are, window by window, sorted by length and dealt out in batches of `rows`.

    A window is `batches` batches of the mixture's own order: what stands in it does not change, only where. With one
    batch a window every batch is the mixture's, sorted.
    """

    def __init__(self, mixture: Mixture, lengths: Sequence[Sequence[int]], *, rows: int, batches: int = 16) -> None:
        """`lengths` are of every sample of every source, in any unit."""
        if rows < 1 or batches < 1:
            raise ValueError(f"rows ({rows}) and batches ({batches}) must be at least 1")
        counts = [len(one) for one in lengths]
        if counts != [sum(sizes) for sizes in mixture.sources]:
            raise ValueError(f"lengths are of {counts} samples, the mixture's sources have {mixture.sources}")
        self._mixture, self._rows, self._batches = mixture, rows, batches
        self._lengths = [np.asarray(one) for one in lengths]
        self._known: tuple[int, Int64[np.ndarray, " size"]] | None = None

    @property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        return self._mixture.sources

    def at(self, position: int) -> Place:
        """What stands at a position counted from 0 through all epochs."""
        return self._mixture.at(self._inner(position))

    def sample_seed(self, position: int) -> int:
        """The seed of all chance that belongs to one position."""
        return self._mixture.sample_seed(self._inner(position))

    def _inner(self, position: int) -> int:
        """The mixture's position of what stands here."""
        size = self._rows * self._batches
        window, place = divmod(position, size)
        if self._known is None or self._known[0] != window:
            self._known = window, self._dealt(window)
        return window * size + int(self._known[1][place])

    def _dealt(self, window: int) -> Int64[np.ndarray, " size"]:
        size = self._rows * self._batches
        places = [self._mixture.at(window * size + offset) for offset in range(size)]
        lengths = np.array([self._lengths[place.source][place.index] for place in places])
        batches = np.argsort(lengths, kind="stable").reshape(self._batches, self._rows)
        return batches[permutation(self._batches, self._mixture.seed, window, -3)].reshape(-1)
