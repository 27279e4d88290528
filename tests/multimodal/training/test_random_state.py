import random

import numpy as np
import pytest
import torch

from multimodal.training.random_state import random_state, restore_random_state, seed_of


def draw() -> tuple:
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),  # noqa: NPY002
        float(np.random.randn()),  # noqa: NPY002
        torch.randn(3).tolist(),
    )


def test_all_generators_go_on_where_they_were() -> None:
    # One draw of each normal distribution leaves a second one waiting in the generator: it is part of the state.
    draw()
    state = random_state()
    expected = draw(), draw()
    draw()
    restore_random_state(state)
    assert (draw(), draw()) == expected


def test_the_state_has_one_length_so_that_processes_can_gather_theirs() -> None:
    before = random_state()
    draw()
    assert random_state().shape == before.shape
    assert not torch.equal(random_state(), before)


def test_a_state_of_another_kind_of_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="the random state has 3 bytes"):
        restore_random_state(torch.zeros(3, dtype=torch.uint8))


def test_seeds_of_neighbouring_numbers_differ_and_fit_torch() -> None:
    seeds = [seed_of(seed, step, place) for seed in range(3) for step in range(30) for place in range(3)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3)
