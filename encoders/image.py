"""Pictures to features: a frozen vision model, features of several depths, gated layers over all tiles of a picture."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.global_layers import GlobalLayers
from encoders.pixels import Preprocess
from encoders.tower import Layer, Tower


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """Which vision model looks at pictures, and what of it the text may see."""

    name: str = "timm/tf_efficientnet_lite0"
    """timm/<model or folder>, hf/<hub id or folder>, or llama-vision (the ViT-H/14 of the paper)."""

    weights: str | None = None
    """Folder or file the weights are read from; none: those the name stands for; random: untrained."""

    layers: tuple[Layer, ...] = ("final",)
    """Features of which depths, side by side: the number of blocks (of a convolutional network: stages) run, or
    final.
    """

    pixels: int = 0
    """Side of a tile; 0 takes the model's own."""

    tiles: int = 1
    """Most tiles a picture is cut into; a picture that needs one costs one."""

    fit: Literal["auto", "tile", "squash"] = "auto"
    """tile keeps the aspect ratio, squash makes one square of the picture; auto: squash where a picture has one
    tile.
    """

    global_layers: int = 0
    """Gated self-attention layers over all tiles of a picture, on the final features; they change nothing until
    trained.
    """

    pooled: bool = False
    """Adds the mean of each tile's patches and their root mean square as two more features."""

    def __post_init__(self) -> None:
        if self.global_layers and "final" not in self.layers:
            raise ValueError(f"global_layers work on the final features, but layers is {self.layers}; add 'final'")


class ImageEncoder(nn.Module):
    """Any vision model, frozen and in evaluation mode until one of its parameters is asked to learn.

    A tile gives `per_tile` features of `width` numbers: `whole` of all of it (the model's class token where it has one;
    mean and root mean square of the patches where `pooled` is set), then the patches row by row.
    """

    def __init__(self, config: ImageEncoderConfig, *, tower: Tower | None = None) -> None:
        """`tower`: a vision model that is already made, in place of the one that `config` names."""
        super().__init__()
        self.config = config
        self.tower = (tower or _tower(config)).requires_grad_(False).eval()
        self.global_layers: GlobalLayers | None = None
        if config.global_layers:
            width = self.tower.widths[config.layers.index("final")]
            heads = self.tower.heads if width % self.tower.heads == 0 else 1
            self.global_layers = GlobalLayers(config.global_layers, width, heads=heads, hidden=4 * width)
        self.width = sum(self.tower.widths)
        rows, columns = self.tower.grid
        self.whole = self.tower.whole + 2 * config.pooled
        self.per_tile = self.whole + rows * columns
        fit = config.fit if config.fit != "auto" else ("tile" if config.tiles > 1 else "squash")
        self.preprocess = Preprocess(
            size=self.tower.side,
            mean=self.tower.mean,
            std=self.tower.std,
            interpolation=self.tower.interpolation,
            tiles=config.tiles,
            fit=fit,
        )

    def forward(
        self,
        tiles: Float[Tensor, "N 3 S S"],
        pictures: Int[Tensor, "N"],
        places: Float[Tensor, "P 3"] | None = None,
    ) -> Float[Tensor, "N M0 E"]:
        """Features of N tiles; pictures[n] is the picture that tile n is of, whose tiles stand in the order of its
        grid.

        `places` (of all tiles, as `places` gives them for each picture) tells a tower with tile embeddings how the
        tiles lie; without it every picture has one tile. Only real tiles are ever given.
        """
        frozen = not any(weight.requires_grad for weight in self.tower.parameters())
        where = None if places is None else self._without_pooled(places.unflatten(0, (len(tiles), -1)))
        with torch.no_grad() if frozen else nullcontext():
            features = self.tower(tiles, pictures, where)
        if self.global_layers is not None:
            final = self.config.layers.index("final")
            features[final] = self.global_layers(features[final], pictures)
        joined = self.tower.join(features)
        if not self.config.pooled:
            return joined
        whole, patches = joined[:, : self.tower.whole], joined[:, self.tower.whole :]
        mean, power = patches.mean(1, keepdim=True), patches.square().mean(1, keepdim=True)
        return torch.cat([whole, mean, power.sqrt(), patches], dim=1)

    def places(self, grid: tuple[int, int]) -> Float[Tensor, "M 3"]:
        """Where the features of a picture of rows x columns tiles lie: (y, x, kind), M = rows * columns * per_tile.

        y and x are centres in [0, 1] of the whole canvas; kind is 0 for a patch and 1 for a feature of a whole tile.
        """
        rows, columns = grid
        high, wide = self.tower.grid
        y, x = (torch.arange(high) + 0.5) / high, (torch.arange(wide) + 0.5) / wide
        patches = torch.stack([y[:, None].expand(high, wide), x.expand(high, wide), torch.zeros(high, wide)], dim=-1)
        whole = torch.tensor([0.5, 0.5, 1.0]).expand(self.whole, 3)
        tile = torch.cat([whole, patches.flatten(0, 1)])
        corners = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        corners = torch.cat([corners, torch.zeros(len(corners), 1)], dim=1)
        return ((corners[:, None] + tile) / torch.tensor([rows, columns, 1.0])).flatten(0, 1)

    def train(self, mode: bool = True) -> ImageEncoder:
        """Training mode reaches the tower only where it learns: a frozen one keeps its statistics and drops nothing."""
        super().train(mode)
        self.tower.train(mode and any(weight.requires_grad for weight in self.tower.parameters()))
        return self

    def _without_pooled(self, places: Float[Tensor, "N M0 3"]) -> Float[Tensor, "N M 3"]:
        return torch.cat([places[:, : self.tower.whole], places[:, self.whole :]], dim=1)


def _tower(config: ImageEncoderConfig) -> Tower:
    """The vision model that `config` names."""
    family, _, name = config.name.partition("/")
    # Imported here: each pulls in a library that the others do not need.
    if family == "timm" and name:
        from encoders.timm_tower import TimmTower

        return TimmTower(name, weights=config.weights, layers=config.layers, pixels=config.pixels)
    if family == "hf" and name:
        from encoders.transformers_tower import TransformersTower

        return TransformersTower(name, weights=config.weights, layers=config.layers, pixels=config.pixels)
    if config.name == "llama-vision":
        from encoders.llama_vision import LlamaVisionConfig, LlamaVisionTower

        shape = LlamaVisionConfig(layers=config.layers, pixels=config.pixels or LlamaVisionConfig.pixels)
        if config.tiles > shape.tiles:
            raise ValueError(
                f"tiles ({config.tiles}) must be at most {shape.tiles}, which llama-vision has embeddings for"
            )
        return LlamaVisionTower(shape, weights=config.weights)
    raise ValueError(
        f"no image encoder {config.name!r}; write timm/<model or folder>, hf/<id or folder>, or llama-vision"
    )
