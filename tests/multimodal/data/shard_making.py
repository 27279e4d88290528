"""Shards and pictures for the tests of this folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image


def picture(seed: int = 0, size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    """An encoded picture of random colours, width x height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of these members as any tool would write it, without an index."""
    with tarfile.open(path, "w", format=kind) as file:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            file.addfile(header, io.BytesIO(data))
    return path


def captioned(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    """Members of `count` caption samples."""
    members = []
    for number in range(start, start + count):
        members += [(f"{number:04d}.png", picture(number)), (f"{number:04d}.txt", f"picture {number}".encode())]
    return members
