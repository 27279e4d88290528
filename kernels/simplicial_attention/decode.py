"""2-simplicial attention of the newest token to two windows of rows, as a cache holds them."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.simplicial_attention.reference import fold


def simplicial_decode(
    q: Tensor,
    k1: Tensor,
    v1: Tensor,
    k2: Tensor,
    v2: Tensor,
    *,
    seen1: Tensor | None = None,
    seen2: Tensor | None = None,
    scale: float | None = None,
    form: str = "trilinear",
) -> Tensor:
    """One token a row: q [B, H, D], k1 and v1 [B, N, S1, D], k2 and v2 [B, N, S2, D] -> [B, H, D].

    A softmax does not care for order, so that the rows may lie as a ring buffer has them. `seen1` Bool[B, S1] and
    `seen2` tell which rows hold a token of the window; without them all do. The work is that of two matrix products
    of [G * S1, D] with [D, S2] a key head, whatever the length of the text.
    """
    B, H, D = q.shape
    N = k1.shape[1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    query = q.to(wide).view(B, N, H // N, 1, D)
    factor = D**-0.5 if scale is None else scale
    if form == "determinant" and D % 3:
        pad = (0, -D % 3)
        query, k1, k2 = (torch.nn.functional.pad(x, pad) for x in (query, k1, k2))
    folded = fold(query, k1.to(wide)[:, :, None], form)  # B N G S1 D
    scores = (folded.flatten(2, 3) @ k2.to(wide).mT).unflatten(2, folded.shape[2:4]) * factor  # B N G S1 S2
    if seen1 is not None:
        scores = scores.masked_fill(~seen1[:, None, None, :, None], -torch.inf)
    if seen2 is not None:
        scores = scores.masked_fill(~seen2[:, None, None, None, :], -torch.inf)
    weights = scores.flatten(-2).softmax(-1).unflatten(-1, scores.shape[-2:])
    each = (weights.flatten(2, 3) @ v2.to(wide)).unflatten(2, weights.shape[2:4])  # B N G S1 D
    return (each * v1.to(wide)[:, :, None]).sum(-2).view(B, H, D).to(q.dtype)
