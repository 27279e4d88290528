"""The speech adapter: features of a speech encoder to rows that stand in the text (Llama 3 paper, section 8.2)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from adapters.feed_forward import Activation, feed_forward
from adapters.rotary import Turns, turned, turns
from kernels.sparse_relu2.module import SparsityConfig

_KERNEL, _STRIDE = 3, 2


@dataclass(frozen=True, kw_only=True)
class SpeechAdapterConfig:
    """How speech enters the text model. The paper: width 3072, feed_forward 4096, about 100M parameters.

    Widths of 0 are those of text model and encoder, filled in when the parts are put together.
    """

    text: int = 0
    """Width of the text model."""

    features: int = 0
    """Width of the encoder's features."""

    stack: int = 1
    """Encoder features laid side by side ahead of the convolution, which halves their number again: 1 for the paper's
    Conformer, whose features are 40 ms apart, 2 for Whisper's 20 ms. Either way a row of the text is 80 ms of sound."""

    width: int = 3072
    """Of the Transformer layer."""

    heads: int = 24

    feed_forward: int = 4096

    activation: Activation = "swiglu"
    """What the layer's feed-forward computes: SwiGLU, or squared ReLU of as many parameters."""

    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    """With `activation` relu2: when training goes over to 2:4 activations, and back."""

    dropout: float = 0.0
    """In training, on what the layer's two halves add."""

    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width ({self.width}) must be a multiple of twice the heads ({self.heads})")
        if self.stack < 1:
            raise ValueError(f"stack must be at least 1, got {self.stack}")


class SpeechAdapter(nn.Module):
    """A convolution (kernel 3, stride 2), a rotary Transformer layer in which a recording looks at itself, a linear
    map; and the two delimiters that stand around every recording.

    Letters: F features of all recordings behind one another, R recordings, N rows, D width of the text model.
    """

    recompute: bool = False
    """There is one layer: nothing to compute again."""

    def __init__(self, config: SpeechAdapterConfig) -> None:
        super().__init__()
        if not config.text or not config.features:
            raise ValueError(f"an adapter is built with the widths of text and features known, got {config}")
        self.config = config
        wide = config.features * config.stack
        self.norm = nn.LayerNorm(wide, eps=config.norm_eps)
        self.conv = nn.Conv1d(wide, config.width, _KERNEL, stride=_STRIDE, padding=_KERNEL // 2)
        self.layer = SpeechLayer(config)
        self.out_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.out = nn.Linear(config.width, config.text)
        self.delimiters = nn.Parameter(torch.randn(2, config.text) * 0.02)
        """What stands before and behind a recording: two special tokens outside of the frozen table."""

    def rows(self, frames: int) -> int:
        """How many rows a recording of so many features takes in the text, its delimiters with it."""
        return self.sounding(frames) + len(self.delimiters)

    def sounding(self, frames: int) -> int:
        """The rows between the delimiters."""
        stacked = -(-frames // self.config.stack)
        return -(-stacked // _STRIDE)

    def forward(self, features: Float[Tensor, "F E"], sizes: Int[Tensor, "R"]) -> Float[Tensor, "N D"]:
        """The rows of R recordings, each between its delimiters, one behind the other."""
        between = self.between(features, sizes)
        first, last = self.delimiters.to(features)[:, None]
        return torch.cat([part for rows in between for part in (first, rows, last)]) if between else first[:0]

    def between(self, features: Float[Tensor, "F E"], sizes: Int[Tensor, "R"]) -> list[Float[Tensor, "_ D"]]:
        """The rows of each recording without the delimiters; the same whatever recordings stand beside it."""
        frames = sizes.tolist()
        if not frames:
            return []
        counts = [self.sounding(one) for one in frames]
        x = nn.utils.rnn.pad_sequence([self.stacked(one) for one in features.split(frames)], batch_first=True)
        x = F.gelu(self.conv(x.transpose(1, 2))).transpose(1, 2)  # R K W
        real = None
        if min(counts) != max(counts):
            real = torch.arange(x.shape[1], device=x.device) < torch.tensor(counts, device=x.device)[:, None]
        x = self.out(self.out_norm(self.layer(x, real)))
        return [row[:count] for row, count in zip(x, counts, strict=True)]

    def stacked(self, features: Float[Tensor, "F E"]) -> Float[Tensor, "S W"]:
        """Neighbours side by side; what is missing at the end is zero."""
        stack = self.config.stack
        features = F.pad(features, (0, 0, 0, -len(features) % stack)).to(self.conv.weight.dtype)
        # Normalised before rows are padded: what lies behind a recording's end stays zero, as the convolution sees it.
        return self.norm(features.reshape(-1, stack * features.shape[1]))


class SpeechLayer(nn.Module):
    """A Transformer layer over each recording: rotary attention in both directions, then a feed-forward.

    Both are normalised before. SwiGLU lies here as two matrices (its gate and its up-projection are one product),
    squared ReLU is a module.
    """

    def __init__(self, config: SpeechAdapterConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward = None
        if config.activation == "swiglu":
            self.gate_up = nn.Linear(config.width, 2 * config.feed_forward, bias=False)
            self.down_proj = nn.Linear(config.feed_forward, config.width, bias=False)
        else:
            self.feed_forward = feed_forward(config.width, config.feed_forward, config.activation, config.sparsity)

    def forward(self, x: Float[Tensor, "R K W"], real: Bool[Tensor, "R K"] | None) -> Float[Tensor, "R K W"]:
        by = turns(x.shape[1], x.shape[2] // self.heads, x.device, x.dtype)
        x = x + self._dropped(self._attend(self.attention_norm(x), real, by))
        y = self.feed_forward_norm(x)
        if self.feed_forward is not None:
            return x + self._dropped(self.feed_forward(y))
        gate, up = self.gate_up(y).chunk(2, dim=-1)
        return x + self._dropped(self.down_proj(F.silu(gate) * up))

    def _attend(self, x: Float[Tensor, "R K W"], real: Bool[Tensor, "R K"] | None, by: Turns) -> Float[Tensor, "R K W"]:
        R, K, W = x.shape
        q, k, v = self.qkv(x).view(R, K, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)  # R H K k
        mask = None if real is None else real[:, None, None]
        out = F.scaled_dot_product_attention(turned(q, by), turned(k, by), v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(R, K, W))

    def _dropped(self, x: Float[Tensor, "R K W"]) -> Float[Tensor, "R K W"]:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
