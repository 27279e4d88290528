"""Vision models of Hugging Face transformers: by hub id or from a folder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from encoders.tower import Layer, Tower, check_layers, heads_for, is_meta, on_grid, without_computing

_RESAMPLING = {
    PIL.Image.Resampling.NEAREST: "nearest",
    PIL.Image.Resampling.BILINEAR: "bilinear",
    PIL.Image.Resampling.BICUBIC: "bicubic",
    PIL.Image.Resampling.LANCZOS: "lanczos",
    PIL.Image.Resampling.BOX: "box",
    PIL.Image.Resampling.HAMMING: "hamming",
}


class TransformersTower(Tower):
    """A vision model, or the vision half of a model like CLIP, with one grid of patches (ViT, DINOv2,
    SigLIP, ResNet, ...).
    """

    def __init__(self, name: str, *, weights: str | None, layers: Sequence[Layer], pixels: int) -> None:
        """`name` is a folder or hub id; `weights` another folder to take them from, "random", or None for the name's
        own.
        """
        super().__init__()
        try:
            config = AutoConfig.from_pretrained(name)
            wants, _ = ImageProcessingMixin.get_image_processor_dict(name)
            self.model = _vision_half(_made(name if weights is None else weights, config, name)).eval()
        # transformers says ValueError for a folder that holds no model, OSError for one that is not there.
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} cannot be loaded as a Hugging Face vision model: {str(error).splitlines()[0]}; "
                "pass a folder with config.json, preprocessor_config.json and model.safetensors"
            ) from error
        config = getattr(config, "vision_config", config)
        self.mean, self.std = _three(wants, "image_mean", name), _three(wants, "image_std", name)
        self.interpolation = _RESAMPLING[PIL.Image.Resampling(wants.get("resample", PIL.Image.Resampling.BILINEAR))]
        trained = _side(getattr(config, "image_size", None) or wants.get("crop_size") or wants.get("size"), name)
        self.side = pixels or trained
        self._options: dict[str, Any] = {}
        if self.side != trained and "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters:
            self._options["interpolate_pos_encoding"] = True
        self._layers = tuple(layers)
        self._registers = getattr(config, "num_register_tokens", 0) or 0
        self._patch = getattr(config, "patch_size", None)
        with without_computing(), torch.no_grad():
            device = next(self.model.parameters()).device
            final, states = self._run(torch.zeros(1, 3, self.side, self.side, device=device), everything=True)
            check_layers(layers, len(states) - 1, name)
            self.grid, self._prefix = self._shape(final, name)
            picked = [final if layer == "final" else states[layer] for layer in layers]
        self.whole = max(0, self._prefix - self._registers)
        self.widths = tuple(one.shape[1 if one.ndim == 4 else -1] for one in picked)
        self.heads = heads_for(self.widths[-1])

    def forward(
        self,
        tiles: Float[Tensor, "N 3 S S"],
        pictures: Int[Tensor, "N"],
        places: Float[Tensor, "N M 3"] | None = None,
    ) -> list[Float[Tensor, "N M _"]]:
        final, states = self._run(tiles, everything=any(layer != "final" for layer in self._layers))
        return [self._features(final if layer == "final" else states[layer]) for layer in self._layers]

    def _run(self, tiles: Tensor, *, everything: bool) -> tuple[Tensor, Sequence[Tensor]]:
        """The last features and, where they are wanted, those after 0, 1, ... blocks."""
        out = self.model(pixel_values=tiles, output_hidden_states=everything, **self._options)
        return out.last_hidden_state, (out.hidden_states if everything else ())

    def _features(self, x: Tensor) -> Float[Tensor, "N M C"]:
        if x.ndim == 4:
            return on_grid(x, self.grid)
        if self._prefix == self.whole:
            return x
        return torch.cat([x[:, : self.whole], x[:, self._prefix :]], dim=1)

    def _shape(self, final: Tensor, name: str) -> tuple[tuple[int, int], int]:
        """Rows and columns of patches, and how many tokens stand before them."""
        if final.ndim == 4:
            return (final.shape[-2], final.shape[-1]), 0
        patch = self._patch[0] if isinstance(self._patch, Sequence) else self._patch
        across = self.side // patch if patch else 0
        prefix = final.shape[1] - across * across
        if not across or not 0 <= prefix <= 1 + self._registers:
            raise ValueError(
                f"{name} gives {final.shape[1]} features for a tile of {self.side} pixels and patches of {patch}: "
                "no grid of patches with a class token at most; choose another model, for example one of timm's"
            )
        return (across, across), prefix


def _made(source: str, config: Any, name: str) -> Any:
    if source == "random" or is_meta():
        return AutoModel.from_config(config)
    if source != name and not Path(source).is_dir():
        raise ValueError(f"weights {source!r} is neither a folder with the weights of {name} nor 'random'")
    return AutoModel.from_pretrained(source, config=config, dtype=torch.float32)


def _vision_half(model: Any) -> Any:
    return getattr(model, "vision_model", model)


def _three(wants: dict[str, Any], key: str, name: str) -> tuple[float, float, float]:
    if len(wants.get(key) or ()) != 3:
        raise ValueError(f"{name}: the image processor's config says no {key} of three numbers")
    red, green, blue = wants[key]
    return red, green, blue


def _side(size: Any, name: str) -> int:
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, list | tuple):
        size = size[0]
    if not isinstance(size, int):
        raise ValueError(
            f"{name}: neither the model's config nor the image processor's says the size of a picture; pass pixels="
        )
    return size
