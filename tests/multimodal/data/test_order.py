from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal.data.order import Mixture, Order, Place, Turns

sizes = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(sum).map(tuple)
seeds = st.integers(0, 2**63)


@settings(max_examples=100, deadline=None)
@given(sizes=sizes, seed=seeds, window=st.integers(1, 200), epoch=st.integers(0, 3))
def test_every_epoch_has_every_sample_once(sizes: tuple[int, ...], seed: int, window: int, epoch: int) -> None:
    order = Order(sizes=sizes, seed=seed, window=window)
    total = len(order)
    places = [order.at(epoch * total + position) for position in range(total)]
    assert {place[0] for place in places} == {epoch}
    assert sorted(place[1] for place in places) == list(range(total))


@settings(max_examples=50, deadline=None)
@given(sizes=sizes, seed=seeds, window=st.integers(1, 200), positions=st.lists(st.integers(0, 500)))
def test_a_position_does_not_depend_on_what_was_asked_before(
    sizes: tuple[int, ...], seed: int, window: int, positions: list[int]
) -> None:
    order = Order(sizes=sizes, seed=seed, window=window)
    first = {position: order.at(position) for position in positions}
    assert first == {position: order.at(position) for position in reversed(positions)}


def test_the_order_is_the_same_in_every_version() -> None:
    """A stopped run must continue in the same order on another machine and after an update."""
    assert [Order(sizes=(10,), seed=3).at(i)[1] for i in range(10)] == [0, 8, 4, 2, 9, 3, 5, 7, 1, 6]
    assert [Order(sizes=(3, 4, 3), seed=3, window=4).at(i)[1] for i in range(10)] == [5, 3, 4, 6, 2, 1, 0, 7, 9, 8]
    mixture = Mixture(sources=((5,), (7,)), weights=(1.0, 2.0), seed=3)
    assert [tuple(mixture.at(i)) for i in range(6)] == [
        (1, 0, 3),
        (0, 0, 1),
        (0, 0, 4),
        (1, 0, 4),
        (0, 0, 0),
        (1, 0, 5),
    ]


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        order = Order(sizes=(100,), seed=seed)
        return [order.at(number * 100 + i)[1] for i in range(100)]

    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)
    assert epoch(0, 0) != list(range(100))


def test_an_unshuffled_order_is_the_files_own() -> None:
    order = Order(sizes=(3, 2), seed=0, shuffled=False)
    assert [order.at(i) for i in range(7)] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1)]


def test_a_window_keeps_few_shards_open() -> None:
    """Ten shards of 100 in windows of 200: any 200 positions of a window touch at most three shards."""
    order = Order(sizes=(100,) * 10, seed=1, window=200)
    for window in range(5):
        assert len({order.at(window * 200 + i)[1] // 100 for i in range(200)}) <= 3


def test_shuffling_leaves_no_trace_of_the_old_neighbours() -> None:
    order = Order(sizes=(1000,), seed=5)
    row = [order.at(i)[1] for i in range(1000)]
    assert sum(abs(a - b) == 1 for a, b in pairwise(row)) < 12


@settings(max_examples=4, deadline=None)
@given(
    sources=st.lists(sizes, min_size=1, max_size=4).map(tuple),
    seed=seeds,
    data=st.data(),
)
def test_a_weighted_mixture_gives_each_source_its_share_and_its_own_epochs(
    sources: tuple[tuple[int, ...], ...], seed: int, data: st.DataObject
) -> None:
    weights = tuple(data.draw(st.floats(0.01, 10)) for _ in sources)
    mixture = Mixture(sources=sources, weights=weights, seed=seed)
    places = [mixture.at(position) for position in range(4096)]
    for number, own in enumerate(sources):
        fed = [place for place in places if place.source == number]
        assert abs(len(fed) / 4096 - weights[number] / sum(weights)) <= (len(sources) + 1) / 4096
        counts = Counter((place.epoch, place.index) for place in fed)
        assert max(counts.values()) == 1
        assert {place.epoch for place in fed} == set(range(-(-len(fed) // sum(own))))
        assert len({place.index for place in fed if place.epoch == 0}) == min(len(fed), sum(own))


def test_a_weighted_source_goes_on_where_the_block_before_left_it() -> None:
    mixture = Mixture(sources=((5000,), (9000,)), weights=(1.0, 3.0), seed=0)
    seen = Counter(mixture.at(position) for position in range(3 * 4096))
    assert max(seen.values()) == 1


@given(sources=st.lists(sizes, min_size=1, max_size=4).map(tuple), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_sources_without_weights_are_one_big_source(sources: tuple[tuple[int, ...], ...], seed: int) -> None:
    mixture = Mixture(sources=sources, seed=seed)
    total = sum(map(sum, sources))
    everything = {Place(s, 0, i) for s, own in enumerate(sources) for i in range(sum(own))}
    assert {mixture.at(position) for position in range(total)} == everything


@given(ranks=st.integers(1, 4), micro=st.integers(1, 4), size=st.integers(1, 5), steps=st.integers(1, 5))
def test_ranks_and_micro_batches_share_out_the_same_steps(ranks: int, micro: int, size: int, steps: int) -> None:
    rows = ranks * micro * size
    for step in range(steps):
        read = []
        for rank in range(ranks):
            turns = Turns(rows=rows, rank=rank, ranks=ranks, micro=micro)
            own = list(turns.batches(step * rows, (step + 1) * rows))
            assert [len(batch) for batch in own] == [size] * micro
            read += [position for batch in own for position in batch]
        assert read == list(range(step * rows, (step + 1) * rows))


def test_one_rank_with_more_micro_batches_reads_what_two_ranks_read() -> None:
    one = list(Turns(rows=8, micro=4).batches(8, 24))
    two = [list(Turns(rows=8, micro=2, rank=rank, ranks=2).batches(8, 24)) for rank in range(2)]
    assert one == two[0][:2] + two[1][:2] + two[0][2:] + two[1][2:]


def test_wrong_settings_say_what_to_change() -> None:
    with pytest.raises(
        ValueError, match=r"global batch \(10 rows\) must be a multiple of ranks times micro-batches \(2 x 2\)"
    ):
        Turns(rows=10, ranks=2, micro=2)
    with pytest.raises(ValueError, match="does not stand between two steps of 8 rows"):
        next(Turns(rows=8).batches(12))
    with pytest.raises(ValueError, match="at least one sample"):
        Order(sizes=(0, 0), seed=0)
    with pytest.raises(ValueError, match="1 weights for 2 sources"):
        Mixture(sources=((1,), (1,)), seed=0, weights=(1.0,))
    with pytest.raises(ValueError, match="leave a source out"):
        Mixture(sources=((1,), (1,)), seed=0, weights=(1.0, 0.0))
    with pytest.raises(ValueError, match="counted from 0"):
        Order(sizes=(1,), seed=0).at(-1)


def test_a_sample_has_its_own_chance_at_every_position() -> None:
    mixture = Mixture(sources=((3,),), seed=0)
    assert len({mixture.sample_seed(position) for position in range(300)}) == 300
    assert mixture.sample_seed(7) == Mixture(sources=((3,),), seed=0).sample_seed(7)
    assert mixture.sample_seed(7) != Mixture(sources=((3,),), seed=1).sample_seed(7)
