"""Real text as bytes: rows to learn from, and a last part that is held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ByteText:
    """Bytes of a text; the last tenth is held out."""

    ORIGIN: ClassVar[str] = "the Python language reference"

    learn: UInt8[Tensor, "N"]
    held: UInt8[Tensor, "M"]

    @classmethod
    def read(cls, file: Path | None = None) -> ByteText:
        """The text of a file; without one the language reference that Python itself carries for `help()` (0.7 MB of
        English prose and code, PSF licence). ValueError for less than 20,000 bytes.
        """
        if file is None:
            from pydoc_data.topics import topics

            data = "\n".join(topics[name] for name in sorted(topics)).encode()
        else:
            data = file.read_bytes()
        if len(data) < 20_000:
            raise ValueError(f"{file} holds {len(data)} bytes; at least 20000 are needed to learn and to test")
        whole = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        cut = len(whole) * 9 // 10
        return cls(whole[:cut], whole[cut:])

    def draw(self, rows: int, length: int, dice: torch.Generator, *, held: bool = False) -> Int[Tensor, "R T"]:
        """Rows of `length` bytes from anywhere in the part that is learned, or in the one that is held out."""
        part = self.held if held else self.learn
        at = torch.randint(len(part) - length + 1, (rows, 1), generator=dice)
        return part[at + torch.arange(length)].long()
