"""Which sample stands at which position of a run: a pure function of (seed, epoch, position), and of nothing else.

Workers and ranks only decide who reads a position, never what stands there, so the number of steps done is all that a
run needs to know to go on where it stopped. The bits come from Philox, whose stream is the same in every version and on
every machine; numpy's own shuffles are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

_QUOTA = 4096
"""Mixture weights are kept to one part in this many."""


class Place(NamedTuple):
    """What stands at a position: sample `index` of `source`, which is in its `epoch`."""

    source: int
    epoch: int
    index: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of one source, epoch after epoch: every epoch has every sample exactly once.

    Up to `window` samples an epoch is one permutation of all. Beyond, it has two levels: the shards are permuted and
    laid end to end, and samples are permuted within windows of that row, so that a reader has few shards open at a
    time.
    """

    sizes: tuple[int, ...]
    """Samples in each shard."""
    seed: int
    window: int = 1 << 20
    shuffled: bool = True

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1 sample, got {self.window}")
        if not self.sizes or min(self.sizes) < 0 or sum(self.sizes) == 0:
            raise ValueError(f"an order needs at least one sample, got shards of {self.sizes[:8]}")

    def __len__(self) -> int:
        return sum(self.sizes)

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, sample) at a position counted from 0 through all epochs."""
        if position < 0:
            raise ValueError(f"positions are counted from 0, got {position}")
        total = _total(self.sizes)
        epoch, place = divmod(position, total)
        if not self.shuffled:
            return epoch, place
        if total <= self.window:
            return epoch, int(permutation(total, self.seed, epoch, 0)[place])
        window, offset = divmod(place, self.window)
        size = min(self.window, total - window * self.window)
        laid = window * self.window + int(permutation(size, self.seed, epoch, window + 1)[offset])
        ends, shifts = _laid_out(self.sizes, self.seed, epoch)
        return epoch, laid + int(shifts[np.searchsorted(ends, laid, side="right")])


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several sources in one order. Without weights they are one big source; with weights each has its own epochs.

    Every run of 4096 positions gives each source its share of them, kept to one part in 4096, in a shuffled order.
    """

    sources: tuple[tuple[int, ...], ...]
    """The shard sizes of each source."""
    seed: int
    weights: tuple[float, ...] | None = None
    window: int = 1 << 20
    shuffled: bool = True

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a mixture needs at least one source")
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise ValueError(f"{len(self.weights)} weights for {len(self.sources)} sources; give each source one")
        if self.weights is not None and not all(0 < weight < float("inf") for weight in self.weights):
            raise ValueError(
                f"weights must be above 0 and finite, got {self.weights}; leave a source out to give it none"
            )
        if self.weights is not None and len(self.sources) > _QUOTA:
            raise ValueError(f"at most {_QUOTA} sources can be weighted, got {len(self.sources)}")

    def at(self, position: int) -> Place:
        """What stands at a position counted from 0 through all epochs."""
        if position < 0:
            raise ValueError(f"positions are counted from 0, got {position}")
        if self.weights is None:
            return self._joined(position)
        block, offset = divmod(position, _QUOTA)
        quotas = _quotas(self.weights)
        labels, ranks = _pattern(quotas, self.seed, block)
        source = int(labels[offset])
        own = Order(
            sizes=self.sources[source], seed=_child(self.seed, source), window=self.window, shuffled=self.shuffled
        )
        epoch, index = own.at(block * quotas[source] + int(ranks[offset]))
        return Place(source, epoch, index)

    def _joined(self, position: int) -> Place:
        order = Order(sizes=_flat(self.sources), seed=self.seed, window=self.window, shuffled=self.shuffled)
        epoch, index = order.at(position)
        source = 0
        while index >= _total(self.sources[source]):
            index -= _total(self.sources[source])
            source += 1
        return Place(source, epoch, index)

    def sample_seed(self, position: int) -> int:
        """The seed of all chance that belongs to one position: augmentation, the choice among captions."""
        return _child(self.seed, "sample", self.at(position).epoch, position)


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Who reads what: step s has positions [s * rows, (s + 1) * rows), and each rank a contiguous slice of them.

    `rows` is the global batch of one optimizer step; a rank takes rows / ranks of it, in `micro` batches one after
    another (gradient accumulation). So one rank with twice the micro-batches sees the same steps as two ranks.
    """

    rows: int
    rank: int = 0
    ranks: int = 1
    micro: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1 or self.ranks < 1 or self.micro < 1 or not 0 <= self.rank < self.ranks:
            raise ValueError(f"rows, ranks and micro must be at least 1 and rank below ranks, got {self}")
        if self.rows % (self.ranks * self.micro):
            raise ValueError(
                f"the global batch ({self.rows} rows) must be a multiple of ranks times micro-batches "
                f"({self.ranks} x {self.micro})"
            )

    def batches(self, position: int = 0, stop: int | None = None) -> Iterator[range]:
        """The positions of this rank's micro-batches from `position` on, which must stand between two steps."""
        if position < 0 or position % self.rows:
            raise ValueError(
                f"position {position} does not stand between two steps of {self.rows} rows; "
                "a run continues with the global batch it was begun with"
            )
        size = self.rows // (self.ranks * self.micro)
        while stop is None or position + self.rows <= stop:
            start = position + self.rank * size * self.micro
            for number in range(self.micro):
                yield range(start + number * size, start + (number + 1) * size)
            position += self.rows


def _child(seed: int, *path: int | str) -> int:
    """A seed in [0, 2^63) for one purpose, unrelated to its neighbours'."""
    return int.from_bytes(hashlib.sha256(repr((seed, *path)).encode()).digest()[:8], "little") >> 1


@lru_cache(maxsize=16)
def permutation(size: int, seed: int, epoch: int, purpose: int) -> Int64[np.ndarray, " size"]:
    """A permutation by sorting random 64-bit words; a tie, of no account, goes to the lower index."""
    words = np.random.Philox(key=_child(seed, epoch, purpose)).random_raw(size)
    return np.argsort(words, kind="stable")


@lru_cache(maxsize=16)
def _laid_out(sizes: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Shards in the epoch's order, end to end: where each ends, and what takes a place there to the sample's index."""
    shards = permutation(len(sizes), seed, epoch, -1)
    lengths = np.array(sizes, dtype=np.int64)
    begins = np.cumsum(lengths) - lengths
    ends = np.cumsum(lengths[shards])
    return ends, begins[shards] - (ends - lengths[shards])


@lru_cache(maxsize=64)
def _quotas(weights: tuple[float, ...]) -> tuple[int, ...]:
    """How many of 4096 positions each source gets: at least one, the rest by largest remainder."""
    exact = np.array(weights) / sum(weights) * (_QUOTA - len(weights))
    quotas = 1 + np.floor(exact).astype(int)
    for source in np.argsort(np.floor(exact) - exact, kind="stable")[: _QUOTA - quotas.sum()]:
        quotas[source] += 1
    assert quotas.sum() == _QUOTA
    return tuple(quotas.tolist())


@lru_cache(maxsize=16)
def _pattern(quotas: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """For each position of a block its source, and how many positions of that source stand before it in the block."""
    labels = np.repeat(np.arange(len(quotas)), quotas)[permutation(_QUOTA, seed, block, -2)]
    ranks = np.empty(_QUOTA, dtype=np.int64)
    for source in range(len(quotas)):
        ranks[labels == source] = np.arange(quotas[source])
    return labels, ranks


@lru_cache(maxsize=64)
def _total(sizes: tuple[int, ...]) -> int:
    return sum(sizes)


@lru_cache(maxsize=16)
def _flat(sources: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(size for sizes in sources for size in sizes)
