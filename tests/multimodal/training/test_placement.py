from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from multimodal.training import TrainingConfig, check_processes, prepare
from multimodal.training.placement import CPU_LAUNCH

CONFIG = TrainingConfig(learns=((r"adapters\.image\..*", 1.0),), steps=9, warm_up=0)


def test_a_launcher_with_more_processes_than_accelerate_sees_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    check_processes(accelerator)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="started 2 processes, but accelerate sees 1") as error:
        check_processes(accelerator)
    assert CPU_LAUNCH in str(error.value)
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2" in CPU_LAUNCH


def test_accumulation_in_accelerate_is_refused_for_it_would_divide_twice(program: ModuleType) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps is 4 in accelerate.*`accumulate`"):
        prepare(accelerator, program.tiny_model(), CONFIG)


def test_the_optimizer_holds_what_learns_and_nothing_else(program: ModuleType) -> None:
    model, optimizer = prepare(Accelerator(cpu=True), program.tiny_model(), CONFIG)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1, 0.0}


def test_preparing_changes_no_weight_and_wraps_nothing(program: ModuleType) -> None:
    plain = program.tiny_model()
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    model, _ = prepare(Accelerator(cpu=True, mixed_precision="bf16"), plain, CONFIG)
    assert model is plain
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert type(model).forward is type(plain).forward
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warm_up": 10}, r"warm_up \(10\) must lie between 0 and steps \(9\)"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"clip": 0.0}, "clip must be greater than 0, got 0.0"),
        ({"floor": 1.5}, "between 0 and 1, got 1.5"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"steps": 9, "warm_up": 0, **changes})
