"""Batches of a run in their order, made by any number of workers: the same bytes for none and for two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from multimodal.data.order import Place, Turns
from multimodal.data.tolerance import BadSample, Tolerance

ItemT = TypeVar("ItemT")
BatchT = TypeVar("BatchT")


@runtime_checkable
class Source(Protocol):
    """Examples by number: ShardExamples, ShardRecordings, or anything like them that can be sent to a worker."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Examples in each shard; (n,) for a source without shards."""
        ...

    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class Sequenced(Protocol):
    """Which sample stands at which position: Mixture, Buckets."""

    @property
    def sources(self) -> tuple[tuple[int, ...], ...]: ...

    def at(self, position: int) -> Place: ...

    def sample_seed(self, position: int) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[BatchT]):
    """A micro-batch as it reaches the training loop, and the counts that came with it."""

    batch: BatchT | None
    """None when every sample of it was bad."""
    positions: range
    next_position: int
    """Where a run continues once the step that this batch ends, or belongs to, is done."""
    skipped: Counter[str]
    """Samples left out of this batch, by reason."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are read."""

    workers: int = 2
    """Processes that read and decode; 0 does it in the training process."""
    prefetch: int = 4
    """Batches that each worker makes ahead."""
    timeout: float = 300.0
    """Seconds without a batch after which a stuck worker is an error."""
    max_bad_share: float = 0.05
    """Bad samples are skipped and counted; more than this share of them stops the run."""


class Loader(Generic[ItemT, BatchT]):
    """Reads sources in the order of a mixture and yields this rank's micro-batches, from any position on.

    `prepare(example, random)` makes an item; its chance must come from `random`, or from torch's global generator,
    which is seeded for each sample and given back as it was. `collate(items)` makes a batch. Both run in the workers.
    A BadSample that source or prepare raises leaves the sample out; every other error ends the run.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Sequenced,
        turns: Turns,
        *,
        prepare: Callable[[Any, torch.Generator], ItemT],
        collate: Callable[[list[ItemT]], BatchT],
        config: LoaderConfig | None = None,
    ) -> None:
        sizes = tuple(tuple(source.sizes) for source in sources)
        if sizes != mixture.sources:
            raise ValueError(
                f"the mixture is of {len(mixture.sources)} sources of other sizes than the {len(sizes)} given"
            )
        self._turns = turns
        self._config = config or LoaderConfig()
        self._maker = _Maker(tuple(sources), mixture, prepare, collate)
        self.tolerance = Tolerance(max_bad_share=self._config.max_bad_share)
        """The counts of this process so far."""

    def batches(self, position: int = 0, stop: int | None = None) -> Iterator[Loaded[BatchT]]:
        """Micro-batches from `position` on, endlessly or to `stop`; an incomplete step before `stop` is left out.

        TooManyBadSamples when the data is worse than the run allows; RuntimeError when a worker dies or is stuck.
        """
        config, turns = self._config, self._turns
        # Checked here: inside the iterator the error would come out of a worker's queue.
        first = next(turns.batches(position, None))
        assert first
        loader = DataLoader(
            self._maker,
            batch_sampler=_Ranges(turns, position, stop),
            collate_fn=_only,
            num_workers=config.workers,
            prefetch_factor=config.prefetch if config.workers else None,
            timeout=config.timeout if config.workers else 0,
            # The loader draws a base seed for its workers; the global generator belongs to the training.
            generator=torch.Generator().manual_seed(0),
        )
        for made in _watched(loader, config):
            skipped: Counter[str] = Counter()
            for reason, detail in made.outcomes:
                self.tolerance.count(reason, detail)
                if reason is not None:
                    skipped[reason] += 1
            step = made.positions.start // turns.rows
            yield Loaded(
                batch=made.batch, positions=made.positions, next_position=(step + 1) * turns.rows, skipped=skipped
            )


@dataclass(frozen=True)
class _Made:
    batch: Any
    positions: range
    outcomes: tuple[tuple[str | None, str], ...]


class _Maker(Dataset):
    """Makes whole batches: what a worker runs."""

    def __init__(self, sources: tuple[Source, ...], mixture: Sequenced, prepare: Callable, collate: Callable) -> None:
        self._sources, self._mixture, self._prepare, self._collate = sources, mixture, prepare, collate

    def __getitem__(self, position: int) -> Any:
        """One item; BadSample where there is none."""
        place = self._mixture.at(position)
        seed = self._mixture.sample_seed(position)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            example = self._sources[place.source][place.index]
            return self._prepare(example, torch.Generator().manual_seed(seed))

    def __getitems__(self, positions: Sequence[int]) -> list[_Made]:
        items: list[Any] = []
        outcomes: list[tuple[str | None, str]] = []
        for position in positions:
            try:
                items.append(self[position])
                outcomes.append((None, ""))
            except BadSample as error:
                outcomes.append((error.reason, error.detail))
        batch = self._collate(items) if items else None
        return [_Made(batch, range(positions[0], positions[-1] + 1), tuple(outcomes))]


def _watched(loader: DataLoader, config: LoaderConfig) -> Iterator[_Made]:
    """The loader's batches; what torch says about a lost worker in our own words."""
    batches = iter(loader)
    try:
        while True:
            try:
                made = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader "):
                    raise
                raise RuntimeError(
                    f"a data worker died or gave nothing for {config.timeout:.0f} seconds ({error}); "
                    "it is often memory: try fewer workers, or none to see an error of its own"
                ) from error
            yield made
    finally:
        # Left to the garbage collector after an error, torch waits five seconds for every worker.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()


class _Ranges:
    """The batch sampler: lists of positions."""

    def __init__(self, turns: Turns, position: int, stop: int | None) -> None:
        self._turns, self._position, self._stop = turns, position, stop

    def __iter__(self) -> Iterator[list[int]]:
        for positions in self._turns.batches(self._position, self._stop):
            yield list(positions)


def _only(made: list[_Made]) -> _Made:
    return made[0]
