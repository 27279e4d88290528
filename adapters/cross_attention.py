"""The gated cross-attention block: text looks at what an adapter remembers of media (Llama 3 paper, section 7.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from adapters.feed_forward import Activation, SwiGLU
from adapters.feed_forward import feed_forward as feed_forward_of
from kernels.sparse_relu2.module import SparsityConfig
from kernels.token_step.cpu import cross_attention_step
from kernels.token_step.module import few_rows, hooked, norm_of, plain_weights


@dataclass(frozen=True)
class Sight:
    """Who sees what in one call, worked out once and read by every block. Of tokens that see nothing, nothing may
    change.
    """

    sees: Bool[Tensor, "B 1 L M"] | None
    """Which features each query may look at, L = T * (heads that share a key head); None where every query sees all."""

    seeing: Bool[Tensor, "B T 1"] | None
    """Tokens that see anything; None where all do."""


def sight(sees: Bool[Tensor, "B T M"], sharing: int) -> Sight:
    """`sharing` heads use each key head; the queries of those become one longer row of queries."""
    if bool(sees.all()):
        return Sight(None, None)
    seeing = sees.any(-1, keepdim=True)
    if bool(seeing.all()):
        return Sight(_shared(sees, sharing), None)
    # A token that sees nothing looks at everything instead, and what comes of it is thrown away: a softmax over
    # nothing would be NaN, and NaN times zero is NaN in the backward pass.
    return Sight(_shared(sees | ~seeing, sharing), seeing)


def _shared(sees: Bool[Tensor, "B T M"], sharing: int) -> Bool[Tensor, "B 1 L M"]:
    return sees[:, None].expand(-1, sharing, -1, -1).flatten(1, 2)[:, None]


class CrossAttention(nn.Module):
    """Grouped queries of the text to keys and values of the media; q and k are normalised per head, nothing is
    rotated.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, eps: float) -> None:
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"heads ({heads}) must be a multiple of kv_heads ({kv_heads})")
        self.kv_heads = kv_heads
        self.head_width = head_width
        self.q_proj = nn.Linear(width, heads * head_width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_width, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_width, bias=False)
        self.o_proj = nn.Linear(heads * head_width, width, bias=False)
        self.q_norm = nn.RMSNorm(head_width, eps)
        self.k_norm = nn.RMSNorm(head_width, eps)

    def remember(self, media: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N H K"], Float[Tensor, "N H K"]]:
        """Keys and values of projected features."""
        k = self.k_proj(media).unflatten(-1, (self.kv_heads, self.head_width))
        v = self.v_proj(media).unflatten(-1, (self.kv_heads, self.head_width))
        return _normed(self.k_norm, k).to(v.dtype), v

    @torch.no_grad()
    def copy_directions(self, directions: Float[Tensor, "C D"], *, size: float) -> None:
        """Lets values take up the C = kv_heads * head_width given directions of the media, and outputs give them back.

        The heads that share a key head share its part; `size` is what a unit of the media becomes in the text.
        """
        sharing = self.q_proj.out_features // self.k_proj.out_features
        self.v_proj.weight.copy_(directions)
        parts = directions.unflatten(0, (self.kv_heads, self.head_width)).repeat_interleave(sharing, dim=0)
        self.o_proj.weight.copy_(parts.flatten(0, 1).T * (size / sharing))

    @torch.no_grad()
    def look(self, directions: Float[Tensor, "C D"], reading: Float[Tensor, "C D"], *, away: bool) -> None:
        """Lets keys be the media's share in directions, and queries `reading`: towards it, or (two heads of three)
        away from it. Queries stay as large as they were.
        """
        sharing = self.q_proj.out_features // self.k_proj.out_features
        self.k_proj.weight.copy_(directions)
        heads = reading.unflatten(0, (self.kv_heads, self.head_width)).repeat_interleave(sharing, dim=0)
        queries = self.q_proj.weight.unflatten(0, (-1, self.head_width))
        heads = heads * (self.q_proj.weight.std() / heads.std().clamp(min=1e-12))
        for head in range(len(heads)):
            if not (away and head % 3 == 2):
                queries[head] = -heads[head] if away else heads[head]

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        keys: Float[Tensor, "B H M K"],
        values: Float[Tensor, "B H M K"],
        sight: Sight,
    ) -> Float[Tensor, "B T D"]:
        B, T, _ = x.shape
        q = _normed(self.q_norm, self.q_proj(x).unflatten(-1, (-1, self.head_width))).to(values.dtype)
        # Cross-attention has no order: the queries that share a key head stand behind one another, nothing is repeated.
        q = q.transpose(1, 2).reshape(B, self.kv_heads, -1, self.head_width)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=sight.sees)
        return self.o_proj(out.reshape(B, -1, T, self.head_width).transpose(1, 2).flatten(2))

    def step(
        self,
        norm: nn.Module,
        gate: Float[Tensor, "1"],
        x: Float[Tensor, "B T D"],
        keys: Float[Tensor, "B H M K"],
        values: Float[Tensor, "B H M K"],
        sight: Sight,
    ) -> Float[Tensor, "B T D"] | None:
        """x + tanh(gate) * self(norm(x)) for one token a row, by the fused op; None where that does not apply."""
        if x.shape[1] != 1 or not few_rows(x) or hooked(self, norm, self.q_norm):
            return None
        weights = plain_weights((self.q_proj, self.o_proj), values.dtype)
        if weights is None or keys.dtype != values.dtype or not (keys.is_contiguous() and values.is_contiguous()):
            return None
        q, out = weights
        # All queries of a row's one token see the same.
        sees = None if sight.sees is None else sight.sees[:, 0, 0]
        query_norm, scale = norm_of(self.q_norm), float(gate.tanh())
        return cross_attention_step(x, norm_of(norm), q, query_norm, out, scale, keys, values, sees)


class CrossAttentionBlock(nn.Module):
    """Attention to media, then a feed-forward, each entering by the tanh of a gate; gates of zero change
    nothing.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        feed_forward: int,
        gate: float,
        eps: float,
        activation: Activation = "swiglu",
        sparsity: SparsityConfig | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps)
        self.attention = CrossAttention(width, heads, kv_heads, head_width, eps)
        self.attention_gate = nn.Parameter(torch.tensor([gate]))
        self.feed_forward_norm = nn.RMSNorm(width, eps)
        self.feed_forward = feed_forward_of(width, feed_forward, activation, sparsity)
        self.feed_forward_gate = nn.Parameter(torch.tensor([gate]))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        keys: Float[Tensor, "B H M K"],
        values: Float[Tensor, "B H M K"],
        sight: Sight,
    ) -> Float[Tensor, "B T D"]:
        """The residual stream after the block; where a token sees nothing it is bit for bit what it was."""
        y = self.attention.step(self.attention_norm, self.attention_gate, x, keys, values, sight)
        if y is None:
            attended = self.attention(_normed(self.attention_norm, x), keys, values, sight)
            y = x + (self.attention_gate.tanh() * attended).to(x.dtype)
        fed = None
        if isinstance(self.feed_forward, SwiGLU):
            fed = self.feed_forward.step(self.feed_forward_norm, self.feed_forward_gate, y)
        if fed is None:
            fed = self.feed_forward(_normed(self.feed_forward_norm, y))
            fed = y + (self.feed_forward_gate.tanh() * fed).to(x.dtype)
        return fed if sight.seeing is None else torch.where(sight.seeing, fed, x)


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """The norm in the adapter's own precision, which may be finer than the text model's."""
    return norm(x.to(norm.weight.dtype))
