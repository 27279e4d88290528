"""Recordings to features: any speech model, frozen behind one face, on what there is of a recording and no more."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.conformer import load_conformer
from encoders.mel import HOP
from encoders.sound import RATE
from encoders.speech_tower import SpeechTower, transformers_tower


@dataclass(frozen=True, kw_only=True)
class SpeechEncoderConfig:
    """Which speech model listens."""

    name: str = "hf/openai/whisper-tiny.en"
    """hf/<hub id or folder> (Whisper, wav2vec 2, w2v-BERT), or conformer/<folder> (recipes/speech_encoder.py)."""

    weights: str | None = None
    """Folder the weights are read from; none: those the name stands for; random: untrained."""


class SpeechEncoder(nn.Module):
    """Any speech model, frozen and in evaluation mode until one of its parameters is asked to learn."""

    def __init__(self, config: SpeechEncoderConfig, *, tower: SpeechTower | None = None) -> None:
        """`tower`: a speech model that is already made, in place of the one that `config` names."""
        super().__init__()
        self.config = config
        self.tower = (tower or _tower(config)).requires_grad_(False).eval()
        self.width = self.tower.width
        self.milliseconds = self.tower.milliseconds

    @property
    def preprocessing(self) -> str:
        """What is done to a recording ahead of the model: part of a cache's name."""
        return f"{type(self.tower).__name__} {RATE} {HOP} {self.tower.channels} {self.tower.longest}"

    def prepare(self, sound: Float[Tensor, "samples"]) -> Float[Tensor, "N C"]:
        """What the model hears of 16 kHz sound."""
        return self.tower.prepare(sound)

    def frames(self, size: int) -> int:
        """How many features a recording of `size` input frames has."""
        return sum(self.tower.frames(part) for part in self._windows(size))

    def forward(
        self, heard: Float[Tensor, "N C"], sizes: Int[Tensor, "R"]
    ) -> tuple[Float[Tensor, "F E"], Int[Tensor, "R"]]:
        """Features of R recordings, packed as they came: `sizes` says how many rows each has, going in and coming out.

        What is longer than the model can hear at once is heard window by window.
        """
        windows = [self._windows(size) for size in sizes.tolist()]
        parts = heard.split([part for window in windows for part in window])
        frozen = not any(weight.requires_grad for weight in self.tower.parameters())
        with torch.no_grad() if frozen else nullcontext():
            features = self.tower(parts) if parts else []
        if not features:
            return heard.new_zeros(0, self.width), sizes
        counts = torch.tensor([sum(self.tower.frames(part) for part in window) for window in windows])
        assert int(counts.sum()) == sum(len(one) for one in features)
        return torch.cat(features), counts.to(sizes.device)

    def train(self, mode: bool = True) -> SpeechEncoder:
        """Training mode reaches the tower only where it learns."""
        super().train(mode)
        self.tower.train(mode and any(weight.requires_grad for weight in self.tower.parameters()))
        return self

    def _windows(self, size: int) -> list[int]:
        most = int(self.tower.longest * RATE) // HOP or size
        full, rest = divmod(size, most)
        return [most] * full + [rest] * bool(rest)


def _tower(config: SpeechEncoderConfig) -> SpeechTower:
    family, _, name = config.name.partition("/")
    if family == "hf" and name:
        return transformers_tower(name, weights=config.weights)
    if family == "conformer" and name:
        return load_conformer(Path(config.weights or name))
    raise ValueError(f"no speech encoder {config.name!r}; write hf/<id or folder> or conformer/<folder>")
