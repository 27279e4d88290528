"""A composition that hears, small enough for a test: the tiny text model, a tiny Whisper, a tiny adapter."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from adapters import SpeechAdapterConfig
from encoders import SpeechEncoderConfig
from multimodal.composition import with_speech
from multimodal.data.shards import write_shard
from multimodal.model import MultimodalModel
from tests.encoders import speech_making
from tests.multimodal import tiny

ADAPTER = SpeechAdapterConfig(stack=2, width=32, heads=2, feed_forward=48)
RATE = 16_000


def composed(folder: Path, *, seed: int = 0) -> MultimodalModel:
    if not (folder / "config.json").is_file():
        speech_making.whisper(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = with_speech(tiny.text_model(seed), SpeechEncoderConfig(name=f"hf/{folder}"), ADAPTER)
        # Loud enough that recordings change what is said.
        model.adapters["speech"].out.weight.data.mul_(4)  # type: ignore[union-attr]
    return model.eval()


def noise(seed: int, seconds: float = 0.4) -> np.ndarray:
    """A recording of noise through which tones go: no two sound alike to the encoder."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * random.uniform(100, 4000) * time + random.uniform(0, 6)) for _ in range(3))
    return (0.05 * tones + 0.02 * random.standard_normal(len(time))).astype(np.float32)


def wav(seed: int, seconds: float = 0.4) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, noise(seed, seconds), RATE, format="WAV")
    return stream.getvalue()


def shard(folder: Path, texts: Sequence[str], **about) -> Path:
    """A shard of recordings of different lengths with these transcripts."""
    samples = [
        {"__key__": f"r{i}", "wav": wav(i, 0.3 + 0.05 * (i % 5)), "json": json.dumps({"text": text, **about})}
        for i, text in enumerate(texts)
    ]
    path = folder / "shard-00000.tar"
    write_shard(path, samples)
    return path
