"""Parts put together: adapters and their encoders on a text backbone, fitted to each other's widths."""

from __future__ import annotations

from dataclasses import replace

import torch

from adapters import ImageAdapter, ImageAdapterConfig, SpeechAdapter, SpeechAdapterConfig
from encoders import ImageEncoder, ImageEncoderConfig, SpeechEncoder, SpeechEncoderConfig
from multimodal.model import MultimodalModel
from text_backbone import TextBackbone, Tokenizer


def with_image(text: TextBackbone, encoder: ImageEncoderConfig, adapter: ImageAdapterConfig) -> MultimodalModel:
    """`text` with an image encoder and a fresh image adapter; an adapter's widths of 0 are taken from text and encoder.

    ValueError where the adapter's widths are given and are not those of the parts, or where it stands before a block
    that the text model does not have.
    """
    eye = ImageEncoder(encoder)
    fitted = fit(adapter, text, eye.width, whole=eye.whole)
    return MultimodalModel(text, {"image": eye}, {"image": ImageAdapter(fitted)})


def fit(adapter: ImageAdapterConfig, text: TextBackbone, features: int, *, whole: int = 0) -> ImageAdapterConfig:
    """The adapter's config with every 0 filled in from the text model (its widths and heads) and the encoder."""
    has = text.config
    filled = replace(
        adapter,
        width=adapter.width or has.width,
        features=adapter.features or features,
        whole=adapter.whole or whole,
        heads=adapter.heads or has.heads,
        kv_heads=adapter.kv_heads or has.kv_heads,
        head_width=adapter.head_width or has.head_width,
        feed_forward=adapter.feed_forward or has.feed_forward,
    )
    if filled.width != has.width or filled.features != features:
        raise ValueError(
            f"the adapter is {filled.width} wide for features of {filled.features}, "
            f"but the text model is {has.width} wide and the encoder's features have {features}; use 0 to take theirs"
        )
    if outside := [block for block in filled.at if not 0 <= block < has.layers]:
        raise ValueError(f"the adapter stands before blocks {outside}; the text model has blocks 0 .. {has.layers - 1}")
    return filled


def with_speech(text: TextBackbone, encoder: SpeechEncoderConfig, adapter: SpeechAdapterConfig) -> MultimodalModel:
    """`text` with a speech encoder and a fresh speech adapter; an adapter's widths of 0 are taken from text and
    encoder.

    ValueError where the adapter's widths are given and are not those of the parts.
    """
    ear = SpeechEncoder(encoder)
    width = text.config.width
    fitted = replace(adapter, text=adapter.text or width, features=adapter.features or ear.width)
    if (fitted.text, fitted.features) != (width, ear.width):
        raise ValueError(
            f"the adapter takes features of {fitted.features} to {fitted.text}, but the encoder's features have "
            f"{ear.width} and the text model is {width} wide; use 0 to take theirs"
        )
    return MultimodalModel(text, {"speech": ear}, {"speech": SpeechAdapter(fitted)})


@torch.no_grad()
def start_delimiters(model: MultimodalModel, tokenizer: Tokenizer, word: str = "\n") -> None:
    """Lets the recording's delimiters begin as the embedding of a word that text models know."""
    rows = model.text.embed(torch.tensor([tokenizer.encode(word)], device=model.text.model.embed_tokens.weight.device))
    adapter = model.adapters["speech"]
    assert isinstance(adapter, SpeechAdapter)
    adapter.delimiters.copy_(rows[0].mean(0).to(adapter.delimiters).expand(2, -1))


@torch.no_grad()
def start_placeholder(model: MultimodalModel, tokenizer: Tokenizer, word: str = " picture") -> None:
    """Lets the picture's placeholder begin as the embedding of a word that text models know."""
    rows = model.text.embed(torch.tensor([tokenizer.encode(word)], device=model.text.model.embed_tokens.weight.device))
    adapter = model.adapters["image"]
    assert isinstance(adapter, ImageAdapter)
    adapter.placeholder.copy_(rows[0].mean(0).to(adapter.placeholder))
