"""A container of a few files, laid out as the game's; no byte of it is the game's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from multimodal.data.kit.queen import CONTAINER, queen_lines


def text(words: str, align: int, at: int) -> bytes:
    """A text behind its length, filled up to a multiple of `align`; `at`: where it begins."""
    data = bytes([len(words)]) + words.encode("cp437")
    end = at + len(data)
    return data + b"\0" * ((-end) % align if words else 0)


def dialogue(key: int, others: list[tuple[int, str]], joes: list[tuple[int, str]], opening: str, ending: str) -> bytes:
    """A dialogue of one level: Joe's lines at 32 + 96, the other's behind them, then the ending."""
    body = bytearray(32 + 96)

    def records(lines: list[tuple[int, str]]) -> None:
        for number, words in lines:
            body.extend(struct.pack(">HH", 0, number))
            body.extend(text(words, 4, len(body)))

    if opening:
        # Joe's first record without a number is the opening line; it is no numbered one.
        body.extend(struct.pack(">HH", 0, 0))
        body.extend(text(opening, 2, len(body)))
        assert not joes
    records(joes)
    others_at = len(body)
    records(others)
    ending_at = len(body) + len(body) % 2
    body.extend(b"\0" * (ending_at - len(body)))
    body.extend(text(ending, 2, len(body)))
    body.extend(text("", 2, len(body)))
    struct.pack_into(">5h", body, 0, 1, 0, key, 0, 0)
    struct.pack_into(">h", body, 4, key)
    struct.pack_into(">hh", body, 6, len(joes), len(others))
    struct.pack_into(">HHH", body, 22, others_at, 0, ending_at)
    return b"\0" * 20 + bytes(body)


def scene(lines: list[str]) -> bytes:
    body = bytearray(struct.pack(">hhhhH", 0, len(lines), 0, 0, 10))
    for line in ["its own name", *lines]:
        body.extend(text(line, 2, len(body)))
    return b"\0" * 20 + bytes(body)


def container(files: dict[str, bytes], *, compression: int = 1) -> bytes:
    head = b"QTBL" + b"1.00aa" + b"\0\0" + bytes([compression]) + struct.pack(">H", len(files))
    at = len(head) + 21 * len(files)
    table, data = b"", b""
    for name, content in files.items():
        table += struct.pack(">12sBII", name.encode(), 0, at + len(data), len(content))
        data += content
    return head + table + data


def package(folder: Path, data: bytes) -> Path:
    path = folder / CONTAINER
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return folder


FILES = {
    "BOB1.DOG": dialogue(7, [(3, "Hello*M1there,  you."), (0x2A, "Bye!")], [(5, "Who, me?")], "", "So long."),
    "C10A.CUT": scene(["Look!", "", "A snake*XY01234567890and a fish"]),
    "070003P1.SB": b"one",
    "070003P2.SB": b"two",
    "07002AP1.SB": b"three",
    "070005J1.SB": b"four",
    "07XXXXP1.SB": b"five",
    "C10A_011.SB": b"six",
    "C10A_031.SB": b"seven",
    "C10A_032.SB": b"eight",
    "EFFECT1.SB": b"a bang",
}


def test_every_line_comes_with_its_clip_and_its_speaker(tmp_path: Path) -> None:
    found = {
        line.sound.decode(): (line.text, line.speaker) for line in queen_lines(package(tmp_path, container(FILES)))
    }
    assert found == {
        "one": ("Hello", "bob"),
        "two": ("there, you.", "bob"),
        "three": ("Bye!", "bob"),
        "four": ("Who, me?", "joe"),
        "five": ("So long.", "bob"),
        "six": ("Look!", "cut scene"),
        "seven": ("A snake", "cut scene"),
        "eight": ("and a fish", "cut scene"),
    }


def test_a_line_whose_clip_is_missing_is_left_out(tmp_path: Path) -> None:
    files = {name: data for name, data in FILES.items() if name != "070003P2.SB"}
    assert "there, you." not in [line.text for line in queen_lines(package(tmp_path, container(files)))]


def test_another_file_is_refused_with_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no usr/share"):
        next(queen_lines(tmp_path))
    for data, message in (
        (b"RIFF" + bytes(20), "does not begin with b'QTBL'"),
        (container(FILES, compression=2), "is of compression 2; only MP3"),
        (container(FILES)[:-5], "is cut short"),
    ):
        with pytest.raises(ValueError, match=message):
            next(queen_lines(package(tmp_path, data)))
    broken = FILES | {"BOB1.DOG": FILES["BOB1.DOG"][:60]}
    with pytest.raises(ValueError, match=r"the dialogue BOB1\.DOG has another layout than expected"):
        next(queen_lines(package(tmp_path, container(broken))))
