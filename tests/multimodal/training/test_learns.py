from types import ModuleType

import pytest
import torch
from torch import nn

from multimodal.training.learns import groups, learning, open_parameters, recompute


def model() -> nn.ModuleDict:
    adapter = nn.ModuleDict({"enter": nn.Linear(3, 3), "norm": nn.LayerNorm(3)})
    return nn.ModuleDict({"text": nn.Linear(3, 3), "adapters": nn.ModuleDict({"image": adapter})})


def test_what_no_pattern_names_is_frozen() -> None:
    net = model()
    open_parameters(net, ((r"adapters\..*", 1.0),))
    assert set(learning(net)) == {name for name, _ in net.named_parameters() if name.startswith("adapters")}


def test_the_first_pattern_that_matches_decides() -> None:
    multipliers = open_parameters(model(), ((r".*\.bias", 5.0), (r"adapters\..*", 1.0)))
    assert multipliers["adapters.image.enter.bias"] == 5.0
    assert multipliers["adapters.image.enter.weight"] == 1.0


def test_a_pattern_has_to_match_the_whole_name() -> None:
    with pytest.raises(ValueError, match="no parameter matches"):
        open_parameters(model(), (("adapters", 1.0),))


def test_a_multiplier_of_zero_is_an_exception_that_stays_frozen() -> None:
    net = model()
    open_parameters(net, ((r".*\.norm\..*", 0.0), (r"adapters\..*", 1.0)))
    assert set(learning(net)) == {"adapters.image.enter.weight", "adapters.image.enter.bias"}


def test_what_learned_before_and_is_not_named_now_is_closed_again() -> None:
    net = model()
    open_parameters(net, ((r".*", 1.0),))
    open_parameters(net, ((r"text\..*", 1.0),))
    assert set(learning(net)) == {"text.weight", "text.bias"}


def test_a_pattern_that_names_nothing_is_an_error_that_tells_the_parts() -> None:
    with pytest.raises(
        ValueError, match=r"no parameter matches \['adaptors\\\\..*'\]; did you mean 'adapters'\?"
    ) as error:
        open_parameters(model(), ((r"adapters\..*", 1.0), (r"adaptors\..*", 1.0)))
    assert "['text', 'adapters']" in str(error.value)


def test_a_pattern_that_earlier_ones_leave_nothing_to_is_an_error() -> None:
    with pytest.raises(ValueError, match="the first match wins"):
        open_parameters(model(), ((r"adapters\..*", 1.0), (r"adapters\.image\..*", 5.0)))


@pytest.mark.parametrize(
    ("learns", "message"),
    [
        ((), "learns is empty"),
        (((r"text\..*", 0.0),), "nothing would learn"),
        (((r"text\..*", -1.0),), "must be 0 or more"),
        (((r"text\..*", float("nan")),), "must be 0 or more"),
        (((r"text(", 1.0),), "not a regular expression"),
    ],
)
def test_learns_that_cannot_be_meant_are_refused(learns: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_parameters(model(), learns)


def test_what_learns_is_float32_and_what_is_frozen_keeps_its_dtype() -> None:
    net = model().to(torch.bfloat16)
    open_parameters(net, ((r"adapters\..*", 1.0),))
    assert {parameter.dtype for parameter in learning(net).values()} == {torch.float32}
    assert net["text"].weight.dtype == torch.bfloat16


def test_weight_decay_is_for_matrices_only() -> None:
    net = model()
    for group in groups(net, open_parameters(net, ((r"adapters\..*", 2.0),)), weight_decay=0.1):
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] == 0.1}
        assert group["multiplier"] == 2.0
        assert len(group["names"]) == len(group["params"])


def test_every_open_parameter_is_in_exactly_one_group() -> None:
    net = model()
    made = groups(net, open_parameters(net, ((r".*\.bias", 5.0), (r"adapters\..*", 1.0))), weight_decay=0.1)
    names = [name for group in made for name in group["names"]]
    assert sorted(names) == sorted(learning(net))


def test_recompute_is_a_switch_on_the_parts_that_have_it(program: ModuleType) -> None:
    net = model()
    net["text"].recompute = False
    assert recompute(net, True) == 1
    assert net["text"].recompute is True
    with pytest.raises(ValueError, match="no part of TinyModel has a `recompute` switch"):
        recompute(program.tiny_model(), True)
