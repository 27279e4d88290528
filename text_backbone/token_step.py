"""Decoding on a CPU: one token a row through a block or the head by the fused op, in a third of the time.

Each is None where the op does not apply: many tokens or rows, gradients, a GPU, no compiler, or a block in which
somebody has put other parts or hooks. Then the model calls its layers one by one.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from kernels.token_step import cpu
from kernels.token_step.module import few_rows, hooked, norm_of, plain_weights
from text_backbone.attention import Attention, View
from text_backbone.cache import KeyValueCache
from text_backbone.feed_forward import FeedForward, RMSNorm


def block_step(
    norms: tuple[RMSNorm, RMSNorm],
    attention: nn.Module,
    feed_forward: nn.Module,
    x: Float[Tensor, "B T D"],
    view: View,
    cache: KeyValueCache,
) -> Float[Tensor, "B T D"] | None:
    """The output of a block of these parts; keys and values of the new tokens are written into the cache."""
    if x.shape[1] != 1 or view.places is None or not few_rows(x):
        return None
    if type(attention) is not Attention or type(feed_forward) is not FeedForward:
        return None
    layers = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    layers += (feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj)
    weights = plain_weights(layers, x.dtype)
    keys, values = cache.keys[attention.layer], cache.values[attention.layer]
    if weights is None or keys.dtype != x.dtype or hooked(attention, feed_forward, *norms):
        return None
    q, k, v, o, gate, up, down = weights
    first, second = (norm_of(norm) for norm in norms)
    x = cpu.self_attention_step(x, first, (q, k, v, o), view.rotation, keys, values, view.places)
    return cpu.swiglu_step(x, second, gate, up, down, scale=1.0)


def head_step(
    norm: RMSNorm, weight: Float[Tensor, "V D"], x: Float[Tensor, "*rows D"]
) -> Float[Tensor, "*rows V"] | None:
    """norm(x) @ weight^T for rows [B, 1, D]."""
    if x.ndim != 3 or x.shape[1] != 1 or not few_rows(x) or hooked(norm):
        return None
    if weight.dtype != x.dtype or not weight.is_contiguous():
        return None
    return cpu.head_step(x, norm_of(norm), weight)
