"""The face that every vision model shows: tiles in, features of several depths out, on one grid of patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

Layer = int | Literal["final"]


class Tower(nn.Module):
    """A vision model; each tile gives `whole` tokens for all of it (a class token), then its patches, row by row."""

    side: int
    """Side of a tile in pixels."""
    grid: tuple[int, int]
    """Rows and columns of patches in a tile."""
    whole: int
    widths: tuple[int, ...]
    """Width of the features of each layer asked for."""
    heads: int
    """Attention heads of blocks that are put on top."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str

    def forward(
        self, tiles: Float[Tensor, "N 3 S S"], pictures: Int[Tensor, "N"], places: Float[Tensor, "N M 3"] | None
    ) -> list[Float[Tensor, "N M _"]]:
        """The features of each layer asked for. `pictures` and `places` are for towers whose tiles know of each
        other.
        """
        raise NotImplementedError

    def join(self, features: Sequence[Float[Tensor, "N M _"]]) -> Float[Tensor, "N M E"]:
        """The layers' features side by side, in the order in which they were asked for."""
        return features[0] if len(features) == 1 else torch.cat(list(features), dim=-1)


def on_grid(x: Float[Tensor, "N C h w"], grid: tuple[int, int]) -> Float[Tensor, "N M C"]:
    """A convolutional stage as patches; a finer stage is averaged down to the grid of the last."""
    if x.shape[-2:] != grid:
        x = F.adaptive_avg_pool2d(x, grid)
    return x.flatten(2).transpose(1, 2)


def check_layers(layers: Sequence[Layer], depth: int, name: str) -> None:
    """ValueError for a layer that a model of `depth` blocks or stages does not have."""
    if not layers:
        raise ValueError("layers is empty; ask for 'final' or for numbers of blocks run")
    for layer in layers:
        if layer != "final" and not 1 <= layer <= depth:
            raise ValueError(
                f"layers ({layer}) must be 'final' or lie between 1 and {depth}, the blocks or stages of {name}"
            )


def heads_for(width: int) -> int:
    """Attention heads for a width: about one for 64 numbers, and a divisor."""
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)


def is_meta() -> bool:
    """Whether modules are being made without storage, under `torch.device("meta")`: then no weights are read either."""
    return torch.empty(0).is_meta


def without_computing() -> FakeTensorMode:
    """Runs a model for its shapes alone."""
    return FakeTensorMode(allow_non_fake_inputs=True)
