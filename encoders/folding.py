"""Frozen convolutional networks made faster: batch norms folded into the convolutions before them, channels last."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Identity = tuple[tuple[int, int], ...]


def identity(model: nn.Module) -> Identity:
    """Changes whenever a weight or statistic of `model` is replaced or written to."""
    return tuple((tensor.data_ptr(), tensor._version) for tensor in (*model.parameters(), *model.buffers()))


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def folded(model: nn.Module) -> Any:
    """A copy of `model` for inference, whose norms that stand right behind a convolution are part of it.

    The norm's place keeps its activation (timm's norms hold one). That a norm is applied where it stands is a guess
    that the caller has to check by running both.
    """
    fast = copy.deepcopy(model).eval()
    _fold(fast)
    return fast.to(memory_format=torch.channels_last)


def agrees(one: Tensor, other: Tensor) -> bool:
    """Whether features are the same up to the rounding of a folded norm (1e-3 of their range; measured: 5e-6)."""
    tolerance = 1e-3 if one.itemsize == 4 else 5e-2
    return bool((one - other).abs().max() <= tolerance * one.abs().max())


def _fold(parent: nn.Module) -> None:
    name, before = "", None
    for name_here, child in list(parent.named_children()):
        if isinstance(before, nn.Conv2d) and isinstance(child, nn.BatchNorm2d) and child.running_mean is not None:
            setattr(parent, name, fuse_conv_bn_eval(before, child))
            rest = (getattr(child, part, nn.Identity()) for part in ("drop", "act"))
            setattr(parent, name_here, nn.Sequential(*rest))
            before = None
            continue
        _fold(child)
        name, before = name_here, child
