import numpy as np
import pytest

from multimodal.evaluation.bootstrap import difference, interval
from multimodal.evaluation.measure import mean_of, share_of


def test_an_interval_is_that_of_the_normal_law_for_many_samples():
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    low, high = interval(mean_of(values.tolist()))
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * 2 / 2000**0.5, values.mean() + 1.96 * 2 / 2000**0.5), abs=0.01
    )


def test_a_seed_settles_the_interval():
    measure = mean_of([0.0, 1.0, 1.0, 0.0, 1.0, 0.3])
    assert interval(measure, seed=1) == interval(measure, seed=1)
    assert interval(measure, seed=1, draws=50) != interval(measure, seed=2, draws=50)


def test_samples_that_are_all_alike_have_no_width():
    assert interval(mean_of([0.25] * 8)) == (0.25, 0.25)


def test_a_difference_is_paired():
    hard = np.random.default_rng(1).uniform(0, 0.8, size=40)
    gap = difference(mean_of((hard + 0.1).tolist()), mean_of(hard.tolist()))
    # Unpaired it would be some .14 wide to both sides; sample by sample the gap never varies.
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.1, 0.1, 0.1))
    assert gap.excludes_equality
    assert not difference(mean_of([0.0, 1.0]), mean_of([1.0, 0.0])).excludes_equality


def test_a_share_is_resampled_with_the_samples_that_were_asked():
    measure = share_of([1, 0, 0, 1, 0], [1, 1, 0, 1, 0])
    assert measure.value == pytest.approx(2 / 3)
    assert interval(measure)[1] == 1


def test_no_samples_and_unequal_samples_are_errors():
    with pytest.raises(ValueError, match="no samples"):
        interval(mean_of([]))
    with pytest.raises(ValueError, match="2 here, 1 there"):
        difference(mean_of([1.0, 2.0]), mean_of([1.0]))
