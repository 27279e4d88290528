"""Flight of the Amazon Queen: every spoken line of the game with its text, from the container its Debian package holds.

The container `queen.1c` begins with a table of files. Dialogues (`*.DOG`) and cut scenes (`*.CUT`) hold their text in
the clear; a line's clip is a file of the same container, named after the record that the line stands in. All numbers
are big-endian. Written from the layout alone; the speakers of dialogues are told by the names of their files.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CONTAINER = Path("usr/share/scummvm/flight-of-the-amazon-queen/queen.1c")
SOURCE, LICENCE = "amazon-queen", "Flight-of-the-Amazon-Queen-License"
_MAGIC = b"QTBL"
_MP3 = 1
_HEAD = struct.Struct(">4s6s2xBH")
_ENTRY = struct.Struct(">12sBII")
_RECORD = 20
"""Bytes of every dialogue and cut scene that come before its numbers."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One clip: what is said in it and by whom."""

    key: str
    text: str
    speaker: str
    """A role, as the dialogue's file calls it; "cut scene" where the game does not say."""
    sound: bytes
    """MP3, as the game has it."""


def queen_lines(package: Path) -> Iterator[Line]:
    """The clips of the unpacked package that have a text, dialogues first, each once; ValueError for another file.

    Effects and remarks without a text are left out, and lines whose clip is not there.
    """
    path = package / CONTAINER
    if not path.is_file():
        raise ValueError(f"{package} holds no {CONTAINER}; delete it, and the next call fetches it again")
    data = path.read_bytes()
    files = _table(data, path)
    given: set[str] = set()
    for name, text, speaker in [*_all_dialogues(files), *_all_scenes(files)]:
        clip = f"{name}.SB"
        if clip in files and clip not in given and re.search("[A-Za-z]", text):
            given.add(clip)
            yield Line(key=name.lower(), text=text, speaker=speaker, sound=files[clip])


def _table(data: bytes, path: Path) -> dict[str, bytes]:
    """The container's files by name."""
    if len(data) < _HEAD.size or data[:4] != _MAGIC:
        raise ValueError(f"{path} does not begin with {_MAGIC!r}; it is no talkie edition of the game")
    _, _, compression, count = _HEAD.unpack_from(data)
    if compression != _MP3:
        raise ValueError(f"{path} is of compression {compression}; only MP3 ({_MP3}) is read")
    files = {}
    for number in range(count):
        name, _, offset, size = _ENTRY.unpack_from(data, _HEAD.size + number * _ENTRY.size)
        if offset + size > len(data):
            raise ValueError(f"{path} is cut short: file {number} of {count} ends behind its end")
        files[name.rstrip(b"\0").decode("latin-1")] = data[offset : offset + size]
    return files


def _all_dialogues(files: Mapping[str, bytes]) -> Iterator[tuple[str, str, str]]:
    for file in sorted(name for name in files if name.endswith(".DOG")):
        try:
            yield from _dialogue(files[file][_RECORD:], re.sub(r"\d*\.DOG$", "", file).lower())
        except (IndexError, struct.error) as error:
            raise ValueError(f"the dialogue {file} has another layout than expected ({error})") from error


def _dialogue(data: bytes, other: str) -> Iterator[tuple[str, str, str]]:
    """(name of the clip, text, speaker) of the lines of Joe and of the one he talks to."""
    levels, key, joe_lines, other_lines = (_signed(data, at) for at in (0, 4, 6, 8))
    others_at, ending_at = _unsigned(data, 22), _unsigned(data, 26)
    joe_at = 32 + 96 * abs(levels)
    for start, count, letter, speaker in ((others_at, other_lines, "P", other), (joe_at, joe_lines, "J", "joe")):
        at = start
        for _ in range(count):
            number = _unsigned(data, at + 2)
            text, at = _text(data, at + 4, align=4)
            yield from _segments(f"{key:2d}{number:4x}{letter}", text, speaker)
    if not _unsigned(data, joe_at + 2):
        text, _ = _text(data, joe_at + 4, align=2)
        yield from _segments(f"{key:2d}SSSSJ", text, "joe")
    text, at = _text(data, ending_at, align=2)
    yield from _segments(f"{key:2d}XXXXP", text, other)
    text, _ = _text(data, at, align=2)
    yield from _segments(f"{key:2d}XXXXJ", text, "joe")


def _all_scenes(files: Mapping[str, bytes]) -> Iterator[tuple[str, str, str]]:
    for file in sorted(name for name in files if name.endswith(".CUT")):
        data = files[file][_RECORD:]
        try:
            # The first text is the scene's own name for itself.
            _, at = _text(data, _unsigned(data, 8), align=2)
            for number in range(abs(_signed(data, 2))):
                text, at = _text(data, at, align=2)
                yield from _segments(f"{file[:-4].ljust(5, '_')}{number + 1:02d}", text, "cut scene")
        except (IndexError, struct.error) as error:
            raise ValueError(f"the cut scene {file} has another layout than expected ({error})") from error


def _segments(prefix: str, text: str, speaker: str) -> Iterator[tuple[str, str, str]]:
    """A text falls into segments, each with a clip: a star and two letters (XY: and eleven more) stand between two."""
    parts = re.split(r"\*(?:XY.{11}|.{2})", text, flags=re.DOTALL)
    for number, part in enumerate(parts, start=1):
        yield f"{prefix}{number:x}".replace(" ", "0").upper(), " ".join(part.split()), speaker


def _text(data: bytes, at: int, *, align: int) -> tuple[str, int]:
    """A text behind its length, and where what follows it begins."""
    length, at = data[at], at + 1
    text = data[at : at + length].decode("cp437")
    return text, (at + length + align - 1) & -align if length else at


def _signed(data: bytes, at: int) -> int:
    return struct.unpack_from(">h", data, at)[0]


def _unsigned(data: bytes, at: int) -> int:
    return struct.unpack_from(">H", data, at)[0]
