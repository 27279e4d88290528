"""The vision tower of Llama 3 and Llama 3.2 Vision: a ViT-H/14 whose tiles know where they lie and see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.global_layers import VisionBlock, by_picture
from encoders.tower import Layer, Tower, check_layers, is_meta


@dataclass(frozen=True, kw_only=True)
class LlamaVisionConfig:
    """The tower's shape; what stands here is the paper's (section 7.1) and the release's ViT-H/14."""

    width: int = 1280
    blocks: int = 32
    heads: int = 16
    hidden: int = 5120
    patch: int = 14
    pixels: int = 560
    """Side of a tile: 336 in the paper's first stage, 448 and 560 in the release."""

    tiles: int = 4
    layers: tuple[Layer, ...] = (3, 7, 15, 23, 30, "final")
    """Numbers of blocks run. The paper's text says 4, 8, 16, 24 and 31; the released model takes the inputs of blocks
    3, 7, 15, 23 and 30 counted from zero, which is what this default says."""

    def __post_init__(self) -> None:
        if self.pixels % self.patch:
            raise ValueError(f"pixels ({self.pixels}) must be a multiple of patch ({self.patch})")

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The canvases a picture may lie on, in the release's order: number i has the id i + 1, 0 is no picture."""
        sides = range(1, self.tiles + 1)
        return tuple((rows, columns) for rows in sides for columns in sides if rows * columns <= self.tiles)


class LlamaVisionTower(Tower):
    """The blocks up to the gated global layers, which stand above in ImageEncoder as above every tower.

    Tiles of one picture are one sequence from the first block on. Only real tiles are computed, and so no feature
    looks at padding. The released weights were trained looking at (zero) padding tiles and at rows that fill each
    tile to a multiple of eight: exact parity with them needs those rows in `_sequences`, which is where they would be
    added.
    """

    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    interpolation = "bilinear"
    recompute: bool = False
    """Whether blocks are computed again in the backward pass instead of being kept (gradient checkpointing)."""

    def __init__(self, config: LlamaVisionConfig, *, weights: str | None) -> None:
        """`weights`: a .safetensors file of this class's names, a folder with model.safetensors, or "random"."""
        super().__init__()
        check_layers(config.layers, config.blocks, "llama-vision")
        self.config = config
        self.side = config.pixels
        self.grid = (config.pixels // config.patch, config.pixels // config.patch)
        self.whole = 1
        self.widths = (config.width,) * len(config.layers)
        self.heads = config.heads
        D, M, spread = config.width, 1 + self.grid[0] * self.grid[1], config.width**-0.5
        canvases = len(config.grids) + 1
        self.patches = nn.Conv2d(3, D, config.patch, stride=config.patch, bias=False)
        self.class_token = nn.Parameter(spread * torch.randn(D))
        self.positions = nn.Parameter(spread * torch.randn(M, D))
        # Behind gates of zero the tables must not be zero too, or neither would ever have a gradient.
        self.tile_positions = nn.Parameter(spread * torch.randn(canvases, config.tiles, M, D))
        self.positions_gate = nn.Parameter(torch.zeros(1))
        self.tiles_before = nn.Parameter(spread * torch.randn(canvases, config.tiles, D))
        self.tiles_before_gate = nn.Parameter(torch.zeros(1))
        self.tiles_after = nn.Parameter(spread * torch.randn(canvases, config.tiles, D))
        self.tiles_after_gate = nn.Parameter(torch.zeros(1))
        self.norm_before = nn.LayerNorm(D)
        self.blocks = nn.ModuleList(
            VisionBlock(D, config.heads, config.hidden, gated=False) for _ in range(config.blocks)
        )
        self.norm_after = nn.LayerNorm(D)
        if not is_meta():
            self._load(weights)

    def forward(
        self,
        tiles: Float[Tensor, "N 3 S S"],
        pictures: Int[Tensor, "N"],
        places: Float[Tensor, "N M 3"] | None = None,
    ) -> list[Float[Tensor, "N M _"]]:
        canvas, index = self._lie(pictures, places)
        x = self.patches(tiles.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)  # N M-1 D
        x = x + self.tiles_before_gate.tanh() * self.tiles_before[canvas, index][:, None]
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        gate = self.positions_gate.tanh()
        x = self.norm_before(x + (1 - gate) * self.positions + gate * self.tile_positions[canvas, index])
        states = self._sequences(x, pictures)
        after = (self.tiles_after_gate.tanh() * self.tiles_after[canvas, index])[:, None]
        return [
            self.norm_after(states[self.config.blocks]) + after if layer == "final" else states[layer]
            for layer in self.config.layers
        ]

    def join(self, features: Sequence[Float[Tensor, "N M D"]]) -> Float[Tensor, "N M E"]:
        """The final features, then the others interleaved, the layer running fastest: column D + d * layers + l."""
        layers = self.config.layers
        final = [one for one, layer in zip(features, layers, strict=True) if layer == "final"]
        between = [one for one, layer in zip(features, layers, strict=True) if layer != "final"]
        return torch.cat([*final, *([torch.stack(between, dim=-1).flatten(-2)] if between else [])], dim=-1)

    def _sequences(self, x: Float[Tensor, "N M D"], pictures: Int[Tensor, "N"]) -> dict[int, Float[Tensor, "N M D"]]:
        """The residual stream after each number of blocks that is wanted, all tiles of a picture in one sequence."""
        wanted = {layer for layer in self.config.layers if layer != "final"} | {self.config.blocks}
        groups = by_picture(pictures)
        parts: dict[int, list[Tensor]] = {number: [] for number in wanted}
        for group in groups:
            one = x[group].flatten(1, 2)  # G n*M D
            for number, block in enumerate(self.blocks, start=1):
                if self.recompute and torch.is_grad_enabled():
                    one = checkpoint(block, one, use_reentrant=False)
                else:
                    one = block(one)
                if number in wanted:
                    parts[number].append(one.reshape(-1, *x.shape[1:]))
        back = torch.cat([group.flatten() for group in groups]).argsort()
        return {number: torch.cat(found)[back] for number, found in parts.items()}

    def _lie(
        self, pictures: Int[Tensor, "N"], places: Float[Tensor, "N M 3"] | None
    ) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
        """Of each tile the id of its picture's canvas, and its number on it, row by row; read from the class tokens'
        places.
        """
        _, owner, counts = torch.unique(pictures, return_inverse=True, return_counts=True)
        if places is None:
            if int(counts.max()) > 1:
                raise ValueError("a picture has several tiles: llama-vision needs their places (ImageEncoder.places)")
            return torch.ones_like(pictures), torch.zeros_like(pictures)
        centre = places[:, 0, :2]  # N 2
        # The first tile's centre is half a tile from the canvas's corner.
        first = torch.full((len(counts), 2), 2.0, device=centre.device)
        first = first.scatter_reduce(0, owner[:, None].expand(-1, 2), centre, "amin")
        shape = (0.5 / first).round().long()[owner]  # N 2
        cell = (centre * shape).long()
        ids = torch.zeros(self.config.tiles + 1, self.config.tiles + 1, dtype=torch.long, device=centre.device)
        for number, (rows, columns) in enumerate(self.config.grids, start=1):
            ids[rows, columns] = number
        if int(shape.max()) > self.config.tiles or not bool((shape.prod(1) == counts[owner]).all()):
            raise ValueError(
                f"canvases of {shape.tolist()} tiles do not agree with the tiles given for each picture, "
                f"or have more than {self.config.tiles}; give all tiles of a picture and its places"
            )
        return ids[shape[:, 0], shape[:, 1]], cell[:, 0] * shape[:, 1] + cell[:, 1]

    def _load(self, weights: str | None) -> None:
        if weights == "random":
            return
        if weights is None:
            raise ValueError("llama-vision names no weights; pass weights= a .safetensors file or folder, or 'random'")
        file = Path(weights) / "model.safetensors" if Path(weights).is_dir() else Path(weights)
        if not file.is_file():
            raise ValueError(f"{file} is not there; llama-vision's weights are a .safetensors file of its own names")
        try:
            self.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise ValueError(f"{file} does not fit llama-vision: {' '.join(str(error).split())[:300]}") from error
