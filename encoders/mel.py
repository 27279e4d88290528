"""Samples to log-mel frames, one every 10 ms from windows of 25 ms."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from encoders.sound import RATE

HOP = 160
"""Samples between two frames: 10 ms."""
_WINDOW = 400
_FLOOR = 1e-10


def mel_frames(samples: int) -> int:
    """Frames of so many samples: the last one may hang over the end."""
    return -(-samples // HOP)


def mel_power(sound: Float[Tensor, "samples"], bands: int) -> Float[Tensor, "frames bands"]:
    """Power in each of `bands` mel bands (Slaney's) of 16 kHz sound.

    Behind its end a recording is silent: cut to its length or followed by seconds of silence, it has the same frames.
    """
    if not len(sound):
        raise ValueError("the recording holds no sound (0 samples)")
    frames = mel_frames(len(sound))
    # Reflected at its beginning (Whisper's way), which asks for more samples than half a window.
    padded = F.pad(sound.float(), (0, max(frames * HOP, _WINDOW) - len(sound) + _WINDOW))
    window = torch.hann_window(_WINDOW, device=sound.device)
    spectrum = torch.stft(padded, _WINDOW, HOP, window=window, center=True, return_complex=True)
    power = spectrum[:, :frames].abs().square()  # 201 frames
    return power.T @ _filters(bands).to(sound.device)


def whisper_mel(sound: Float[Tensor, "samples"], bands: int = 80) -> Float[Tensor, "frames bands"]:
    """Whisper's input: log10, at most 8 below the loudest, moved to about [-1, 1]."""
    logs = mel_power(sound, bands).clamp(min=_FLOOR).log10()
    return (torch.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0


def log_mel(sound: Float[Tensor, "samples"], bands: int = 80) -> Float[Tensor, "frames bands"]:
    """Natural logarithms, as they are: each recording's frames depend on nothing outside their window."""
    return mel_power(sound, bands).clamp(min=1e-6).log()


@functools.lru_cache(maxsize=4)
def _filters(bands: int) -> Float[Tensor, "201 bands"]:
    with torch.inference_mode(False):
        return melscale_fbanks(_WINDOW // 2 + 1, 0.0, RATE / 2, bands, RATE, norm="slaney", mel_scale="slaney")
