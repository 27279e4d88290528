from itertools import pairwise

import pytest

from multimodal.training.schedule import schedule


def rates(steps: int, warm_up: int, floor: float) -> list[float]:
    return [schedule(step, steps=steps, warm_up=warm_up, floor=floor) for step in range(1, steps + 1)]


def test_it_rises_in_equal_parts_to_one() -> None:
    assert rates(100, 4, 0.1)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_it_falls_to_the_floor_in_the_last_step_and_stays_there() -> None:
    assert rates(100, 4, 0.1)[-1] == pytest.approx(0.1)
    assert schedule(1000, steps=100, warm_up=4, floor=0.1) == pytest.approx(0.1)


def test_it_never_rises_after_the_warm_up() -> None:
    after = rates(100, 10, 0.0)[9:]
    assert all(later <= earlier for earlier, later in pairwise(after))


def test_halfway_down_it_is_halfway_to_the_floor() -> None:
    assert schedule(60, steps=110, warm_up=10, floor=0.2) == pytest.approx(0.6)


def test_without_a_warm_up_it_starts_near_one() -> None:
    assert schedule(1, steps=1000, warm_up=0) == pytest.approx(1.0, abs=1e-4)


def test_a_run_that_is_all_warm_up_ends_at_one() -> None:
    assert rates(4, 4, 0.5) == [0.25, 0.5, 0.75, 1.0]


def test_steps_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="got step 0"):
        schedule(0, steps=10, warm_up=0)
