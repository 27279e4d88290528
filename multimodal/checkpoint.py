"""A run's folder: what was composed, the adapter's weights, and whose backbone they were trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adapters import ImageAdapter, ImageAdapterConfig, SpeechAdapter, SpeechAdapterConfig
from encoders import ImageEncoder, ImageEncoderConfig, SpeechEncoder, SpeechEncoderConfig
from multimodal.fingerprint import fingerprint
from multimodal.model import MultimodalModel
from multimodal.settings import read, to_json
from multimodal.training.publication import write_safetensors, write_text
from text_backbone import TextBackbone

PARTS = "parts.json"


@dataclass(frozen=True, kw_only=True)
class ImageParts:
    """An image adapter and the encoder whose features it reads."""

    encoder: ImageEncoderConfig
    encoder_fingerprint: str
    adapter: ImageAdapterConfig


@dataclass(frozen=True, kw_only=True)
class SpeechParts:
    """A speech adapter and the encoder whose features it reads."""

    encoder: SpeechEncoderConfig
    encoder_fingerprint: str
    adapter: SpeechAdapterConfig
    prompt: str = "Repeat after me in {language}:"
    """The words ahead of a recording that ask for what is said in it."""
    translation_prompt: str = "Translate the following sentence into {language}:"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run composed: enough to build it again, and to refuse a backbone that is not the one it was trained on."""

    text: str
    """Folder or hub id of the backbone."""
    text_fingerprint: str
    image: ImageParts | None = None
    speech: SpeechParts | None = None
    caption_prompt: str = "Image caption:"
    """The words between picture and caption in training."""
    extra: dict[str, str] = field(default_factory=dict)


def text_fingerprint(text: TextBackbone) -> str:
    """Identity of a backbone's weights, the same for every dtype they may be loaded in: taken over their bf16
    rounding.
    """
    return fingerprint({name: tensor.to(torch.bfloat16) for name, tensor in text.state_dict().items()})


def describe(model: MultimodalModel, *, text: str, caption_prompt: str = "Image caption:") -> Parts:
    """The parts of `model`, whose backbone came from `text`."""
    image, speech = None, None
    if "image" in model.adapters:
        encoder, adapter = model.encoders["image"], model.adapters["image"]
        assert isinstance(encoder, ImageEncoder)
        assert isinstance(adapter, ImageAdapter)
        image = ImageParts(encoder=encoder.config, encoder_fingerprint=fingerprint(encoder), adapter=adapter.config)
    if "speech" in model.adapters:
        ear, voice = model.encoders["speech"], model.adapters["speech"]
        assert isinstance(ear, SpeechEncoder)
        assert isinstance(voice, SpeechAdapter)
        speech = SpeechParts(encoder=ear.config, encoder_fingerprint=fingerprint(ear), adapter=voice.config)
    return Parts(
        text=text,
        text_fingerprint=text_fingerprint(model.text),
        image=image,
        speech=speech,
        caption_prompt=caption_prompt,
    )


def save_parts(folder: Path, parts: Parts) -> None:
    """Writes parts.json into a run's folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PARTS, to_json(parts))


def save_weights(folder: Path, model: MultimodalModel) -> None:
    """Writes one safetensors file a part: every adapter, and every encoder that holds weights of its own or learned
    ones.

    The backbone is never written: it is what it was.
    """
    for name, adapter in model.adapters.items():
        write_safetensors(folder / f"adapters.{name}.safetensors", dict(adapter.state_dict()))
    for name, encoder in model.encoders.items():
        weights = _own_weights(encoder)
        if weights:
            write_safetensors(folder / f"encoders.{name}.safetensors", weights)


def load_weights(folder: Path, model: MultimodalModel, *, only: str = "") -> None:
    """Reads what `save_weights` wrote into a model of the same parts (of the modality `only`, where it is named); names
    or shapes that differ are a ValueError.
    """
    for kind, parts in (("adapters", model.adapters), ("encoders", model.encoders)):
        for name, part in parts.items():
            if only not in ("", name):
                continue
            file = folder / f"{kind}.{name}.safetensors"
            if file.is_file():
                _load(part, file, partial=kind == "encoders")
            elif kind == "adapters":
                raise ValueError(f"{folder} holds no trained {name} adapter ({file.name} is not there)")


def read_parts(folder: Path) -> Parts:
    """What the run in `folder` composed; ValueError where the folder is no run."""
    return read(Parts, folder / PARTS)


def check_backbone(folder: Path, parts: Parts, text: TextBackbone, *, allow_other: bool) -> None:
    """Refuses a backbone that the run in `folder` was not trained on, unless `allow_other`."""
    actual = text_fingerprint(text)
    if actual != parts.text_fingerprint and not allow_other:
        raise ValueError(
            f"{folder} was trained on backbone {parts.text_fingerprint[:8]}, this one is {actual[:8]}; "
            "pass allow_other_backbone=True to compose them all the same"
        )


def check_encoder(folder: Path, parts: ImageParts | SpeechParts, encoder: nn.Module) -> None:
    """Refuses an encoder whose weights are not those that the adapter was trained on."""
    actual = fingerprint(encoder)
    if actual != parts.encoder_fingerprint:
        raise ValueError(
            f"{folder} was trained on {'image' if isinstance(parts, ImageParts) else 'speech'} encoder "
            f"{parts.encoder_fingerprint[:8]} ({parts.encoder.name}), "
            f"this one is {actual[:8]}; point the run's parts.json at the encoder it was trained on"
        )


def _own_weights(encoder: nn.Module) -> Mapping[str, Tensor]:
    """What of an encoder is not in its own checkpoint: weights that learn."""
    learned = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    return {name: tensor for name, tensor in encoder.state_dict().items() if name in learned}


def _load(part: nn.Module, file: Path, *, partial: bool) -> None:
    try:
        with safe_open(file, framework="pt") as weights:
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read, it is damaged or cut short: {error}") from error
    known = part.state_dict()
    wrong = [name for name, tensor in tensors.items() if name not in known or known[name].shape != tensor.shape]
    missing = [] if partial else [name for name in known if name not in tensors]
    if wrong or missing:
        raise ValueError(
            f"{file} does not fit the model: unknown or of another shape {wrong[:3]}, missing {missing[:3]}"
        )
    part.load_state_dict(tensors, strict=False)


def read_settings(folder: Path) -> dict[str, Any]:
    """The recipe's config.json as plain values, for reports."""
    file = folder / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
