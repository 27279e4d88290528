"""What the steps mean, in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Norm = tuple[Tensor, float]
"""Weight and epsilon of an RMS norm."""


def self_attention_step(
    x: Tensor,
    norm: Norm,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    rotation: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    places: Tensor,
) -> Tensor:
    q_weight, k_weight, v_weight, o_weight = weights
    B, G, C, K = keys.shape
    h = normalise(x, norm)
    q, k, v = (F.linear(h, weight).view(B, -1, 1, K) for weight in (q_weight, k_weight, v_weight))
    rows, at = torch.arange(B), places[:, 0].expand(B)
    keys[rows, :, at] = _turn(k, rotation)[:, :, 0]
    values[rows, :, at] = v[:, :, 0]
    q = _turn(q, rotation).view(B, G, -1, K)
    seen = (torch.arange(C) <= at[:, None])[:, None, None]  # B 1 1 C
    attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
    return x + F.linear(attended.reshape(B, 1, -1), o_weight)


def cross_attention_step(
    x: Tensor,
    norm: Norm,
    q: Tensor,
    query_norm: Norm,
    out: Tensor,
    scale: float,
    keys: Tensor,
    values: Tensor,
    sees: Tensor | None,
) -> Tensor:
    B, G, _, K = keys.shape
    query = normalise(F.linear(normalise(x, norm), q).view(B, G, -1, K), query_norm)
    mask = None if sees is None else sees[:, None, None]
    attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    return x + scale * F.linear(attended.reshape(B, 1, -1), out)


def swiglu_step(x: Tensor, norm: Norm, gate: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    h = normalise(x, norm)
    return x + scale * F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


def head_step(x: Tensor, norm: Norm, weight: Tensor) -> Tensor:
    return F.linear(normalise(x, norm), weight)


def normalise(x: Tensor, norm: Norm) -> Tensor:
    """The root-mean-square norm of the last axis."""
    weight, eps = norm
    return F.rms_norm(x, weight.shape, weight, eps)


def _turn(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotation
    return x * cosine + x.roll(x.shape[-1] // 2, dims=-1) * sine
