"""The Llama text model, with two openings for other modalities: `before` and `embeds`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.sparse_relu2.module import ReLU2FeedForward, SparsityConfig
from text_backbone.attention import Attention, View, view
from text_backbone.cache import KeyValueCache
from text_backbone.config import LlamaConfig
from text_backbone.feed_forward import FeedForward, RMSNorm
from text_backbone.simplicial import attention_of
from text_backbone.token_step import block_step, head_step

Before = Mapping[int, Sequence[Callable[[Tensor], Tensor]]]
"""Block index -> functions of the residual stream [B, T, D], run ahead of that block."""

Embeds = tuple[Bool[Tensor, "B T"], Float[Tensor, "N D"]]
"""Which tokens are placeholders, and the rows that take their place, in row-major order of the mask."""


class Block(nn.Module):
    """Attention, then feed-forward, each normalised before and added after."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = attention_of(config, layer) if config.is_simplicial(layer) else Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        # Its training is dense: 2:4 activations are for layers that learn them, which sets the module's own config.
        self.mlp = (
            ReLU2FeedForward(config.width, config.feed_forward, SparsityConfig(mode="dense"))
            if config.squared_relu
            else FeedForward(config.width, config.feed_forward)
        )

    def forward(self, x: Float[Tensor, "B T D"], view: View, cache: KeyValueCache | None) -> Float[Tensor, "B T D"]:
        if cache is not None:
            norms = (self.input_layernorm, self.post_attention_layernorm)
            stepped = block_step(norms, self.self_attn, self.mlp, x, view, cache)
            if stepped is not None:
                return stepped
        x = x + self.self_attn(self.input_layernorm(x), view, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embedding, blocks and final norm: what Hugging Face's files keep under `model.`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)


class TextBackbone(nn.Module):
    """A decoder-only Llama; its state dict carries the Hugging Face names.

    Letters: B rows, T tokens, D width, V vocabulary. Rows are right padded; a token never sees what comes after it, so
    padding needs no mask.
    """

    recompute: bool = False
    """Keep only the input of each block for the backward pass and compute the rest again (gradient checkpointing)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        cache: KeyValueCache | None = None,
        before: Before | None = None,
        embeds: Embeds | None = None,
        positions: Int[Tensor, "B T"] | None = None,
        documents: Int[Tensor, "B T"] | None = None,
        lengths: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each token; see `run` for the arguments."""
        x = self.embed(tokens, embeds)
        x = self.run(x, before=before, cache=cache, positions=positions, documents=documents, lengths=lengths)
        return self.head(x)

    def embed(self, tokens: Int[Tensor, "B T"], embeds: Embeds | None = None) -> Float[Tensor, "B T D"]:
        """Embeddings of the tokens, with the rows of `embeds` in place of the tokens that it marks.

        Ids at or above the vocabulary are placeholders for media: ValueError if `embeds` leaves one uncovered.
        """
        mask, rows = embeds if embeds is not None else (None, None)
        known = tokens if mask is None else tokens.masked_fill(mask, 0)
        if known.numel() and int(known.max()) >= self.config.vocabulary:
            raise ValueError(
                f"token {int(known.max())} is a placeholder (the vocabulary has {self.config.vocabulary} tokens), but "
                "no embedding was given for it; pass embeds=(mask, rows) that cover every placeholder"
            )
        x = F.embedding(known, self.model.embed_tokens.weight)
        if mask is None or rows is None:
            return x
        if int(mask.sum()) != rows.shape[0]:
            raise ValueError(f"embeds marks {int(mask.sum())} tokens but brings {rows.shape[0]} rows")
        return x.masked_scatter(mask[..., None], rows.to(x.dtype))

    def run(
        self,
        x: Float[Tensor, "B T D"],
        *,
        first: int = 0,
        last: int | None = None,
        before: Before | None = None,
        cache: KeyValueCache | None = None,
        positions: Int[Tensor, "B T"] | None = None,
        documents: Int[Tensor, "B T"] | None = None,
        lengths: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Blocks `first` .. `last` - 1 of the residual stream, without the final norm.

        `run(run(x, last=i), first=i)` is bit for bit `run(x)`. `lengths` says how many of each row's tokens are real
        (needed only with a cache); the cache counts them as read when the last block of all has run. `positions`
        default to where the tokens stand in their row, or in their document (see `attention.view`).
        """
        layers = self.config.layers
        last = layers if last is None else last
        if not 0 <= first <= last <= layers:
            raise ValueError(f"blocks {first} .. {last} are not within the model's 0 .. {layers}")
        before = before or {}
        if outside := [i for i in before if not 0 <= i < layers]:
            raise ValueError(f"before names blocks {outside}; the model has blocks 0 .. {layers - 1}")
        seen = view(self.config, x, cache=cache, positions=positions, documents=documents, lengths=lengths)
        recompute = self.recompute and cache is None and torch.is_grad_enabled()
        for i in range(first, last):
            if recompute:
                x = _keep(checkpoint(_step, x, before.get(i, ()), self.model.layers[i], seen, use_reentrant=False))
            else:
                x = _step(x, before.get(i, ()), self.model.layers[i], seen, cache)
        if cache is not None and last == layers:
            cache.advance(x.shape[1], lengths)
        return x

    def head(self, x: Float[Tensor, "... D"], words: Int[Tensor, "W"] | None = None) -> Float[Tensor, "... V"]:
        """Logits from the residual stream after the last block: final norm and head, whatever the leading shape.

        With `words` of these tokens alone, in their order.
        """
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        if words is not None:
            return F.linear(self.model.norm(x), weight[words])
        logits = head_step(self.model.norm, weight, x)
        return F.linear(self.model.norm(x), weight) if logits is None else logits


def _step(
    x: Tensor,
    enters: Sequence[Callable[[Tensor], Tensor]],
    block: nn.Module,
    seen: View,
    cache: KeyValueCache | None = None,
) -> Tensor:
    for enter in enters:
        x = enter(x)
    return block(x, seen, cache)


def _keep(x: object) -> Tensor:
    assert isinstance(x, Tensor)
    return x
