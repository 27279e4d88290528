"""Transformer blocks over all tiles of a picture: the vision tower's own, and the gated ones on top of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class VisionBlock(nn.Module):
    """A pre-norm Transformer block as in the Llama 3 image encoder: no biases around attention, GELU, LayerNorm.

    With `gated` each branch enters by the tanh of a scalar that starts at zero: a new block changes nothing.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, gated: bool, eps: float = 1e-5) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width ({width}) must be a multiple of heads ({heads})")
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.up_proj = nn.Linear(width, hidden)
        self.down_proj = nn.Linear(hidden, width)
        self.attention_gate = nn.Parameter(torch.zeros(1)) if gated else None
        self.feed_forward_gate = nn.Parameter(torch.zeros(1)) if gated else None

    def forward(self, x: Float[Tensor, "G L E"]) -> Float[Tensor, "G L E"]:
        x = x + _through(self.attention_gate, self._attend(self.attention_norm(x)))
        hidden = F.gelu(self.up_proj(self.feed_forward_norm(x)))
        return x + _through(self.feed_forward_gate, self.down_proj(hidden))

    def _attend(self, x: Float[Tensor, "G L E"]) -> Float[Tensor, "G L E"]:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # G H L K
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GlobalLayers(nn.Module):
    """Gated blocks in which all features of all tiles of one picture look at each other (paper section 7.1)."""

    def __init__(self, count: int, width: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VisionBlock(width, heads, hidden, gated=True) for _ in range(count))

    def forward(self, x: Float[Tensor, "N M E"], pictures: Int[Tensor, "N"]) -> Float[Tensor, "N M E"]:
        """`pictures` says which picture each tile is of."""
        mixed = torch.empty_like(x)
        for tiles in by_picture(pictures):
            one = x[tiles].flatten(1, 2)  # G n*M E
            for block in self.blocks:
                one = block(one)
            mixed = mixed.index_put((tiles.flatten(),), one.reshape(-1, *x.shape[1:]).to(mixed.dtype))
        return mixed


def by_picture(pictures: Int[Tensor, "N"]) -> list[Int[Tensor, "_ _"]]:
    """Pictures of equally many tiles together: for each such group the indices of its tiles, [pictures, tiles].

    Groups instead of padding: no tile that is not there is computed, and attention needs no mask.
    """
    _, owner, counts = torch.unique(pictures, return_inverse=True, return_counts=True)
    order = owner.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    return [
        order[starts[counts == count, None] + torch.arange(count, device=pictures.device)]
        for count in counts.unique().tolist()
    ]


def _through(gate: Tensor | None, branch: Tensor) -> Tensor:
    return branch if gate is None else gate.tanh() * branch
