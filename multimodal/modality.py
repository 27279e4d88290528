"""What a prompt may hold besides text: one class a modality, and the ids that stand for them among the tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float
from torch import Tensor

from encoders.pixels import read_image
from encoders.sound import LONGEST, SoundSource, read_sound

PLACEHOLDERS = {"image": 0, "video": 1, "speech": 2}
"""A medium stands in the tokens as id vocabulary + offset: Llama 3.2's `<|image|>` (128256, vocabulary 128256) is the
same rule.
"""

ImageSource = str | Path | bytes | PIL.Image.Image | np.ndarray


@dataclass(frozen=True, eq=False)
class Image:
    """A picture in a prompt: a path, encoded bytes, a PIL image or an array [height, width(, channels)] of uint8.

    It is opened when it is needed; a picture that cannot be read raises ValueError with the reason.
    """

    source: ImageSource

    def open(self) -> PIL.Image.Image:
        """The picture in RGB: rotation applied, transparency laid on white, of any source mode
        (encoders.pixels.read_image).
        """
        return read_image(self.source)

    def key(self) -> str:
        """The picture's identity for caches: mode, size and pixels, so that no two pictures share one (bytes alone
        may).
        """
        opened = self.open()
        digest = hashlib.sha256(f"{opened.mode} {opened.size}".encode())
        digest.update(opened.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Audio:
    """A recording in a prompt: a path, encoded bytes (wav, flac, ogg, mp3), or an array of samples with its rate.

    It is opened when it is needed; a recording that cannot be read raises ValueError with the reason.
    """

    source: SoundSource
    sampling_rate: int | None = None
    """Samples a second; of an array only, files bring their own."""

    def open(self, *, longest: float = LONGEST) -> Float[Tensor, "samples"]:
        """One channel at 16 kHz, at most `longest` seconds of it (encoders.sound.read_sound)."""
        return read_sound(self.source, self.sampling_rate, longest=longest)

    def key(self) -> str:
        """The recording's identity for caches: what is heard of it."""
        return hashlib.sha256(b"sound " + self.open().numpy().tobytes()).hexdigest()


Part = str | Image | Audio


def as_part(part: Any) -> Part:
    """One part of a prompt: text or a medium; anything else is a ValueError that says what to write instead."""
    if isinstance(part, Part):
        return part
    raise ValueError(
        f"a prompt holds str, Image and Audio parts, not {type(part).__name__}; write Image(...) around a picture, "
        "Audio(...) around a recording"
    )
