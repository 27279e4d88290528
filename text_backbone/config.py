"""The shape of a Llama-family text model, and presets of the released ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's stretch of the rotary wavelengths for long contexts (rope type `llama3`)."""

    factor: float = 8.0
    """How much slower the longest wavelengths turn."""

    low_frequency: float = 1.0
    """Wavelengths above `original_context / low_frequency` are stretched by the whole factor."""

    high_frequency: float = 4.0
    """Wavelengths below `original_context / high_frequency` are left as they are; those between are blended."""

    original_context: int = 8192
    """The context, in tokens, that the unstretched model was trained on."""

    def __post_init__(self) -> None:
        if not 0 < self.low_frequency < self.high_frequency:
            raise ValueError(
                f"low_frequency ({self.low_frequency}) must be above 0 and below high_frequency ({self.high_frequency})"
            )


@dataclass(frozen=True, kw_only=True)
class Simplicial:
    """The shape of 2-simplicial attention layers, which have a head layout of their own (see `simplicial.py`)."""

    heads: int
    kv_heads: int
    """From scratch, at least 16 query heads share a key head: they fill a GPU's tile, rows of other tokens do not."""

    head_width: int

    window1: int = 32
    """Tokens that the first of a pair is looked for in, the token itself included."""

    window2: int = 512
    """Tokens that the second of a pair is looked for in."""

    form: Literal["trilinear", "determinant"] = "trilinear"

    grafted: bool = False
    """Grown on a trained attention, whose head layout and rotary turn stay (see `graft.py`)."""

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_width", "window1", "window2"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if not self.grafted and self.heads < 16 * self.kv_heads:
            raise ValueError(
                f"{self.heads} simplicial heads on {self.kv_heads} key heads are fewer than 16 a key head; "
                f"give them {16 * self.kv_heads} heads, or fewer key heads"
            )
        if self.form not in ("trilinear", "determinant"):
            raise ValueError(f"no form {self.form!r}; forms: trilinear, determinant")
        if self.grafted and self.form != "trilinear":
            raise ValueError("a graft begins as plain attention, which only the trilinear form can be")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """What a `TextBackbone` is made of; everything else about it is fixed by the architecture."""

    vocabulary: int
    """How many tokens the model can say; ids from here on are placeholders for media (see `TextBackbone.embed`)."""

    width: int
    layers: int
    heads: int
    kv_heads: int

    head_width: int
    """Width of one head; `heads * head_width` need not be `width`."""

    feed_forward: int
    """Hidden width of the feed-forward."""

    squared_relu: bool = False
    """Whether the feed-forward is relu(x)^2 without a gate instead of SwiGLU (see `recipes/relufy.py`)."""

    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5

    tied: bool = False
    """The head is the embedding matrix; the model then has no `lm_head.weight`."""

    context: int = 8192
    """The longest sequence, in tokens, that the model was made for."""

    begin: int | None = 128_000
    """The begin-of-text token."""

    stops: tuple[int, ...] = (128_001, 128_008, 128_009)
    """The tokens that end a reply."""

    pad: int = 128_004
    """What right-padded rows are filled with; never read."""

    simplicial_every: int = 0
    """Every how many blocks one attends to pairs (the last of each group); 0 for none."""

    simplicial: Simplicial | None = None
    """The shape of those attentions."""

    def is_simplicial(self, layer: int) -> bool:
        """Whether this block's attention is 2-simplicial."""
        return self.simplicial_every > 0 and (layer + 1) % self.simplicial_every == 0

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "kv_heads", "head_width", "feed_forward", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_width % 2:
            raise ValueError(f"head_width ({self.head_width}) must be even: rotary embeddings turn pairs")
        if self.simplicial_every < 0 or (self.simplicial_every > 0) != (self.simplicial is not None):
            raise ValueError(
                f"simplicial_every ({self.simplicial_every}) and simplicial ({self.simplicial}) belong together: "
                "a number of blocks and a shape, or 0 and None"
            )


_LONG = RopeScaling()

PRESETS: dict[str, LlamaConfig] = {
    "llama3-8b": LlamaConfig(
        vocabulary=128_256, width=4096, layers=32, heads=32, kv_heads=8, head_width=128, feed_forward=14_336
    ),
    "llama3.1-8b": LlamaConfig(
        vocabulary=128_256,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_width=128,
        feed_forward=14_336,
        rope_scaling=_LONG,
        context=131_072,
    ),
    "llama3.1-70b": LlamaConfig(
        vocabulary=128_256,
        width=8192,
        layers=80,
        heads=64,
        kv_heads=8,
        head_width=128,
        feed_forward=28_672,
        rope_scaling=_LONG,
        context=131_072,
    ),
    "llama3.1-405b": LlamaConfig(
        vocabulary=128_256,
        width=16_384,
        layers=126,
        heads=128,
        kv_heads=8,
        head_width=128,
        feed_forward=53_248,
        rope_scaling=_LONG,
        context=131_072,
    ),
    "smollm2-135m": LlamaConfig(
        vocabulary=49_152,
        width=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_width=64,
        feed_forward=1536,
        rope_theta=100_000.0,
        tied=True,
        begin=1,
        stops=(2,),
        pad=2,
    ),
    "toy": LlamaConfig(
        vocabulary=256,
        width=32,
        layers=4,
        heads=4,
        kv_heads=2,
        head_width=8,
        feed_forward=64,
        rope_theta=10_000.0,
        context=128,
        begin=1,
        stops=(2,),
        pad=0,
    ),
}
"""Published shapes by name (Llama 3 herd paper, Table 3), and a toy for tests."""
