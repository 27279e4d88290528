"""Messages as marked text: what a user typed stays text, media keep their places, the template's tokens stay tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["image", "video", "audio"]

Message = Mapping[str, Any]
"""{"role": ..., "content": str | list of parts}; a part is {"type": "text", "text": ...} or {"type": "image"|...}."""


@dataclass(frozen=True)
class Slot:
    """Where a medium stands in a prompt."""

    kind: Kind


# Noncharacters: Unicode keeps them out of interchange, so that none is lost by taking them out of a user's text.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MEDIA: dict[str, Kind] = {"\ufdd2": "image", "\ufdd3": "video", "\ufdd4": "audio"}
_MARK = {kind: mark for mark, kind in _MEDIA.items()}
_RESERVED = re.compile(f"[{_OPEN}{_CLOSE}{''.join(_MEDIA)}]")
_SPLIT = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}|([{''.join(_MEDIA)}])|[{_OPEN}{_CLOSE}]")


def controls_pattern(controls: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the control tokens in a text, longer ones first."""
    longest_first = sorted(controls, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def parts(message: Message) -> list[str | Slot]:
    """The content of a message as texts and slots, neighbouring texts joined; ValueError for anything else."""
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise ValueError(f"a message's content must be text or a list of parts, not {type(content).__name__}")
    found: list[str | Slot] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image" or kind == "video" or kind == "audio":
            found.append(Slot(kind))
        elif kind == "text" and isinstance(part.get("text"), str):
            # Joined before anything else looks at it: two harmless halves may make one control token.
            text = _RESERVED.sub("", part["text"])
            if found and isinstance(before := found[-1], str):
                found[-1] = before + text
            else:
                found.append(text)
        else:
            raise ValueError(f"a part must be text, image, video or audio, with its `type` saying which; got {part!r}")
    return found


def role(message: Message) -> str:
    """Who speaks; ValueError if the message does not say so."""
    found = message.get("role")
    if not isinstance(found, str) or not found:
        raise ValueError(f"a message needs a role such as 'user' or 'assistant'; got {found!r}")
    return found


def marked(messages: Sequence[Message], controls: re.Pattern[str], native: frozenset[str]) -> list[dict[str, Any]]:
    """The messages for a chat template, control tokens in them wrapped in marks.

    Media of the `native` kinds are left to the template as parts of their own; other media become marks in the text.
    """

    def safe(value: Any) -> Any:
        if isinstance(value, str):
            return controls.sub(lambda found: f"{_OPEN}{found.group()}{_CLOSE}", _RESERVED.sub("", value))
        if isinstance(value, Mapping):
            return {key: safe(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [safe(inner) for inner in value]
        return value

    turned = []
    for message in messages:
        found = parts(message)
        role(message)
        texts = [_MARK[part.kind] if isinstance(part, Slot) else safe(part) for part in found]
        content: Any = "".join(texts)
        if any(isinstance(part, Slot) and part.kind in native for part in found):
            content = [
                {"type": part.kind}
                if isinstance(part, Slot) and part.kind in native
                else {"type": "text", "text": text}
                for part, text in zip(found, texts, strict=True)
            ]
        turned.append({key: safe(value) for key, value in message.items() if key != "content"} | {"content": content})
    return turned


def tokens(
    rendered: str,
    encode: Callable[[str, bool], list[int]],
    encode_plain: Callable[[str, bool], list[int]],
) -> list[int | Slot]:
    """A rendered chat as tokens and slots.

    `encode(text, first)` reads control tokens, `encode_plain` reads none; `first` says that nothing stands before.
    """
    found: list[int | Slot] = []
    start = 0
    for mark in [*_SPLIT.finditer(rendered), None]:
        text = rendered[start : mark.start() if mark else len(rendered)]
        if text:
            found += encode(text, start == 0)
        if mark is None:
            break
        plain, medium = mark.groups()
        if plain:
            found += encode_plain(plain, mark.start() == 0)
        elif medium:
            found.append(Slot(_MEDIA[medium]))
        start = mark.end()
    return found


def llama3(
    messages: Sequence[Message],
    control: Mapping[str, int],
    encode: Callable[[str], list[int]],
    *,
    reply: bool,
) -> list[int | Slot]:
    """Meta's own chat form of Llama 3, from which its releases' templates follow."""

    def header(name: str) -> list[int | Slot]:
        name = "ipython" if name == "tool" else name
        return [control["<|start_header_id|>"], *encode(name), control["<|end_header_id|>"], *encode("\n\n")]

    found: list[int | Slot] = [control["<|begin_of_text|>"]]
    for message in messages:
        found += header(role(message))
        for part in parts(message):
            found += encode(part) if isinstance(part, str) else [part]
        found.append(control["<|eot_id|>"])
    return found + header("assistant") if reply else found
