import pickle
from itertools import pairwise

import pytest

from multimodal.data.buckets import Buckets
from multimodal.data.order import Mixture

SIZES = ((7, 6), (11,))
LENGTHS = [list(range(13)), [100 - i for i in range(11)]]


def mixture(**changes) -> Mixture:
    return Mixture(sources=SIZES, seed=3, **changes)


def test_a_window_holds_what_the_mixture_holds() -> None:
    plain, sorted_ = mixture(), Buckets(mixture(), LENGTHS, rows=4, batches=3)
    for window in range(4):
        places = range(window * 12, window * 12 + 12)
        assert sorted(plain.at(p) for p in places) == sorted(sorted_.at(p) for p in places)


def test_what_stands_in_a_batch_is_about_equally_long() -> None:
    buckets = Buckets(mixture(), LENGTHS, rows=4, batches=3)
    for window in range(4):
        batches = [
            sorted(LENGTHS[place.source][place.index] for place in map(buckets.at, range(start, start + 4)))
            for start in range(window * 12, window * 12 + 12, 4)
        ]
        batches.sort()
        assert all(one[-1] <= other[0] for one, other in pairwise(batches))


def test_short_and_long_batches_come_in_no_order() -> None:
    buckets = Buckets(mixture(), LENGTHS, rows=2, batches=8)
    firsts = [LENGTHS[p.source][p.index] for p in (buckets.at(i) for i in range(0, 64, 2))]
    assert firsts != sorted(firsts)


def test_the_order_is_a_function_of_the_position_alone() -> None:
    buckets = Buckets(mixture(), LENGTHS, rows=4, batches=3)
    forward = [(buckets.at(p), buckets.sample_seed(p)) for p in range(48)]
    again = pickle.loads(pickle.dumps(buckets))
    assert [(again.at(p), again.sample_seed(p)) for p in reversed(range(48))] == forward[::-1]


def test_lengths_must_be_of_the_mixtures_samples() -> None:
    with pytest.raises(ValueError, match=r"lengths are of \[13\] samples, the mixture's sources have"):
        Buckets(mixture(), LENGTHS[:1], rows=4)
    with pytest.raises(ValueError, match=r"rows \(0\)"):
        Buckets(mixture(), LENGTHS, rows=0)
