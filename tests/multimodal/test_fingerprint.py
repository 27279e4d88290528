import subprocess
import sys

import pytest
import torch
from torch import nn

from multimodal.fingerprint import digests, fingerprint

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2, dtype=torch.bfloat16), "s": torch.tensor(3)}


def test_the_order_of_the_names_does_not_matter() -> None:
    assert fingerprint(STATE) == fingerprint(dict(reversed(STATE.items())))


@pytest.mark.parametrize(
    "change",
    [
        {"b": STATE["b"].clone().index_fill_(0, torch.tensor([1]), 0.5)},
        {"b": STATE["b"].reshape(3, 2)},
        {"b": STATE["b"].to(torch.int32).view(torch.float32)},
        {"a": STATE["a"].view(torch.int16)},
        {"c": torch.zeros(0)},
    ],
)
def test_a_value_a_shape_a_dtype_or_a_name_changes_it(change: dict) -> None:
    assert fingerprint({**STATE, **change}) != fingerprint(STATE)


def test_one_flipped_bit_changes_it() -> None:
    model = nn.Linear(40, 40)
    before = fingerprint(model)
    model.weight.data.view(torch.int32)[17, 3] ^= 1
    assert fingerprint(model) != before
    model.weight.data.view(torch.int32)[17, 3] ^= 1
    assert fingerprint(model) == before


def test_it_looks_at_values_and_not_at_how_they_lie_in_memory() -> None:
    square = torch.randn(5, 7)
    assert fingerprint({"x": square}) == fingerprint({"x": square.T.contiguous().T})
    assert fingerprint({"x": square[:, 1:3]}) == fingerprint({"x": square[:, 1:3].clone()})


def test_a_module_counts_with_its_parameters_and_persistent_buffers() -> None:
    norm = nn.BatchNorm1d(3)
    before = fingerprint(norm)
    assert before == fingerprint(norm.state_dict())
    norm(torch.randn(4, 3))
    assert fingerprint(norm) != before


def test_the_digests_name_each_tensor() -> None:
    changed = digests({**STATE, "b": STATE["b"] + 1})
    assert [name for name, digest in digests(STATE).items() if changed[name] != digest] == ["b"]


def test_another_process_gives_the_same_fingerprint() -> None:
    code = (
        "import torch; from multimodal.fingerprint import fingerprint;"
        "a, b, s = torch.ones(2, dtype=torch.bfloat16), torch.arange(6.).reshape(2, 3), torch.tensor(3);"
        "print(fingerprint({'a': a, 'b': b, 's': s}))"
    )
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONHASHSEED": "7"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert said.stdout.strip() == fingerprint(STATE)


def test_a_model_without_weights_is_refused_by_name() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'bias' is on the meta device"):
        fingerprint(model)
