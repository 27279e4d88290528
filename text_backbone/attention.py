"""Self-attention of a Llama block: grouped queries, rotary positions, PyTorch's own SDPA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from text_backbone.cache import KeyValueCache
from text_backbone.config import LlamaConfig
from text_backbone.rope import Rotation, rotation, turn


@dataclass(frozen=True)
class View:
    """Where the tokens of a call stand and what each may look at: made once a call, read by every block."""

    rotation: Rotation
    places: Int[Tensor, "_ T"] | None
    """Where the tokens go in the cache; None without one."""

    mask: Bool[Tensor, "_ 1 T S"] | None
    """True where a token may look; None for plain causal (or, for a single token, for everything)."""

    lengths: Int[Tensor, "B"] | None = None
    """How many of the call's tokens are real in each row, where told: rings must not remember padding."""

    documents: Int[Tensor, "B T"] | None = None
    """The document of each token of packed rows."""


def view(
    config: LlamaConfig,
    x: Float[Tensor, "B T D"],
    *,
    cache: KeyValueCache | None = None,
    positions: Int[Tensor, "_ T"] | None = None,
    documents: Int[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, "B"] | None = None,
) -> View:
    """Work out rotation, cache places and mask for a call.

    Without a mask attention is causal, which also keeps right-padded rows apart from their padding. `documents`
    numbers the document that each token of a packed row belongs to: a token sees only its own, and positions restart
    with each (Llama 3 paper, section 3.2).
    """
    T = x.shape[1]
    if cache is not None and documents is not None:
        raise ValueError("documents are for packed training rows; they can not be combined with a cache")
    if cache is None:
        places, mask = None, None
        if documents is not None:
            mask = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]  # B 1 T T
        if positions is None:
            positions = restart(documents) if documents is not None else torch.arange(T, device=x.device)[None]
    else:
        if x.shape[0] != cache.batch:
            raise ValueError(f"the cache holds {cache.batch} rows, the call has {x.shape[0]}")
        places, end = cache.places(T), cache.reserve(T)
        # With an empty cache causal attention is enough; with one token and equal rows, all that is there is seen.
        plain = cache.longest == 0 or (T == 1 and cache.even)
        mask = None if plain else (torch.arange(end, device=x.device) <= places[..., None])[:, None]  # _ 1 T S
        if positions is None:
            positions = places
    return View(rotation(config, positions, x.dtype), places, mask, lengths, documents)


def restart(documents: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions that begin again at 0 wherever the document number changes."""
    at = torch.arange(documents.shape[1], device=documents.device)
    starts = torch.zeros_like(documents)
    starts[:, 1:] = torch.where(documents[:, 1:] != documents[:, :-1], at[1:], 0)
    return at - starts.cummax(dim=1).values


class Attention(nn.Module):
    """Causal attention of a row to itself and to what the cache remembers."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = config.heads
        self.kv_heads = config.kv_heads
        self.head_width = config.head_width
        self.q_proj = nn.Linear(config.width, config.heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def forward(self, x: Float[Tensor, "B T D"], view: View, cache: KeyValueCache | None) -> Float[Tensor, "B T D"]:
        B, T, _ = x.shape
        q = turn(self.q_proj(x).view(B, T, self.heads, self.head_width).transpose(1, 2), view.rotation)
        k = turn(self.k_proj(x).view(B, T, self.kv_heads, self.head_width).transpose(1, 2), view.rotation)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_width).transpose(1, 2)
        if cache is not None and view.places is not None:
            k, v = cache.write(self.layer, k, v, view.places)
        if T == 1:
            # The queries that share a key head become its "tokens": nothing is repeated, no causal mask is needed.
            q = q.reshape(B, self.kv_heads, -1, self.head_width)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=view.mask)
            return self.o_proj(out.reshape(B, 1, -1))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=view.mask, is_causal=view.mask is None, enable_gqa=self.heads != self.kv_heads
        )
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))
