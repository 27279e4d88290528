"""Radial units: a feature compared with remembered ones, for names that no linear map of one example each can hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class RadialUnits(nn.Module):
    """exp(sharpness * (cosine - 1)) to each of `count` keys, then a linear map (radial basis functions on the sphere).

    Features are first square-rooted (what vision models give is heavy-tailed), centred and whitened, so that directions
    in which pictures of one thing differ count little. Values start at zero: new units say nothing. Keys, whitening and
    values have a closed form (multimodal.lexical_start).
    """

    def __init__(self, features: int, width: int, count: int, *, sharpness: float = 4.0) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.mean = nn.Parameter(torch.zeros(features))
        self.whitening = nn.Parameter(torch.eye(features))
        self.keys = nn.Parameter(F.normalize(torch.randn(count, features), dim=-1))
        self.values = nn.Parameter(torch.zeros(count, width))

    def forward(self, features: Float[Tensor, "N E"]) -> Float[Tensor, "N D"]:
        return self.responses(self.directions(features)) @ self.values

    def directions(self, features: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
        """Whitened features of unit length."""
        return F.normalize((rooted(features) - self.mean) @ self.whitening, dim=-1)

    def responses(self, directions: Float[Tensor, "N E"]) -> Float[Tensor, "N U"]:
        """How near each direction is to each key, 1 where they agree."""
        return torch.exp(self.sharpness * (directions @ self.keys.T - 1))


def rooted(features: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
    """The signed square root."""
    return features.sign() * features.abs().sqrt()
