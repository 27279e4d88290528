"""The paper's speech encoder: a Conformer over stacked log-mel frames, one feature every 40 ms (Llama 3, section 8.2).

A recording's features are the same alone and in a batch: what lies behind its end is hidden from attention and zero to
the convolutions, and every norm is over one place's numbers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.mel import log_mel
from encoders.rotary import Turns, turned, turns
from encoders.speech_tower import Sounds, SpeechTower, within


@dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """The shape of a Conformer; as it stands it is the paper's, of 1.0B parameters."""

    bands: int = 80
    """Mel bands of a frame, 10 ms apart."""
    stack: int = 4
    """Frames laid side by side for one feature."""
    width: int = 1536
    layers: int = 24
    heads: int = 24
    feed_forward: int = 4096
    """Of each of a layer's two halves."""
    kernel: int = 7
    """Of the depthwise convolution."""
    dropout: float = 0.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width ({self.width}) must be a multiple of twice the heads ({self.heads})")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that a feature stays in its place, got {self.kernel}")
        if min(self.stack, self.layers, self.bands) < 1:
            raise ValueError(f"stack, layers and bands must be at least 1, got {self}")


class Conformer(SpeechTower):
    """Log-mel frames to features, `stack` frames one feature."""

    recompute: bool = False
    """Whether layers are computed again in the backward pass instead of being kept (gradient checkpointing)."""

    longest = 0.0

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.width, self.channels = config.width, config.bands
        self.milliseconds = 10.0 * config.stack
        self.mean: Tensor
        self.deviation: Tensor
        # Of the training recordings' frames, band by band; part of the weights.
        self.register_buffer("mean", torch.zeros(config.bands))
        self.register_buffer("deviation", torch.ones(config.bands))
        self.inlet = nn.Linear(config.stack * config.bands, config.width)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.layers))

    def prepare(self, sound: Float[Tensor, "samples"]) -> Float[Tensor, "N C"]:
        return log_mel(sound, self.channels)

    def frames(self, size: int) -> int:
        return -(-size // self.config.stack)

    def forward(self, heard: Sounds) -> list[Float[Tensor, "F E"]]:
        counts = [self.frames(len(one)) for one in heard]
        x, real = self.encode([self.stacked(self.normalised(one)) for one in heard])
        del real
        return [row[:count] for row, count in zip(x, counts, strict=True)]

    def normalised(self, frames: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Every band with mean 0 and deviation 1 over the training recordings."""
        return (frames - self.mean) / self.deviation

    def stacked(self, frames: Float[Tensor, "N C"]) -> Float[Tensor, "F W"]:
        """Neighbouring frames side by side; what is missing at the end is zero."""
        stack = self.config.stack
        return F.pad(frames, (0, 0, 0, -len(frames) % stack)).reshape(-1, stack * frames.shape[1])

    def encode(self, stacks: list[Tensor]) -> tuple[Float[Tensor, "R K E"], Bool[Tensor, "R K"]]:
        """Features of recordings given as stacked, normalised frames, padded, and which are real."""
        padded = nn.utils.rnn.pad_sequence(stacks, batch_first=True).to(self.inlet.weight.dtype)
        real = within([len(one) for one in stacks], padded.shape[1], padded.device)
        x = self.inlet(padded)
        by = turns(x.shape[1], self.width // self.config.heads, x.device, x.dtype)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = _tensor(checkpoint(layer, x, real, by, use_reentrant=False))
            else:
                x = layer(x, real, by)
        return x, real

    @torch.no_grad()
    def measure(self, recordings: Sounds) -> None:
        """Takes the bands' mean and deviation from frames of training recordings."""
        deviation, mean = torch.std_mean(torch.cat(list(recordings)).float(), dim=0)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=1e-3))


class ConformerLayer(nn.Module):
    """Half a feed-forward, rotary attention, a convolution, half a feed-forward, a norm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.first = MacaronHalf(config)
        self.attention = SpeechAttention(config)
        self.convolution = ConvolutionHalf(config)
        self.second = MacaronHalf(config)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = config.dropout

    def forward(self, x: Float[Tensor, "R K E"], real: Bool[Tensor, "R K"], by: Turns) -> Float[Tensor, "R K E"]:
        x = x + 0.5 * self._dropped(self.first(x))
        x = x + self._dropped(self.attention(x, real, by))
        x = x + self._dropped(self.convolution(x, real))
        x = x + 0.5 * self._dropped(self.second(x))
        return self.norm(x)

    def _dropped(self, x: Float[Tensor, "R K E"]) -> Float[Tensor, "R K E"]:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class MacaronHalf(nn.Module):
    """One of a layer's two feed-forwards."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.up = nn.Linear(config.width, config.feed_forward)
        self.down = nn.Linear(config.feed_forward, config.width)

    def forward(self, x: Float[Tensor, "R K E"]) -> Float[Tensor, "R K E"]:
        return self.down(F.silu(self.up(self.norm(x))))


class SpeechAttention(nn.Module):
    """Every place looks at every real place of its recording; positions are rotary."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.o_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Float[Tensor, "R K E"], real: Bool[Tensor, "R K"], by: Turns) -> Float[Tensor, "R K E"]:
        R, K, E = x.shape
        q, k, v = self.qkv(self.norm(x)).view(R, K, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        mask = None if bool(real.all()) else real[:, None, None]
        out = F.scaled_dot_product_attention(turned(q, by), turned(k, by), v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(R, K, E))


class ConvolutionHalf(nn.Module):
    """A gated linear unit, a depthwise convolution, a norm, and back."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.gate_in = nn.Linear(config.width, 2 * config.width)
        self.depthwise = nn.Conv1d(
            config.width, config.width, config.kernel, padding=config.kernel // 2, groups=config.width
        )
        # Not over the batch, as the Conformer's first authors have it: a recording would hear its neighbours.
        self.inner_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Float[Tensor, "R K E"], real: Bool[Tensor, "R K"]) -> Float[Tensor, "R K E"]:
        x = F.glu(self.gate_in(self.norm(x)), dim=-1) * real[..., None]
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.out(F.silu(self.inner_norm(x)))


def _tensor(x: object) -> Tensor:
    assert isinstance(x, Tensor)
    return x


def load_conformer(folder: Path) -> Conformer:
    """The Conformer that `save_conformer` wrote; ValueError where there is none, or one of another shape."""
    about, weights = folder / "conformer.json", folder / "conformer.safetensors"
    if not about.is_file() or not weights.is_file():
        raise ValueError(f"{folder} holds no Conformer (conformer.json and conformer.safetensors are not both there)")
    conformer = Conformer(ConformerConfig(**json.loads(about.read_text(encoding="utf-8"))))
    try:
        conformer.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{weights} cannot be read as the Conformer of {about.name}: {error}") from error
    return conformer


def save_conformer(conformer: Conformer, folder: Path) -> None:
    """Writes conformer.json and conformer.safetensors into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in conformer.state_dict().items()}
    weights = folder / "conformer.safetensors"
    save_file(tensors, weights)
    # safetensors leaves 0600 whatever the umask says.
    weights.chmod(0o644)
    (folder / "conformer.json").write_text(json.dumps(asdict(conformer.config), indent=2) + "\n", encoding="utf-8")
