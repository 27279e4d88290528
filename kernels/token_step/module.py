"""Where the steps may stand in for calling a model's layers one by one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kernels.compiler import why_not
from kernels.token_step.cpu import DTYPES, SOURCE
from kernels.token_step.reference import Norm

MOST_ROWS = 8
"""Beyond it the matrix products of PyTorch, which use a weight for many rows at once, are the faster ones."""


def few_rows(x: Tensor) -> bool:
    """Whether x [..., D] is what the steps are for: a few rows on a CPU, without gradients."""
    return (
        x.device.type == "cpu"
        and 0 < x.numel() <= MOST_ROWS * x.shape[-1]
        and x.dtype in DTYPES
        # By the mode, not by what needs a gradient: so the choice is the same for every model in the same place.
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and _ready()
    )


def plain_weights(layers: Sequence[nn.Module], dtype: torch.dtype) -> list[Tensor] | None:
    """The weights of linear layers where there is nothing to them but a matrix product in `dtype`; else None."""
    weights = []
    for layer in layers:
        # Another class (packed, adapted), a bias or a hook means something that the steps do not do.
        if type(layer) is not nn.Linear or layer._parameters["bias"] is not None or hooked(layer):
            return None
        weight = layer._parameters["weight"]
        # A sharded or quantised weight is a class of its own.
        if type(weight) is not nn.Parameter or weight.dtype != dtype or not weight.is_contiguous():
            return None
        weights.append(weight)
    return weights


def norm_of(norm: nn.Module) -> Norm:
    """What the steps want to know of an RMS norm of ours or PyTorch's."""
    return norm.weight, norm.eps  # pyright: ignore[reportReturnType]


def hooked(*modules: nn.Module) -> bool:
    """Whether somebody wants to know when one of the modules is called."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


@functools.cache
def _ready() -> bool:
    reason = why_not(SOURCE)
    if reason is not None:
        warnings.warn(f"token by token, the CPU works at a third of its speed: {reason}", stacklevel=4)
    return reason is None
