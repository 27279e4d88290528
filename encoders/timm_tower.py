"""Vision models of timm: by name with the hub's weights, or from a folder (timm's `local-dir:` layout)."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from timm.data import resolve_data_config
from torch import Tensor

from encoders.folding import Identity, agrees, folded, has_batch_norm, identity
from encoders.tower import Layer, Tower, check_layers, heads_for, is_meta, on_grid, without_computing


class TimmTower(Tower):
    """Any timm model that has `forward_intermediates`: transformers, convolutional networks and their mixtures."""

    def __init__(self, name: str, *, weights: str | None, layers: Sequence[Layer], pixels: int) -> None:
        """`name` is timm's, or a folder; `weights` is a folder, a .safetensors file, "random", or
        None for the name's own.

        `pixels` 0 keeps the size that the model was trained at.
        """
        super().__init__()
        model = _made(name, weights, pixels)
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(
                f"timm's {name} gives no intermediate features (forward_intermediates); choose another model"
            )
        wants = resolve_data_config(model=model)
        # Before it is run for its shapes: in training mode even that would count a batch in the norms.
        self.model = model.eval()
        self.side = pixels or wants["input_size"][-1]
        self.mean, self.std = tuple(wants["mean"]), tuple(wants["std"])
        self.interpolation = wants["interpolation"]
        check_layers(layers, len(model.feature_info), name)
        self._layers = tuple(layers)
        self._sequence = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
        self._folds = has_batch_norm(model)
        # In a tuple, so that it is no submodule.
        self._folded: tuple[Identity, Any] | None = None
        self.whole = 0
        if self._sequence:
            # Registers are scratch space, not features: of the prefix only the class token is kept.
            self.whole = model.num_prefix_tokens - (getattr(model, "num_reg_tokens", 0) or 0)
        with without_computing(), torch.no_grad():
            device = next(model.parameters()).device
            self.grid, self.widths = self._measured(torch.zeros(1, 3, self.side, self.side, device=device))
        self.heads = heads_for(self.widths[-1])

    def forward(
        self,
        tiles: Float[Tensor, "N 3 S S"],
        pictures: Int[Tensor, "N"],
        places: Float[Tensor, "N M 3"] | None = None,
    ) -> list[Float[Tensor, "N M _"]]:
        frozen = not (self.model.training or torch.is_grad_enabled())
        if self._folds and frozen:
            final, between = self._run(self._fast(), tiles.contiguous(memory_format=torch.channels_last))
        else:
            final, between = self._run(self.model, tiles)
        found = iter(between)
        if not self._sequence:
            return [on_grid(final if layer == "final" else next(found), self.grid) for layer in self._layers]
        return [self._with_whole(final if layer == "final" else next(found)) for layer in self._layers]

    def _run(self, model: Any, tiles: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Final features and those of the numbered layers, in the order asked for; convolutional ones as
        [N, C, h, w].
        """
        numbers = [layer for layer in self._layers if layer != "final"]
        # timm gives the layers in the order of their depth, each once.
        deep = sorted({number - 1 for number in numbers})
        if not numbers:
            final, between = model.forward_features(tiles), []
        elif self._sequence:
            final, pairs = model.forward_intermediates(
                tiles, indices=deep, norm=False, output_fmt="NLC", return_prefix_tokens=True
            )
            between = [torch.cat([prefix, patches], dim=1) for patches, prefix in pairs]
        else:
            final, between = model.forward_intermediates(tiles, indices=deep, norm=False, output_fmt="NCHW")
        if not self._sequence and str(getattr(model, "output_fmt", "")).endswith("NHWC"):
            final = final.permute(0, 3, 1, 2)
        return final, [between[deep.index(number - 1)] for number in numbers]

    def _fast(self) -> Any:
        """The model with its norms folded away, made again when a weight has changed; the model itself where that is
        not the same function. It is no part of the state: weights keep their names and their bits."""
        now = identity(self.model)
        if self._folded is None or self._folded[0] != now:
            fast, weight = folded(self.model), next(self.model.parameters())
            # A fixed pattern: drawing a random tile here would shift the training's random numbers.
            tile = torch.linspace(-40, 40, 3 * self.side**2, device=weight.device).sin().to(weight.dtype)
            tile = tile.view(1, 3, self.side, self.side)
            pairs = zip(self._all(self.model, tile), self._all(fast, tile), strict=True)
            same = all(agrees(one, other) for one, other in pairs)
            self._folded = (now, fast if same else self.model)
        return self._folded[1]

    def _all(self, model: Any, tile: Tensor) -> list[Tensor]:
        final, between = self._run(model, tile)
        return [final, *between]

    def _with_whole(self, x: Float[Tensor, "N L C"]) -> Float[Tensor, "N M C"]:
        prefix = self.model.num_prefix_tokens
        return x if prefix == self.whole else torch.cat([x[:, : self.whole], x[:, prefix:]], dim=1)

    def _measured(self, tile: Tensor) -> tuple[tuple[int, int], tuple[int, ...]]:
        final, between = self._run(self.model, tile)
        found = iter(between)
        channels = -1 if self._sequence else 1
        widths = tuple((final if layer == "final" else next(found)).shape[channels] for layer in self._layers)
        if self._sequence:
            rows, columns = self.model.patch_embed.grid_size
            return (rows, columns), widths
        return (final.shape[-2], final.shape[-1]), widths


def _made(name: str, weights: str | None, pixels: int) -> Any:
    """The timm model without its classifier, with its weights loaded unless it is made on the meta device."""
    load = weights != "random" and not is_meta()
    folder = Path(name).is_dir() and Path(name)
    if not folder and weights is not None and Path(weights).is_dir():
        folder = Path(weights)
        _check_architecture(folder, name)
    options: dict[str, Any] = {"num_classes": 0}
    if folder:
        _check_folder(folder)
        return _created(f"local-dir:{folder}", load, pixels, options)
    if weights in (None, "random"):
        return _created(name, load, pixels, options)
    model = _created(name, False, pixels, options)
    if load:
        _load(model, Path(weights))
    return model


def _created(name: str, pretrained: bool, pixels: int, options: dict[str, Any]) -> Any:
    try:
        model: Any = timm.create_model(name, pretrained=False, **options)
        own = model.pretrained_cfg
        # Transformers have a position for each patch: another size is another model. Convolutions take any.
        if pixels and own.get("fixed_input_size") and pixels != own["input_size"][-1]:
            options = {**options, "img_size": pixels}
            model = timm.create_model(name, pretrained=False, **options)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"timm cannot make {name!r}: {error}; `timm.list_models('*{name[:6]}*')` lists its names"
        ) from error
    if not pretrained:
        return model
    try:
        return timm.create_model(name, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the weights of timm's {name} could not be had: {str(error).splitlines()[0]}; "
            "pass weights= a folder with config.json and model.safetensors, or 'random'"
        ) from error


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json; a timm folder has config.json and model.safetensors")


def _check_architecture(folder: Path, name: str) -> None:
    _check_folder(folder)
    architecture = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architecture")
    if architecture != name.split(".")[0]:
        raise ValueError(f"{folder} holds weights of {architecture!r}, but the encoder is {name!r}")


def _load(model: Any, file: Path) -> None:
    """Reads a .safetensors file; a classifier in it is left out, anything else must fit."""
    if not file.is_file() or file.suffix != ".safetensors":
        raise ValueError(f"weights {str(file)!r} is neither a folder, nor a .safetensors file, nor 'random'")
    classifier = model.pretrained_cfg.get("classifier") or "head"
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    found = {key: value for key, value in load_file(file).items() if not key.startswith(tuple(f"{h}." for h in heads))}
    known = model.state_dict()
    odd = [key for key in found.keys() | known.keys() if key not in found or key not in known]
    odd += [key for key in found.keys() & known.keys() if found[key].shape != known[key].shape]
    if odd:
        raise ValueError(
            f"{file} does not fit {model.pretrained_cfg['architecture']}: "
            f"{sorted(odd)[:4]} are missing, extra or of another shape"
        )
    model.load_state_dict(found)
