"""A shard's record as an example to learn from: its pictures and its captions, or a conversation about them.

A caption sample is `key.png` (or jpg, jpeg, webp, gif, bmp, tiff) with `key.txt`, or with `key.json` holding
{"caption": "..."} or {"captions": ["...", ...]}. A conversation is `key.json` holding {"messages": [...]}, each
{"role": "user", "content": "..."} or with a list of parts as content, {"type": "text", "text": "..."} and
{"type": "image", "image": "0.png"}; the pictures are the members `key.0.png`, `key.1.png`, and image parts that name
none take them in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from encoders.pixels import read_image
from multimodal.data.shards import OnBadShard, Record, Shards
from multimodal.data.tolerance import BadSample
from multimodal.modality import Image

IMAGES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tiff")
SOUNDS = ("wav", "flac", "ogg", "mp3", "mp4")
TEXTS = ("txt",)
TREES = ("json",)
_LONGEST_TEXT = 1 << 20
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One thing to learn: pictures with captions, or a conversation."""

    key: str
    media: tuple[bytes, ...] = ()
    """The encoded pictures; of a conversation, in the order in which its messages show them."""
    captions: tuple[str, ...] = ()
    """What may be said of the pictures; empty for a conversation."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """{"role", "content": [str or Image, ...]}, as multimodal.prompt takes them; empty for captions."""

    def __post_init__(self) -> None:
        assert bool(self.captions) != bool(self.messages)


class ShardExamples:
    """The examples of WebDataset shards, read in any order (see Shards); a sample that is none raises BadSample."""

    def __init__(self, patterns: str | Path | Sequence[str | Path], *, on_bad_shard: OnBadShard = "stop") -> None:
        self.shards = Shards(patterns, on_bad_shard=on_bad_shard)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.shards.sizes

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Example:
        return to_example(self.shards[index])


def to_example(record: Record) -> Example:
    """The example that a record holds; BadSample (no_caption, no_image, json, text, image_count) otherwise."""
    members = decode(record.members)
    pictures = {name: members[name] for name in sorted(members, key=_natural) if _kind(name) in IMAGES}
    tree = members.get("json")
    if isinstance(tree, dict) and "messages" in tree:
        return _conversation(record.key, tree["messages"], pictures)
    captions = _captions(members, record.key)
    if not pictures:
        raise BadSample("no_image", f"{record.key}: members {sorted(members)}")
    if len(pictures) > 1:
        raise BadSample("image_count", f"{record.key}: one caption, but pictures {sorted(pictures)}")
    return Example(key=record.key, media=tuple(pictures.values()), captions=captions)


def decode(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Members by our own table of extensions: texts as str, JSON as values, pictures and sounds as their bytes.

    What the table does not name is left out and never decoded.
    """
    decoded: dict[str, Any] = {}
    for name, data in members.items():
        kind = _kind(name)
        if kind in IMAGES + SOUNDS:
            decoded[name] = data
        elif kind in TEXTS:
            decoded[name] = _text(data, name)
        elif kind in TREES:
            try:
                decoded[name] = json.loads(_text(data, name))
            except (ValueError, RecursionError) as error:
                raise BadSample("json", f"{name}: {error}") from error
    return decoded


def read_picture(data: bytes, key: str = "") -> PIL.Image.Image:
    """The picture in RGB; BadSample with the reason too_large or image_decode otherwise."""
    try:
        return read_image(data)
    except ValueError as error:
        reason = "too_large" if "is too large" in str(error) else "image_decode"
        raise BadSample(reason, f"{key}: {error}" if key else str(error)) from error


def checked_text(value: Any, where: str) -> str:
    """A text that a tokenizer can take, stripped; BadSample("text") for anything else."""
    if not isinstance(value, str):
        raise BadSample("text", f"{where} is {type(value).__name__}, not text")
    if len(value) > _LONGEST_TEXT:
        raise BadSample("text", f"{where} has {len(value)} characters (limit {_LONGEST_TEXT})")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadSample("text", f"{where}: {error}") from error
    return value.strip()


def _captions(members: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found: Any = members.get("txt")
    if found is None:
        tree = members.get("json")
        if "json" in members and not isinstance(tree, dict):
            raise BadSample("json", f"{key}.json holds {type(tree).__name__}, not an object")
        found = (tree or {}).get("captions", (tree or {}).get("caption"))
    if found is None:
        raise BadSample("no_caption", f"{key}: members {sorted(members)}")
    captions = tuple(
        checked_text(one, f"the caption of {key}") for one in (found if isinstance(found, list) else [found])
    )
    captions = tuple(caption for caption in captions if caption)
    if not captions:
        raise BadSample("no_caption", f"the caption of {key} is empty")
    return captions


def _conversation(key: str, messages: Any, pictures: Mapping[str, bytes]) -> Example:
    if not isinstance(messages, list) or not messages:
        raise BadSample("json", f"{key}: messages must be a list of at least one message")
    shown: list[str] = []
    turns = tuple(_message(key, message, pictures, shown) for message in messages)
    if set(shown) != set(pictures):
        raise BadSample("image_count", f"{key}: the messages show {shown}, the sample has {sorted(pictures)}")
    return Example(key=key, media=tuple(pictures[name] for name in shown), messages=turns)


def _message(key: str, message: Any, pictures: Mapping[str, bytes], shown: list[str]) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES or "content" not in message:
        raise BadSample("json", f"{key}: a message needs a role of {_ROLES} and content, got {str(message)[:80]!r}")
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise BadSample("json", f"{key}: content must be text or a list of parts")
    parts: list[str | Image] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            parts.append(checked_text(part.get("text"), f"a text part of {key}"))
        elif kind == "image":
            name = part.get("image", list(pictures)[len(shown)] if len(shown) < len(pictures) else None)
            if not isinstance(name, str) or name not in pictures:
                raise BadSample("image_count", f"{key}: a message shows {name!r}, the sample has {sorted(pictures)}")
            shown.append(name)
            parts.append(Image(pictures[name]))
        else:
            raise BadSample("json", f"{key}: a part is text or image, not {str(part)[:80]!r}")
    return {"role": message["role"], "content": parts}


def _text(data: bytes, name: str) -> str:
    if len(data) > _LONGEST_TEXT:
        raise BadSample("text", f"{name} has {len(data)} bytes (limit {_LONGEST_TEXT})")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample("text", f"{name}: {error}") from error


def _kind(extension: str) -> str:
    return extension.rsplit(".", 1)[-1]


def _natural(name: str) -> tuple:
    """Sorts 2.png before 10.png."""
    return tuple((0, int(word), "") if word.isdigit() else (1, 0, word) for word in re.split(r"(\d+)", name))
