"""Buffers that a module notes down while it learns: part of a run's state, and no breach of what was frozen."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from kernels.sparse_relu2.module import ReLU2FeedForward
from multimodal.training import Position, check_frozen, frozen_digests, learning, load_state, save_state


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    open_now = learning(model)
    return torch.optim.SGD([{"params": list(open_now.values()), "names": list(open_now)}], 0.1)


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = optimizer_of(model)
    model(torch.randn(3, 4, 8)).square().mean().backward()
    optimizer.step()
    return optimizer


def test_what_a_learning_module_notes_is_not_frozen() -> None:
    model = nn.Sequential(ReLU2FeedForward(8, 32), nn.Linear(8, 8).requires_grad_(False)).train()
    before = frozen_digests(model)
    assert "1.weight" in before
    trained(model)
    check_frozen(model, before)


def test_what_a_frozen_module_noted_may_not_change() -> None:
    model = nn.Sequential(ReLU2FeedForward(8, 32).requires_grad_(False), nn.Linear(8, 8)).train()
    before = frozen_digests(model)
    trained(model)
    check_frozen(model, before)
    model.get_buffer("0.measured")[0] += 1
    with pytest.raises(RuntimeError, match=r"0\.measured"):
        check_frozen(model, before)


def test_notes_come_back_with_a_runs_state(tmp_path: Path) -> None:
    accelerator, first = Accelerator(cpu=True), nn.Sequential(ReLU2FeedForward(8, 32)).train()
    optimizer = trained(first)
    save_state(accelerator, tmp_path, first, optimizer, Position(step=1))
    second = nn.Sequential(ReLU2FeedForward(8, 32)).train()
    load_state(accelerator, tmp_path, second, optimizer_of(second))
    assert int(second.get_buffer("0.measured")[0]) == 1
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
