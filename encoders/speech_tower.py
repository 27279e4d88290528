"""The face that every speech model shows, and Hugging Face's speech models behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from encoders.mel import whisper_mel
from encoders.sound import RATE

Sounds = Sequence[Float[Tensor, "_ C"]]


class SpeechTower(nn.Module):
    """A speech model: what it hears of a recording (frames of C numbers) to features, `milliseconds` apart."""

    width: int
    milliseconds: float
    """From one feature to the next."""
    longest: float
    """Seconds that it can hear at once; 0 for any."""
    channels: int
    """C."""

    def prepare(self, sound: Float[Tensor, "samples"]) -> Float[Tensor, "N C"]:
        """What the model hears of 16 kHz sound, on the CPU, in loader workers too."""
        raise NotImplementedError

    def frames(self, size: int) -> int:
        """How many features so many input frames give."""
        raise NotImplementedError

    def forward(self, heard: Sounds) -> list[Float[Tensor, "F E"]]:
        """The features of each recording, whatever recordings stand beside it."""
        raise NotImplementedError


class WhisperTower(SpeechTower):
    """Whisper's encoder on what there is of a recording: positions from 0, no silence up to 30 s, no decoder."""

    milliseconds = 20.0
    longest = 30.0

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width, self.channels = model.config.d_model, model.config.num_mel_bins

    def prepare(self, sound: Float[Tensor, "samples"]) -> Float[Tensor, "N C"]:
        return whisper_mel(sound, self.channels)

    def frames(self, size: int) -> int:
        return -(-size // 2)

    def forward(self, heard: Sounds) -> list[Float[Tensor, "F E"]]:
        sizes = [len(one) for one in heard]
        dtype = self.model.conv1.weight.dtype
        mel = nn.utils.rnn.pad_sequence([one.to(dtype) for one in heard], batch_first=True).transpose(1, 2)  # R C L
        x = F.gelu(self.model.conv1(mel))
        if min(sizes) != max(sizes):
            # Behind a recording's end the second convolution must see what it sees at the end of one alone: zeros.
            x = x * within(sizes, mel.shape[2], mel.device)[:, None]
        x = F.gelu(self.model.conv2(x)).transpose(1, 2)  # R F E
        counts = [self.frames(size) for size in sizes]
        mask = None
        if min(counts) != max(counts):
            hidden = ~within(counts, x.shape[1], x.device)[:, None, None]  # R 1 1 F
            mask = torch.zeros(hidden.shape, dtype=dtype, device=x.device).masked_fill(hidden, torch.finfo(dtype).min)
        x = x + self.model.embed_positions.weight[: x.shape[1]].to(dtype)
        for layer in self.model.layers:
            x = layer(x, mask)
            x = x[0] if isinstance(x, tuple) else x
        x = self.model.layer_norm(x)
        return [row[:count] for row, count in zip(x, counts, strict=True)]


class WaveTower(SpeechTower):
    """wav2vec 2, HuBERT, WavLM: models of the samples themselves, one recording at a time.

    Their first layers normalise over all that they are given, so that in a batch a recording would hear its neighbours'
    padding.
    """

    longest = 0.0
    channels = 1

    def __init__(self, model: Any, *, normalise: bool) -> None:
        super().__init__()
        self.model, self._normalise = model, normalise
        self.width = model.config.hidden_size
        self.milliseconds = 1000.0 * _product(model.config.conv_stride) / RATE

    def prepare(self, sound: Float[Tensor, "samples"]) -> Float[Tensor, "N C"]:
        if self._normalise:
            sound = (sound - sound.mean()) / (sound.var(correction=0) + 1e-7).sqrt()
        return sound[:, None]

    def frames(self, size: int) -> int:
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            size = (max(size, kernel) - kernel) // stride + 1
        return size

    def forward(self, heard: Sounds) -> list[Float[Tensor, "F E"]]:
        least = _receptive(self.model.config.conv_kernel, self.model.config.conv_stride)
        dtype = next(self.model.parameters()).dtype
        features = []
        for one in heard:
            samples = F.pad(one[:, 0], (0, max(0, least - len(one)))).to(dtype)
            features.append(self.model(samples[None]).last_hidden_state[0])
        return features


class FeatureTower(SpeechTower):
    """w2v-BERT and its kin: models of stacked filter banks, made by their own feature extractor, one at a time."""

    longest = 0.0

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__()
        self.model, self._extractor = model, extractor
        self.width = model.config.hidden_size
        self.channels = model.config.feature_projection_input_dim
        self.milliseconds = 10.0 * extractor.stride

    def prepare(self, sound: Float[Tensor, "samples"]) -> Float[Tensor, "N C"]:
        # It needs two whole stacks to normalise over.
        sound = F.pad(sound, (0, max(0, 1200 - len(sound))))
        made = self._extractor(sound.numpy(), sampling_rate=RATE, return_tensors="pt", padding=False)
        return made["input_features"][0]

    def frames(self, size: int) -> int:
        return size

    def forward(self, heard: Sounds) -> list[Float[Tensor, "F E"]]:
        dtype = next(self.model.parameters()).dtype
        return [self.model(one[None].to(dtype)).last_hidden_state[0] for one in heard]


def within(sizes: Sequence[int] | Int[Tensor, "R"], length: int, device: torch.device) -> Bool[Tensor, "R length"]:
    """Which places of padded rows are real."""
    return torch.arange(length, device=device) < torch.as_tensor(sizes, device=device)[:, None]


def transformers_tower(name: str, *, weights: str | None) -> SpeechTower:
    """The speech model in a folder or of a hub id; ValueError for one that is none.

    `weights`: another folder to take them from, "random", or None for the name's own.
    """
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

    try:
        config = AutoConfig.from_pretrained(name)
        if weights == "random":
            model = AutoModel.from_config(config)
        else:
            model = AutoModel.from_pretrained(name if weights is None else weights)
        extractor = AutoFeatureExtractor.from_pretrained(name)
    # transformers says ValueError for a folder that holds no model, OSError for one that is not there.
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be loaded as a Hugging Face speech model: {str(error).splitlines()[0]}; "
            "pass a folder with config.json, preprocessor_config.json and model.safetensors"
        ) from error
    if config.model_type == "whisper":
        return WhisperTower(model.encoder)
    if hasattr(config, "conv_stride") and hasattr(config, "hidden_size"):
        return WaveTower(model, normalise=bool(getattr(extractor, "do_normalize", False)))
    if hasattr(config, "feature_projection_input_dim"):
        return FeatureTower(model, extractor)
    raise ValueError(f"{name} is a {config.model_type}; known are Whisper, wav2vec 2 and its kin, and w2v-BERT")


def _product(numbers: Sequence[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _receptive(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one feature needs."""
    need = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        need = (need - 1) * stride + kernel
    return need
