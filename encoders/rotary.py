"""Rotary positions of a recording's features, counted from its beginning."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Turns = tuple[Tensor, Tensor]
"""Cosines and sines, each [K, half a head]."""


def turns(length: int, head: int, device: torch.device, dtype: torch.dtype, *, theta: float = 10_000.0) -> Turns:
    """The angles of places 0 .. length - 1 for heads of `head` numbers; computed in float32."""
    frequencies = theta ** (-torch.arange(0, head, 2, device=device, dtype=torch.float32) / head)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(x: Float[Tensor, "R H K k"], by: Turns) -> Float[Tensor, "R H K k"]:
    """Queries or keys turned to their places; pairs are (i, i + k/2)."""
    cosine, sine = by
    one, other = x.chunk(2, dim=-1)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], dim=-1)
