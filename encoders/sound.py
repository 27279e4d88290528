"""Recordings to samples: any file soundfile reads, any rate, any number of channels, to one channel at one rate."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.functional import resample

RATE = 16_000
"""Samples a second that speech encoders hear."""
LONGEST = 2 * 3600.0
"""Seconds of a recording that are read at most: what a small file may decode to has no other bound."""
_RATES = (1_000, 768_000)
_CHANNELS = 64
_SILENCE = 1e-4
"""Of a recording whose loudest sample is below this nothing can be heard (-80 dB)."""

SoundSource = str | Path | bytes | np.ndarray | Tensor


def read_sound(
    source: SoundSource, sampling_rate: int | None = None, *, rate: int = RATE, longest: float = LONGEST
) -> Float[Tensor, "samples"]:
    """One channel of float32 samples at `rate`: channels averaged, then resampled once.

    A path or encoded bytes (wav, flac, ogg, mp3) bring their own rate; an array [samples] or with channels in either
    order needs `sampling_rate`. ValueError with the reason for what is empty, damaged, not finite, or longer than
    `longest` seconds.
    """
    if isinstance(source, np.ndarray | Tensor):
        if sampling_rate is None:
            raise ValueError("an array of samples needs its sampling_rate; write Audio(array, sampling_rate=16000)")
        samples, name = _from_array(source), "the array"
        _check_length(samples.shape[0], sampling_rate, longest, name)
    else:
        name = f"a recording of {len(source)} bytes" if isinstance(source, bytes) else str(source)
        samples, found = _from_file(source, name, longest)
        if sampling_rate not in (None, found):
            raise ValueError(f"{name} has {found} samples a second, not {sampling_rate}; leave sampling_rate out")
        sampling_rate = found
    if not _RATES[0] <= sampling_rate <= _RATES[1]:
        raise ValueError(f"{name} has {sampling_rate} samples a second; expected {_RATES[0]} to {_RATES[1]}")
    if not len(samples):
        raise ValueError(f"{name} holds no sound (0 samples)")
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{name} holds samples that are not finite numbers")
    mono = samples.mean(1)
    return mono if sampling_rate == rate else resample(mono, sampling_rate, rate)


def is_silent(sound: Float[Tensor, "samples"]) -> bool:
    """Whether nothing can be heard in it."""
    return not len(sound) or float(sound.abs().max()) < _SILENCE


def _from_file(source: str | Path | bytes, name: str, longest: float) -> tuple[Float[Tensor, "samples channels"], int]:
    if isinstance(source, bytes) and not source:
        raise ValueError(f"{name} is empty")
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ValueError(f"{name} is not there")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            _check_length(file.frames, file.samplerate, longest, name)
            _check_channels(file.channels, name)
            # Read to the end, but no further than is allowed, whatever the header says.
            samples = file.read(int(longest * file.samplerate) + 1, dtype="float32", always_2d=True)
            found = file.samplerate
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(
            f"{name} is no recording that can be read ({error}); expected wav, flac, ogg or mp3"
        ) from error
    _check_length(len(samples), found, longest, name)
    return torch.from_numpy(samples), found


def _from_array(source: np.ndarray | Tensor) -> Float[Tensor, "samples channels"]:
    samples = torch.as_tensor(source).detach().cpu()
    turned = samples.ndim == 2 and samples.shape[0] < samples.shape[1] and samples.shape[0] <= _CHANNELS
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim != 2 or min(samples.shape) > _CHANNELS:
        raise ValueError(f"an array of samples is [samples] or has channels as well, got shape {list(samples.shape)}")
    if turned:
        samples = samples.T
    _check_channels(samples.shape[1], "the array")
    if samples.dtype in (torch.int16, torch.int32):
        return samples.float() / -float(torch.iinfo(samples.dtype).min)
    if not samples.is_floating_point():
        raise ValueError(f"samples are float, int16 or int32, got {samples.dtype}")
    return samples.float()


def _check_length(samples: int, rate: int, longest: float, name: str) -> None:
    if rate > 0 and samples > longest * rate:
        raise ValueError(f"{name} lasts {samples / rate:.0f} seconds and is too long (limit {longest:.0f}); cut it up")


def _check_channels(channels: int, name: str) -> None:
    if not 1 <= channels <= _CHANNELS:
        raise ValueError(f"{name} has {channels} channels; expected 1 to {_CHANNELS}")
