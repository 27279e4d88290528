"""2-simplicial attention by the book, in float64: all T^3 scores, one softmax, autograd for the gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def oracle(
    q: Tensor, k1: Tensor, v1: Tensor, k2: Tensor, v2: Tensor, window1: int, window2: int, form: str, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, D] and log-sum [B, T, H] in the dtype of the tensors."""
    T, H, D = q.shape[1:]
    k1, v1, k2, v2 = (x.repeat_interleave(H // x.shape[2], 2) for x in (k1, v1, k2, v2))
    if form == "trilinear":
        scores = torch.einsum("bihd,bjhd,blhd->bhijl", q, k1, k2)
    else:
        # Sum of determinants over chunks of three, by Leibniz' rule and without a cross product.
        scores = q.new_zeros(q.shape[0], H, T, T, T)
        for first in range(0, D, 3):
            for order, sign in (((0, 1, 2), 1), ((1, 2, 0), 1), ((2, 0, 1), 1), ((0, 2, 1), -1), ((2, 1, 0), -1), ((1, 0, 2), -1)):  # fmt: skip # noqa: E501
                a, b, c = (first + place for place in order)
                if max(a, b, c) < D:
                    scores = scores + sign * torch.einsum("bih,bjh,blh->bhijl", q[..., a], k1[..., b], k2[..., c])
    at = torch.arange(T)
    i, j, m = at[:, None, None], at[None, :, None], at[None, None, :]
    sees = (j <= i) & (j > i - window1) & (m <= i) & (m > i - window2)
    scores = (scores * scale).masked_fill(~sees, -torch.inf).flatten(-2)
    log = scores.logsumexp(-1)
    weights = (scores - log[..., None]).exp().unflatten(-1, (T, T))
    return torch.einsum("bhijl,bjhd,blhd->bihd", weights, v1, v2), log.transpose(1, 2)


def make(
    B: int, T: int, H: int, N: int, D: int, dtype: torch.dtype = torch.float32, seed: int = 0, size: float = 1.0
) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k1, v1, k2, v2 and random gradients of output and log-sum."""
    dice = torch.Generator().manual_seed(seed)
    heads = (H, N, N, N, N, H)
    *inputs, grad = ((torch.randn(B, T, h, D, generator=dice) * size).to(dtype) for h in heads)
    return inputs, grad, torch.randn(B, T, H, generator=dice)


def away(ours: Tensor, true: Tensor) -> float:
    """Relative distance in the norm of the whole tensor."""
    return float((ours.double() - true.double()).norm() / true.double().norm().clamp(min=1e-30))
