"""How pictures enter the text model: projected features, remembered once, read by cross-attention between its
blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapters.cross_attention import CrossAttention, CrossAttentionBlock, Sight, sight
from adapters.feed_forward import Activation
from adapters.memory import Memory
from adapters.projector import Projector
from adapters.summary import Summary
from kernels.sparse_relu2.module import SparsityConfig

Enter = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ImageAdapterConfig:
    """How pictures enter the text model."""

    at: tuple[int, ...]
    """The text blocks that a cross-attention block stands before."""

    width: int = 0
    """Width of the text model's residual stream. This and the next five may be left at 0 until the adapter is composed
    with a text model and an encoder: each is then as theirs (and so is `whole`)."""

    features: int = 0
    """Width of an image feature."""

    heads: int = 0
    kv_heads: int = 0
    head_width: int = 0

    feed_forward: int = 0
    """Hidden width of the blocks' feed-forward."""

    activation: Activation = "swiglu"
    """What the feed-forward computes: SwiGLU, or squared ReLU of as many parameters (half as wide again, no gate)."""

    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    """With `activation` relu2: when training goes over to 2:4 activations, and back."""

    gate: float = 0.0
    """What the gates start at; at 0 a new adapter changes nothing, and only the gates have a gradient."""

    projector_norm: bool = False
    """LayerNorm on the features before they are projected."""

    projector_hidden: int = 0
    """Hidden width of a projector of two layers; 0 for a single linear one, as in the paper's release."""

    whole: int = 0
    """Features of a whole tile (class token, pooled) that stand ahead of its patches."""

    recall: int = 0
    """Names that are remembered by the features of whole tiles; with it these are read together (adapters.summary)."""

    recall_slots: int = 10
    """Longest name that is recalled, in words of the text model."""

    recall_words: int = 4096
    """Different words that names are made of."""

    positions: Literal["fourier", "none"] = "none"
    """Whether features are told where they lie: needed where the vision model does not say so itself."""

    mixer: int = 0
    """Width of a Transformer layer in which the features of a picture look at each other; 0 for none."""

    noise: float = 0.0
    """Deviation of the Gaussian noise put on projected features in training."""

    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if list(self.at) != sorted(set(self.at)) or not self.at or self.at[0] < 0:
            raise ValueError(f"at {self.at} must be block numbers in rising order, each once")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")


class ImageAdapter(nn.Module):
    """Gated cross-attention before some of the text model's blocks, and the projector of the features they read."""

    recompute: bool = False
    """Whether blocks are computed again in the backward pass instead of being kept (gradient checkpointing)."""

    def __init__(self, config: ImageAdapterConfig) -> None:
        super().__init__()
        if not all(
            (config.width, config.features, config.heads, config.kv_heads, config.head_width, config.feed_forward)
        ):
            raise ValueError(f"an adapter is built with all its widths and heads known, got {config}")
        if config.recall and not config.whole:
            raise ValueError("recall needs features of whole tiles; set the encoder's `pooled`, or leave recall at 0")
        self.config = config
        summary = None
        if config.recall:
            names, words, slots = config.recall, config.recall_words, config.recall_slots
            summary = Summary(config.whole, config.features, config.width, names=names, words=words, slots=slots)
        self.projector = Projector(
            config.features,
            config.width,
            hidden=config.projector_hidden,
            norm=config.projector_norm,
            summary=summary,
            places=config.positions == "fourier",
            mixer=config.mixer,
            noise=config.noise,
        )
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(
                width=config.width,
                heads=config.heads,
                kv_heads=config.kv_heads,
                head_width=config.head_width,
                feed_forward=config.feed_forward,
                gate=config.gate,
                eps=config.norm_eps,
                activation=config.activation,
                sparsity=config.sparsity,
            )
            for _ in config.at
        )
        self.placeholder = nn.Parameter(torch.randn(config.width) * 0.02)
        """Stands in the text where a picture does (Llama 3.2: an extra row of the embedding)."""

    def remember(
        self,
        features: Float[Tensor, "N E"],
        places: Float[Tensor, "N 3"] | None = None,
        pictures: Int[Tensor, "N"] | None = None,
    ) -> Memory:
        """Keys and values of packed features for every block: once a picture, however many tokens look at it.

        `places` (encoders.ImageEncoder.places) are needed where the config's positions are "fourier" or it has a
        recall, `pictures` (which picture a feature is of, in rising order) where it has a mixer.
        """
        media = self.projector(features, places, pictures)
        keys, values = zip(*(one.remember(media.rows) for one in self.attentions()), strict=True)
        return Memory(keys, values, media.features)

    def before(self, memory: Memory, sees: Bool[Tensor, "B T M"]) -> dict[int, tuple[Enter, ...]]:
        """Functions of the residual stream [B, T, D] for TextBackbone's `before`; sees[b, t, m]: token t looks at
        feature m.

        `memory` is one put into a batch (Memory.take). Rows that see nothing are not computed, and where no row sees
        anything there are no functions. Tokens that see nothing come out bit for bit as they went in.
        """
        looking = sees.any(-1).any(-1)
        if not bool(looking.any()):
            return {}
        sharing = self.config.heads // self.config.kv_heads
        sees = memory.seen(sees)
        if bool(looking.all()):
            rows, who = None, sight(sees, sharing)
        else:
            rows = looking.nonzero()[:, 0]
            who = sight(sees[rows], sharing)
            memory = memory.select(rows)
        return {
            at: (partial(self._enter, block, keys, values, who, rows),)
            for at, block, keys, values in zip(self.config.at, self.blocks, memory.keys, memory.values, strict=True)
        }

    def attentions(self) -> list[CrossAttention]:
        """The cross-attentions, block by block."""
        return [block.attention for block in self.blocks if isinstance(block, CrossAttentionBlock)]

    def _enter(
        self, block: nn.Module, keys: Tensor, values: Tensor, who: Sight, rows: Tensor | None, x: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        looking = x if rows is None else x[rows]
        if self.recompute and torch.is_grad_enabled():
            y = checkpoint(block, looking, keys, values, who, use_reentrant=False)
        else:
            y = block(looking, keys, values, who)
        return y if rows is None else x.index_copy(0, rows, y)
