import os
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from multimodal.data.loader import Loader, LoaderConfig
from multimodal.data.order import Mixture, Turns
from multimodal.data.sample import Example, ShardExamples
from multimodal.data.tolerance import BadSample, TooManyBadSamples
from tests.multimodal.data.shard_making import captioned, tar


@dataclass(frozen=True)
class Numbers:
    """A source of examples that carry their own number; some of them bad."""

    count: int
    bad: frozenset[int] = field(default_factory=frozenset)

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.count,)

    def __getitem__(self, index: int) -> Example:
        if index in self.bad:
            raise BadSample("image_decode", f"number {index}")
        return Example(key=str(index), captions=(str(index),))


def noisy(example: Example, random: torch.Generator) -> torch.Tensor:
    """The number, noise of the given generator, and noise of torch's own."""
    return torch.cat([torch.tensor([float(example.key)]), torch.rand(2, generator=random), torch.rand(2)])


def loader(source: Numbers, *, workers: int = 0, prepare=noisy, share: float = 0.05, **turns: int) -> Loader:
    config = LoaderConfig(workers=workers, max_bad_share=share, timeout=20.0)
    mixture = Mixture(sources=(source.sizes,), seed=1)
    return Loader([source], mixture, Turns(**{"rows": 4, **turns}), prepare=prepare, collate=torch.stack, config=config)


def test_batches_are_the_same_bytes_for_no_workers_and_for_two() -> None:
    source = Numbers(37, frozenset({3, 8}))
    alone = list(loader(source, workers=0, share=1.0).batches(0, 80))
    shared = list(loader(source, workers=2, share=1.0).batches(0, 80))
    assert len(alone) == len(shared) == 20
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.batch, other.batch)
        assert (one.positions, one.skipped) == (other.positions, other.skipped)


def test_a_run_continues_from_any_step_as_if_it_had_not_stopped() -> None:
    source = Numbers(11)
    whole = list(loader(source).batches(0, 40))
    for step in (1, 4, 9):
        rest = list(loader(source).batches(whole[step - 1].next_position, 40))
        assert [one.positions for one in rest] == [one.positions for one in whole[step:]]
        assert all(torch.equal(one.batch, other.batch) for one, other in zip(rest, whole[step:], strict=True))


def test_two_ranks_read_together_what_one_reads() -> None:
    source = Numbers(11)
    one = torch.cat([loaded.batch for loaded in loader(source, micro=2).batches(0, 16)])
    ranks = [list(loader(source, rank=rank, ranks=2).batches(0, 16)) for rank in range(2)]
    both = torch.cat([part.batch for step in zip(*ranks, strict=True) for part in step])
    assert torch.equal(one, both)


def test_reading_leaves_the_generator_of_the_training_alone() -> None:
    before = torch.get_rng_state()
    list(loader(Numbers(5)).batches(0, 8))
    list(loader(Numbers(5), workers=1).batches(0, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_a_sample_met_again_in_another_epoch_gets_other_noise() -> None:
    batches = [loaded.batch for loaded in loader(Numbers(4)).batches(0, 8)]
    first, second = (batch[batch[:, 0].argsort()] for batch in batches)
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.isclose(first[:, 1:], second[:, 1:]).any()


def test_bad_samples_make_a_batch_smaller_and_are_counted_by_reason() -> None:
    made = loader(Numbers(8, frozenset({2, 5})), share=1.0)
    loaded = list(made.batches(0, 8))
    assert sum(len(one.batch) for one in loaded) == 6
    assert sum((one.skipped for one in loaded), start=type(loaded[0].skipped)()) == {"image_decode": 2}
    assert made.tolerance.skipped == {"image_decode": 2}
    assert made.tolerance.seen == 8


def test_a_batch_of_bad_samples_only_is_none() -> None:
    (loaded,) = loader(Numbers(4, frozenset(range(4))), share=1.0).batches(0, 4)
    assert loaded.batch is None
    assert loaded.skipped.total() == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hundred_bad_samples_in_a_row_stop_the_run(workers: int) -> None:
    made = loader(Numbers(1000, frozenset(range(1000))), workers=workers, share=1.0)
    with pytest.raises(TooManyBadSamples, match="100 bad samples one behind the other: image_decode 100"):
        list(made.batches(0, 400))


def test_more_than_the_allowed_share_stops_the_run() -> None:
    with pytest.raises(TooManyBadSamples, match=r"more than max_bad_share \(0\.05\) allows: image_decode"):
        list(loader(Numbers(1000, frozenset(range(0, 1000, 10)))).batches(0, 1000))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [NameError, MemoryError, TypeError, ValueError, KeyError])
def test_an_error_of_our_own_is_never_taken_for_a_bad_sample(workers: int, error: type[Exception]) -> None:
    def broken(example: Example, random: torch.Generator) -> torch.Tensor:
        raise error("ours")

    with pytest.raises(error, match="ours"):
        list(loader(Numbers(8), workers=workers, prepare=broken, share=1.0).batches(0, 8))


def test_a_killed_worker_is_an_error_and_no_hang() -> None:
    parent = os.getpid()

    def deadly(example: Example, random: torch.Generator) -> torch.Tensor:
        if os.getpid() != parent and example.key == "3":
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1)

    # torch's own signal handler may be faster than the next look at the queue.
    with pytest.raises(
        RuntimeError, match=r"a data worker died or gave nothing for 20 seconds|worker .* killed by signal"
    ):
        list(loader(Numbers(50), workers=2, prepare=deadly).batches(0, 400))


def test_python_code_that_uses_other_chance_is_not_helped() -> None:
    """Only torch's generators are seeded; this is said in the docstring, and here."""

    def other(example: Example, generator: torch.Generator) -> torch.Tensor:
        return torch.tensor([random.random()])

    random.seed(0)
    first = next(loader(Numbers(5), prepare=other).batches()).batch
    assert not torch.equal(first, next(loader(Numbers(5), prepare=other).batches()).batch)


def test_a_start_between_two_steps_is_asked_for() -> None:
    with pytest.raises(ValueError, match="does not stand between two steps"):
        next(loader(Numbers(8), workers=1).batches(3))


def test_a_mixture_of_other_sources_is_refused() -> None:
    with pytest.raises(ValueError, match="of other sizes"):
        Loader([Numbers(3)], Mixture(sources=((4,),), seed=0), Turns(rows=1), prepare=noisy, collate=torch.stack)


def test_shards_are_read_by_workers_without_losing_a_sample(tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / f"{number}.tar", captioned(5, start=5 * number))
    source = ShardExamples(tmp_path)
    made = Loader(
        [source],
        Mixture(sources=(source.sizes,), seed=0, window=6),
        Turns(rows=5),
        prepare=lambda example, random: (example.key, example.captions[0], len(example.media[0])),
        collate=list,
        config=LoaderConfig(workers=2),
    )
    read = [item for loaded in made.batches(0, 15) for item in loaded.batch]
    assert sorted(read) == [(f"{n:04d}", f"picture {n}", len(captioned(1, n)[0][1])) for n in range(15)]
