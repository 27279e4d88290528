import pytest
import torch
from torch import nn

from multimodal.training.frozen import check_frozen, frozen_digests, frozen_fingerprint
from multimodal.training.learns import open_parameters


def model() -> nn.ModuleDict:
    net = nn.ModuleDict({"text": nn.Linear(3, 3), "encoder": nn.BatchNorm1d(3), "adapters": nn.Linear(3, 3)})
    open_parameters(net, ((r"adapters\..*", 1.0),))
    return net


def test_what_learns_may_change() -> None:
    net = model()
    before, name = frozen_digests(net), frozen_fingerprint(net)
    net["adapters"].weight.data.add_(1)
    check_frozen(net, before)
    assert frozen_fingerprint(net) == name


def test_one_changed_bit_of_a_frozen_weight_is_an_error_that_names_it() -> None:
    net = model()
    before = frozen_digests(net)
    net["text"].weight.data.view(torch.int32)[2, 1] ^= 1
    with pytest.raises(RuntimeError, match=r"'text\.weight' was frozen and has changed.*1 of 7"):
        check_frozen(net, before)


def test_running_statistics_count_as_frozen() -> None:
    net = model()
    before = frozen_digests(net)
    net["encoder"](torch.randn(4, 3))
    with pytest.raises(RuntimeError, match=r"'encoder\.num_batches_tracked' was frozen"):
        check_frozen(net, before)


def test_a_tensor_that_was_opened_meanwhile_is_an_error() -> None:
    net = model()
    before = frozen_digests(net)
    net["text"].weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"other tensors are frozen.*'text\.weight'"):
        check_frozen(net, before)
