"""A Llama block's attention made 2-simplicial: a token looks at pairs of tokens in two windows (Fast and Simplex).

Two kinds. `SimplicialAttention` is trained from scratch, has its own head layout and knows no positions but the
windows' (arXiv 2507.02754). `GraftedSimplicialAttention` grows on a trained attention: its additional keys and values
are 1 + W x with W = 0, so that it begins as that attention, looking back `window2` tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kernels.simplicial_attention import simplicial_attention, simplicial_decode
from text_backbone.attention import View
from text_backbone.cache import KeyValueCache
from text_backbone.config import LlamaConfig, Simplicial
from text_backbone.feed_forward import RMSNorm
from text_backbone.rope import turn


class Streams(NamedTuple):
    """What the tokens of a call ask with and are seen by: queries, and keys and values of either window."""

    q: Float[Tensor, "B T H K"]
    k1: Float[Tensor, "B T N K"]
    v1: Float[Tensor, "B T N K"]
    k2: Float[Tensor, "B T N K"]
    v2: Float[Tensor, "B T N K"]


class SimplicialAttention(nn.Module):
    """Pairs of a token of `window1` and a token of `window2`; queries and both keys are normalised, none is turned.

    A rotary turn of the three factors would make the score depend on where in the text a token stands; order comes
    from the windows, and from the other layers. Letters: B rows, T tokens, D width, H heads, N key heads, K head width.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        shape = _shape(config)
        self.layer, self.shape = layer, shape
        keys = shape.kv_heads * shape.head_width
        self.q_proj = nn.Linear(config.width, shape.heads * shape.head_width, bias=False)
        self.k_proj = nn.Linear(config.width, keys, bias=False)
        self.v_proj = nn.Linear(config.width, keys, bias=False)
        self.k1_proj = nn.Linear(config.width, keys, bias=False)
        self.v1_proj = nn.Linear(config.width, keys, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_width, config.width, bias=False)
        # A product of three vectors has heavy tails: all three are normalised.
        self.q_norm = RMSNorm(shape.head_width, config.norm_eps)
        self.k_norm = RMSNorm(shape.head_width, config.norm_eps)
        self.k1_norm = RMSNorm(shape.head_width, config.norm_eps)

    def streams(self, x: Float[Tensor, "B T D"], view: View) -> Streams:
        """Queries, keys and values of these tokens."""
        K = self.shape.head_width
        q, k, v, k1, v1 = (
            project(x).unflatten(-1, (-1, K))
            for project in (self.q_proj, self.k_proj, self.v_proj, self.k1_proj, self.v1_proj)
        )
        return Streams(self.q_norm(q), self.k1_norm(k1), v1, self.k_norm(k), v)

    def forward(self, x: Float[Tensor, "B T D"], view: View, cache: KeyValueCache | None) -> Float[Tensor, "B T D"]:
        streams = self.streams(x, view)
        if cache is not None and view.places is not None:
            out = self._remembered(streams, view.places, view.lengths, cache)
        elif view.documents is not None:
            out = self._apart(streams, view.documents)
        else:
            out = self._attend(streams)
        return self.o_proj(out.flatten(2))

    def _attend(self, streams: Streams) -> Tensor:
        shape = self.shape
        return simplicial_attention(*streams, window1=shape.window1, window2=shape.window2, form=shape.form)

    def _apart(self, streams: Streams, documents: Int[Tensor, "B T"]) -> Tensor:
        """Each document of a packed row for itself: windows do not reach over its beginning."""
        rows = []
        for b in range(documents.shape[0]):
            sizes = torch.unique_consecutive(documents[b], return_counts=True)[1].tolist()
            pieces = zip(*(x[b : b + 1].split(sizes, dim=1) for x in streams), strict=True)
            rows.append(torch.cat([self._attend(Streams(*piece)) for piece in pieces], dim=1))
        return torch.cat(rows)

    def _remembered(
        self, streams: Streams, places: Int[Tensor, "_ T"], lengths: Int[Tensor, "B"] | None, cache: KeyValueCache
    ) -> Tensor:
        """Attention to the rings and to the call's own tokens, which are written into the rings."""
        first, second = cache.rings[self.layer]
        B, T = streams.q.shape[:2]
        ours = [(ring, k.transpose(1, 2), v.transpose(1, 2)) for ring, k, v in (
            (first, streams.k1, streams.v1), (second, streams.k2, streams.v2)
        )]  # fmt: skip
        if T == 1 and lengths is None:
            for ring, k, v in ours:
                ring.write(k, v, places)
            full = cache.even and cache.longest + 1 >= max(first.window, second.window)
            seen1, seen2 = (None if full else ring.seen(places).expand(B, -1) for ring in (first, second))
            return simplicial_decode(
                streams.q[:, 0],
                *(first.keys, first.values, second.keys, second.values),
                seen1=seen1,
                seen2=seen2,
                form=self.shape.form,
            )[:, None]
        if cache.longest == 0:
            out = self._attend(streams)
        elif cache.even:
            out = self._continued(streams, cache, cache.longest, slice(0, B))
        else:
            held = cache.lengths.tolist()
            rows = [slice(b, b + 1) for b in range(B)]
            out = torch.cat([self._continued(streams, cache, held[row.start], row) for row in rows])
        for ring, k, v in ours:
            ring.write(k, v, places, lengths)
        return out

    def _continued(self, streams: Streams, cache: KeyValueCache, held: int, rows: slice) -> Tensor:
        """Rows that hold `held` tokens: what the windows still see of them is put before the new ones."""
        first, second = cache.rings[self.layer]
        q = streams.q[rows]
        back = min(held, max(first.window, second.window) - 1)
        joined = [torch.cat((q.new_zeros(q.shape[0], back, *q.shape[2:]), q), dim=1)]
        for ring, k, v in ((first, streams.k1, streams.v1), (second, streams.k2, streams.v2)):
            for old, new in zip(ring.last(held, back, rows), (k[rows], v[rows]), strict=True):
                joined.append(torch.cat((old.transpose(1, 2).to(new.dtype), new), dim=1))
        return self._attend(Streams(*joined))[:, back:]


class GraftedSimplicialAttention(SimplicialAttention):
    """A trained attention that grows a second window, beginning as it was: k1 = 1 + W x, v1 = 1 + W' x, both W zero.

    With k1 = v1 = 1 the operator *is* softmax attention over the last `window2` tokens. Queries and keys keep their
    rotary turn; k1 is the same for both halves of a rotary pair, with which the turn commutes, so that the score goes
    on depending on distances alone whatever W learns. The head layout is the trained one.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        shape = self.shape
        self.q_norm, self.k_norm, self.k1_norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.k1_proj = nn.Linear(config.width, shape.kv_heads * shape.head_width // 2, bias=False)
        nn.init.zeros_(self.k1_proj.weight)
        nn.init.zeros_(self.v1_proj.weight)

    def streams(self, x: Float[Tensor, "B T D"], view: View) -> Streams:
        """Queries, keys and values of these tokens."""
        K, N = self.shape.head_width, self.shape.kv_heads
        q, k = (
            turn(project(x).unflatten(-1, (-1, K)).transpose(1, 2), view.rotation).transpose(1, 2)
            for project in (self.q_proj, self.k_proj)
        )
        k1 = 1 + self.k1_proj(x).unflatten(-1, (N, K // 2)).repeat(1, 1, 1, 2)
        v1 = 1 + self.v1_proj(x).unflatten(-1, (N, K))
        return Streams(q, k1, v1, k, self.v_proj(x).unflatten(-1, (N, K)))


def attention_of(config: LlamaConfig, layer: int) -> SimplicialAttention:
    """The attention of a layer that the config makes simplicial."""
    return (GraftedSimplicialAttention if _shape(config).grafted else SimplicialAttention)(config, layer)


def _shape(config: LlamaConfig) -> Simplicial:
    assert config.simplicial is not None
    return config.simplicial
