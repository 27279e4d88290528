"""The terminal conversation behind `python -m multimodal chat`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from multimodal.assistant import Chat, load
from multimodal.modality import Image


def converse(source: str, pictures: Sequence[str]) -> int:
    """Reads turns from standard input until it ends; pictures shown wait for the next question."""
    try:
        chat = load(source).chat()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    shown = [image for path in pictures if (image := _picture(path)) is not None]
    print("Ask away; /image PATH shows a picture, Ctrl-D ends.")
    while (line := _line()) is not None:
        if line.startswith("/image"):
            image = _picture(line.removeprefix("/image").strip())
            shown += [image] if image is not None else []
        elif line:
            _answer(chat, [*shown, line])
            shown = []
    return 0


def _line() -> str | None:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return None


def _picture(path: str) -> Image | None:
    """The picture at `path`, or nothing and a word about why not."""
    image = Image(path)
    try:
        image.open()
    except ValueError as error:
        print(error, file=sys.stderr)
        return None
    return image


def _answer(chat: Chat, prompt: list[str | Image]) -> None:
    try:
        for piece in chat.stream(prompt):
            print(piece, end="", flush=True)
    except ValueError as error:
        print(error, file=sys.stderr)
    print()
