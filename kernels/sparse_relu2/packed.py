"""What the forward of a sparse feed-forward keeps of its activations, and what it counts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """Activations after relu, both ways compressed; metadata in rows. T tokens, F features."""

    kept: Tensor
    """relu(h) of what the forward keeps [T, F / 2]: its square goes on, and itself is what the backward needs."""

    metadata: Tensor
    """uint8 [T, F / 8]."""

    turned: Tensor
    """Squares, of what the forward keeps, that groups along tokens keep [F, T / 2]."""

    turned_metadata: Tensor
    """uint8 [F, T / 8]."""

    counts: Tensor
    """Activations of each feature that are not zero, int32 [F]."""

    counters: Tensor
    """float32 [3]: fraction of zeros, of violating groups, of energy lost."""


def counters(counts: Tensor, violating: Tensor, energy: Tensor, remaining: Tensor, real: int, width: int) -> Tensor:
    """The three fractions in float32; rows beyond `real` are zeros and count for nothing."""
    size = real * width
    zeros = 1 - counts.sum() / size
    lost = ((energy - remaining) / energy.clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=0)
    return torch.stack((zeros.float(), (violating / (size / 4)).float(), lost.float()))
