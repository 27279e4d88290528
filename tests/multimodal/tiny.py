"""A text model, an encoder and an adapter small enough for a test, and tokenizers of single characters."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import PIL.Image
import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from adapters import ImageAdapter, ImageAdapterConfig
from encoders import ImageEncoderConfig
from multimodal.batch import Batch, Item, Picture, collate
from multimodal.composition import with_image
from multimodal.modality import Image
from multimodal.model import MultimodalModel
from multimodal.prompt import PromptReader
from text_backbone import LlamaConfig, Slot, TextBackbone, save_backbone
from text_backbone.tokenizer import Tokenizer


class Letters(Tokenizer):
    """One token a character; `<s>` begins, `<e>` ends a turn, `<u>` and `<a>` open a turn of user and assistant."""

    controls: ClassVar[dict[str, int]] = {"<s>": 0, "<e>": 1, "<u>": 2, "<a>": 3}
    begin, stops, pad = 0, (1,), 1
    _first = 4
    size = 100

    def encode(self, text: str) -> list[int]:
        return [self._first + (ord(char) - 32) % (self.size - self._first) for char in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(32 + token - self._first) for token in ids if self._first <= token < self.size)

    def dialog(self, messages, *, reply: bool = True) -> list[int | Slot]:
        ids: list[int | Slot] = [0]
        for message in messages:
            ids.append(3 if message["role"] == "assistant" else 2)
            content = message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                ids.extend(self.encode(part["text"]) if part["type"] == "text" else [Slot(part["type"])])
            ids.append(1)
        return [*ids, 3] if reply else ids


TEXT = LlamaConfig(
    vocabulary=100,
    width=32,
    layers=4,
    heads=4,
    kv_heads=2,
    head_width=8,
    feed_forward=48,
    context=160,
    begin=0,
    stops=(1,),
    pad=1,
)
ADAPTER = ImageAdapterConfig(at=(1, 3), feed_forward=32, gate=1.0, positions="fourier", mixer=16)
_SIDE = 96
_TEMPLATE = (
    "{% for message in messages %}{{ '<u>' if message['role'] == 'user' else '<a>' if message['role'] == 'assistant' "
    "else '<s>' }}{{ message['content'] }}{{ '<e>' }}{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def eye(folder: Path, *, seed: int = 0, tiles: int = 1) -> ImageEncoderConfig:
    """A convolutional network of timm's with random weights in a folder of its own; 3 x 3 patches and their mean."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model("test_efficientnet", pretrained=False)
    own = {"input_size": [3, _SIDE, _SIDE], "classifier": "classifier", "num_classes": 1000}
    (folder / "config.json").write_text(json.dumps({"architecture": "test_efficientnet", "pretrained_cfg": own}))
    save_file(model.state_dict(), folder / "model.safetensors")
    return ImageEncoderConfig(name=f"timm/{folder}", layers=(3, "final"), pooled=True, tiles=tiles)


def text_model(seed: int = 0) -> TextBackbone:
    """Random weights, loud enough that no two tokens are almost equally likely."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = TextBackbone(TEXT)
        for name, weight in text.named_parameters():
            if weight.ndim == 2:
                weight.data.normal_(0, 1.0 if "embed" in name else 3.0 * weight.shape[1] ** -0.5)
    return text.requires_grad_(False).eval()


def composed(folder: Path, *, seed: int = 0, tiles: int = 1, **adapter) -> MultimodalModel:
    """The text model with an encoder from `folder` (made where it is not there) and an adapter with open gates."""
    encoder = eye(folder, seed=seed, tiles=tiles)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = with_image(text_model(seed), encoder, replace(ADAPTER, **adapter))
        adapter = model.adapters["image"]
        assert isinstance(adapter, ImageAdapter)
        # Features of an untrained network are small and much alike: loud enough that pictures change what is said.
        adapter.projector.out.weight.data.mul_(64)
        for block in adapter.attentions():
            block.o_proj.weight.data.mul_(4)
    return model.eval()


def text_folder(folder: Path, *, seed: int = 0) -> Path:
    """The text model and a tokenizer of the printable characters, laid out as Hugging Face's."""
    save_backbone(text_model(seed), folder)
    # The same ids as `Letters`, newline for the last of its characters.
    names = {"<s>": 0, "<e>": 1, "<u>": 2, "<a>": 3}
    alphabet = [*map(chr, range(32, 127)), "\n"]
    byte = {char: pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(char)[0][0] for char in alphabet}
    vocabulary = {byte[char]: len(names) + i for i, char in enumerate(alphabet)}
    rust = RustTokenizer(models.BPE(vocab=vocabulary | names, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(list(names))
    rust.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<s>", eos_token="<e>", pad_token="<e>")
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)
    return folder


def photo(seed: int = 0, size: tuple[int, int] = (20, 16)) -> PIL.Image.Image:
    """A picture of random blocks, width x height: no two look alike to the encoder."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return PIL.Image.fromarray(blocks).resize(size, PIL.Image.Resampling.NEAREST)


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    photo(seed).save(stream, "PNG")
    return stream.getvalue()


def reader() -> PromptReader:
    return PromptReader(tokenizer=Letters(), vocabulary=TEXT.vocabulary)


def features_of(model: MultimodalModel, seed: int, *, tiles: int = 1) -> Picture:
    """A picture of `tiles` tiles beside each other with random features."""
    encoder = model.encoders["image"]
    places = encoder.places((1, tiles))  # type: ignore[operator]
    random = torch.Generator().manual_seed(seed)
    return Picture(places=places, features=torch.randn(len(places), encoder.width, generator=random))  # type: ignore[arg-type]


def item(model: MultimodalModel, *parts: str | int | tuple[int, int], answer: str | None = None) -> Item:
    """A row of texts and pictures; a number is the seed of a picture's features, a pair has its count of tiles too."""
    prompt = [part if isinstance(part, str) else Image(str(part)) for part in parts]
    wanted = [(part, 1) if isinstance(part, int) else part for part in parts if not isinstance(part, str)]
    pictures = tuple(features_of(model, seed, tiles=tiles) for seed, tiles in wanted)
    return Item(row=reader().raw(prompt, answer=answer), pictures=pictures, key=str(parts))


def mixed(model: MultimodalModel) -> Batch:
    """Rows with one picture, none, two (of different sizes), and none; each with something to learn."""
    rows = [
        item(model, "look ", 1, " what", answer="a cat"),
        item(model, "no picture here", answer="none"),
        item(model, 2, (3, 2), "both", " of ", 4, "them", answer="dog"),
        item(model, "short", answer="x"),
    ]
    return collate(rows, pad=TEXT.pad)
