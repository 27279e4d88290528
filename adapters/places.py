"""Where a feature lies in its picture, as numbers that attention can compare."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FourierPlaces(nn.Module):
    """(y, x, kind) to the adapter's width: sines and cosines of both axes at doubling frequencies, and the kind,
    mixed linearly.
    """

    # More octaves are finer than grids of some ten patches.
    def __init__(self, width: int, *, frequencies: int = 3) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mix = nn.Linear(4 * frequencies + 1, width, bias=False)
        # Louder than a linear layer's own start: beside features of unit size places would be hard to hear.
        nn.init.normal_(self.mix.weight, std=2 * (4 * frequencies + 1) ** -0.5 * 3**-0.5)

    def forward(self, places: Float[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        octaves = math.pi * 2.0 ** torch.arange(self.frequencies, device=places.device)
        angles = (places[:, :2, None] * octaves).flatten(1)  # N 2*frequencies
        waves = torch.cat([angles.sin(), angles.cos(), places[:, 2:]], dim=-1)
        return self.mix(waves.to(self.mix.weight.dtype))
