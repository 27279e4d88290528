"""What 2-simplicial attention means, in PyTorch: the oracle of the fast paths, and what runs where none of them can.

Letters: B rows, T tokens, H query heads, G of which share each of the N key heads, D head width; s and l are the
streams of the small and of the large window, which are no longer than the text. Arithmetic is in float32, in float64
for float64 tensors. Queries are taken in blocks, so that memory is bounded by `budget` scores and never holds
[T, window_s, window_l].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BUDGET = 1 << 22
"""Scores held at once."""


def forward(
    q: Tensor,
    ks: Tensor,
    vs: Tensor,
    kl: Tensor,
    vl: Tensor,
    window_s: int,
    window_l: int,
    scale: float,
    form: str,
    budget: int = BUDGET,
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, D] in the dtype of q, and the log of the sum of exponentials [B, T, H]."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=_wide(q), device=q.device)
    for block in _blocks(q, ks, vs, kl, vl, window_s, window_l, scale, form, budget):
        log = block.scores.flatten(-2).logsumexp(-1)  # B N b G
        weights = (block.scores - log[..., None, None]).exp()
        each = (weights.flatten(2, 4) @ block.vl).unflatten(2, weights.shape[2:5])  # B N b G s D
        out[:, block.queries] = _heads((each * block.vs).sum(-2)).to(out.dtype)
        lse[:, block.queries] = _heads(log[..., None])[..., 0]
    return out, lse


def backward(
    grad: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    ks: Tensor,
    vs: Tensor,
    kl: Tensor,
    vl: Tensor,
    out: Tensor,
    lse: Tensor,
    window_s: int,
    window_l: int,
    scale: float,
    form: str,
    budget: int = BUDGET,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, ks, vs, kl, vl from those of the output and of the log-sum."""
    wide = _wide(q)
    N = ks.shape[2]
    delta = (grad.to(wide) * out.to(wide)).sum(-1) - grad_lse.to(wide)  # B T H
    dq = torch.empty(q.shape, dtype=wide, device=q.device)
    dks, dvs, dkl, dvl = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (ks, vs, kl, vl))
    for block in _blocks(q, ks, vs, kl, vl, window_s, window_l, scale, form, budget):
        log = _grouped(lse[:, block.queries, :, None], N)  # B N b G 1
        weights = (block.scores - log[..., None]).exp()  # B N b G s L
        g = _grouped(grad[:, block.queries].to(wide), N)[..., None, :]  # B N b G 1 D
        gv = g * block.vs
        dweights = (gv.flatten(2, 4) @ block.vl.mT).unflatten(2, weights.shape[2:5])
        dscores = weights * (dweights - _grouped(delta[:, block.queries, :, None], N)[..., None])
        t = (dscores.flatten(2, 4) @ block.kl).unflatten(2, weights.shape[2:5]) * scale  # gradient of the fold
        u = (weights.flatten(2, 4) @ block.vl).unflatten(2, weights.shape[2:5])
        query, keys = fold_backward(t, block.q, block.ks, form)
        dq[:, block.queries] = _heads(query.sum(-2))
        _scatter(dks, block.small, keys.sum(3))
        _scatter(dvs, block.small, (g * u).sum(3))
        dkl[:, block.large] += (dscores.flatten(2, 4).mT @ block.folded.flatten(2, 4)).transpose(1, 2) * scale
        dvl[:, block.large] += (weights.flatten(2, 4).mT @ gv.flatten(2, 4)).transpose(1, 2)
    return dq.to(q.dtype), dks.to(q.dtype), dvs.to(q.dtype), dkl.to(q.dtype), dvl.to(q.dtype)


def fold(q: Tensor, k: Tensor, form: str) -> Tensor:
    """The vector f with f . k_l the score: q * k, or the cross product of each chunk of three."""
    if form == "trilinear":
        return q * k
    return _cross(q, k)


def fold_backward(t: Tensor, q: Tensor, k: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Gradients of q and k from the gradient t of `fold(q, k)`, broadcast as they are."""
    if form == "trilinear":
        return t * k, t * q
    return _cross(k, t), _cross(t, q)


@dataclass(frozen=True)
class _Block:
    """The scores of some queries, and what they were made of; -inf where a query does not look."""

    queries: slice
    large: slice
    """The rows of the large stream that any of the queries sees."""
    small: Tensor
    """The row of the small stream that each query sees at each distance, [b, s]; below 0 where there is none."""
    q: Tensor  # B N b G 1 D
    ks: Tensor  # B N b 1 s D
    vs: Tensor
    kl: Tensor  # B N L D
    vl: Tensor
    folded: Tensor  # B N b G s D
    scores: Tensor  # B N b G s L


def _blocks(
    q: Tensor,
    ks: Tensor,
    vs: Tensor,
    kl: Tensor,
    vl: Tensor,
    window_s: int,
    window_l: int,
    scale: float,
    form: str,
    budget: int,
) -> Iterator[_Block]:
    B, T, H, _ = q.shape
    wide, N = _wide(q), ks.shape[2]
    step = max(1, min(T, window_l, budget // max(1, 2 * B * H * window_s * window_l)))
    back = torch.arange(window_s, device=q.device)
    for begin in range(0, T, step):
        end = min(T, begin + step)
        at = torch.arange(begin, end, device=q.device)[:, None]
        small, first = at - back, max(0, begin - window_l + 1)
        row = torch.arange(first, end, device=q.device)
        sees = (row <= at) & (row > at - window_l)  # b L
        blind = ~(sees[:, None, :] & (small >= 0)[:, :, None])  # b s L
        query = _grouped(q[:, begin:end].to(wide), N)[..., None, :]
        k, v = (x[:, small.clamp(min=0)].to(wide).permute(0, 3, 1, 2, 4)[:, :, :, None] for x in (ks, vs))
        kk, vv = (x[:, first:end].to(wide).transpose(1, 2) for x in (kl, vl))
        folded = fold(query, k, form)
        scores = (folded.flatten(2, 4) @ kk.mT).unflatten(2, folded.shape[2:5]) * scale
        scores = scores.masked_fill(blind[:, None], -torch.inf)
        yield _Block(slice(begin, end), slice(first, end), small, query, k, v, kk, vv, folded, scores)


def _scatter(total: Tensor, rows: Tensor, part: Tensor) -> None:
    """Add part [B, N, b, s, D] to the rows [b, s] of total [B, T, N, D]; rows below 0 do not exist."""
    part = part.masked_fill((rows < 0)[..., None], 0)
    total.index_add_(1, rows.clamp(min=0).flatten(), part.permute(0, 2, 3, 1, 4).flatten(1, 2))


def _grouped(x: Tensor, key_heads: int) -> Tensor:
    """[B, b, H, D] as [B, N, b, G, D]."""
    return x.unflatten(2, (key_heads, -1)).transpose(1, 2)


def _heads(x: Tensor) -> Tensor:
    """[B, N, b, G, D] as [B, b, H, D]."""
    return x.transpose(1, 2).flatten(2, 3)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    a, b = torch.broadcast_tensors(a, b)
    return torch.linalg.cross(a.unflatten(-1, (-1, 3)), b.unflatten(-1, (-1, 3))).flatten(-2)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
