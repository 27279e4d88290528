"""The GPU's fast path: Triton kernels of the forward and of the backward pass, without atomics.

A tile's rows are `BP` queries times `BG` of the heads that share a key head, so that with 64 heads a key head one query
fills a tensor-core tile and no row sees another window than its neighbours. README.md derives the loop orders.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import interpreted

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _cross_fold(a_next, a_last, b_next, b_last):
    """The cross product of chunks of three: a and b at the next and at the last place of each chunk, cyclically."""
    x = a_next.to(tl.float32) * b_last.to(tl.float32) - a_last.to(tl.float32) * b_next.to(tl.float32)
    return x.to(a_next.dtype)


@triton.jit
def _neighbours(d, D: tl.constexpr):
    """The next and the last component of each chunk of three, cyclically; a cut last chunk holds nothing but zeros."""
    return tl.minimum(d // 3 * 3 + (d + 1) % 3, D - 1), tl.minimum(d // 3 * 3 + (d + 2) % 3, D - 1)


@triton.jit
def _pairs(
    q, q_next, q_last, kl, vl, KS, VS, row_stride, d, d_next, d_last, j_first, j_end, blind, pos, window_s,
    top, weight, acc, factor,
    MASK: tl.constexpr, ONE: tl.constexpr, DETERMINANT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the large window, which stays where it is, against every row of the small one."""
    for j in tl.range(j_first, j_end):
        vj = tl.load(VS + j * row_stride + d).to(tl.float32)
        if DETERMINANT:
            k_next = tl.load(KS + j * row_stride + d_next)
            k_last = tl.load(KS + j * row_stride + d_last)
            folded = _cross_fold(q_next, q_last, k_next[None, :], k_last[None, :])
        else:
            kj = tl.load(KS + j * row_stride + d)
            folded = q * kj[None, :]
        s = tl.dot(folded, kl, input_precision=PRECISION)
        if MASK:
            s = tl.where(blind, -float("inf"), s)
        if not ONE:
            s = tl.where(((j > pos) | (j <= pos - window_s))[:, None], -float("inf"), s)
        new = tl.maximum(top, tl.max(s, 1))
        shift = new * factor
        if not ONE:
            # A row may not have seen anything yet: nothing less nothing is nothing, not NaN.
            shift = tl.where(new == -float("inf"), 0.0, shift)
        p = tl.exp2(s * factor - shift[:, None])
        keep = tl.exp2(top * factor - shift)
        weight = weight * keep + tl.sum(p, 1)
        pv = tl.dot(p.to(vl.dtype), vl, input_precision=PRECISION)
        acc = acc * keep[:, None] + pv * vj[None, :]
        top = new
    return top, weight, acc


@triton.jit
def _edge(
    q, q_next, q_last, KL, VL, KS, VS, row_stride, d, d_next, d_last, j_first, newest, oldest, tile, pos, window_s,
    window_l, top, weight, acc, factor,
    BN: tl.constexpr, ONE: tl.constexpr, DETERMINANT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile that not every row sees whole."""
    at_l = newest - tile * BN - tl.arange(0, BN)
    l_ok = at_l >= oldest
    kl = tl.load(KL + at_l[:, None] * row_stride + d[None, :], mask=l_ok[:, None], other=0.0)
    vl = tl.load(VL + at_l[:, None] * row_stride + d[None, :], mask=l_ok[:, None], other=0.0)
    blind = (l_ok == 0)[None, :]
    if not ONE:
        blind = blind | (at_l[None, :] > pos[:, None]) | (at_l[None, :] <= pos[:, None] - window_l)
    return _pairs(
        q, q_next, q_last, tl.trans(kl), vl, KS, VS, row_stride, d, d_next, d_last, j_first, newest + 1, blind, pos,
        window_s, top, weight, acc, factor,
        True, ONE, DETERMINANT, PRECISION,
    )  # fmt: skip


@triton.jit
def forward_kernel(
    Q, KS, VS, KL, VL, OUT, LSE, T, scale, window_s, window_l, H, N,
    G: tl.constexpr, D: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    DETERMINANT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and log-sum of BP queries' BG heads: the large window outside, so that each of its tiles is read once."""
    parts: tl.constexpr = (G + BG - 1) // BG
    first = tl.program_id(0) * BP
    part = tl.program_id(1) % parts
    head = (tl.program_id(1) // parts) % N
    b = (tl.program_id(1) // parts // N).to(tl.int64)
    rows = tl.arange(0, BP * BG)
    pos = first + (rows // BG if BP > 1 else 0 * rows)
    member = part * BG + rows % BG
    row_ok = (pos < T) & (member < G)
    d = tl.arange(0, D)
    d_next, d_last = _neighbours(d, D)
    at = pos * H + head * G + member
    queries = b * T * H
    ok = row_ok[:, None]
    q = tl.load(Q + queries * D + at[:, None] * D + d[None, :], mask=ok, other=0.0)
    q_next, q_last = q, q
    if DETERMINANT:
        q_next = tl.load(Q + queries * D + at[:, None] * D + d_next[None, :], mask=ok, other=0.0)
        q_last = tl.load(Q + queries * D + at[:, None] * D + d_last[None, :], mask=ok, other=0.0)
    stride = N * D
    keys = (b * T * N + head) * D
    factor = scale * LOG2E
    top = tl.full((BP * BG,), -float("inf"), tl.float32)
    weight = tl.zeros((BP * BG,), tl.float32)
    acc = tl.zeros((BP * BG, D), tl.float32)
    newest = tl.minimum(first + BP, T) - 1
    oldest = tl.maximum(0, first - window_l + 1)
    j_first = tl.maximum(0, first - window_s + 1)
    # Newest tile first and flush with the newest row: with one query only the last, oldest tile needs a mask.
    tiles = tl.cdiv(newest + 1 - oldest, BN)
    if BP == 1:
        for tile in tl.range(0, tiles - 1):
            at_l = newest - tile * BN - tl.arange(0, BN)
            kl = tl.load(KL + keys + at_l[:, None] * stride + d[None, :])
            vl = tl.load(VL + keys + at_l[:, None] * stride + d[None, :])
            top, weight, acc = _pairs(
                q, q_next, q_last, tl.trans(kl), vl, KS + keys, VS + keys, stride, d, d_next, d_last,
                j_first, newest + 1, None, pos, window_s, top, weight, acc, factor,
                False, True, DETERMINANT, PRECISION,
            )  # fmt: skip
        top, weight, acc = _edge(
            q, q_next, q_last, KL + keys, VL + keys, KS + keys, VS + keys, stride, d, d_next, d_last,
            j_first, newest, oldest, tiles - 1, pos, window_s, window_l, top, weight, acc, factor,
            BN, True, DETERMINANT, PRECISION,
        )  # fmt: skip
    else:
        for tile in tl.range(0, tiles):
            top, weight, acc = _edge(
                q, q_next, q_last, KL + keys, VL + keys, KS + keys, VS + keys, stride, d, d_next, d_last,
                j_first, newest, oldest, tile, pos, window_s, window_l, top, weight, acc, factor,
                BN, False, DETERMINANT, PRECISION,
            )  # fmt: skip
    out = acc / weight[:, None]
    tl.store(OUT + queries * D + at[:, None] * D + d[None, :], out.to(OUT.dtype.element_ty), mask=ok)
    tl.store(LSE + queries + at, top * scale + tl.log(weight), mask=row_ok)


@triton.jit
def delta_kernel(OUT, GRAD, GRAD_LSE, DELTA, rows, D: tl.constexpr, BR: tl.constexpr):
    """What the softmax's gradient takes off: the sum of out * grad over a row, less the log-sum's own gradient."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    d = tl.arange(0, D)
    ok = (r < rows)[:, None]
    out = tl.load(OUT + r[:, None] * D + d[None, :], mask=ok, other=0.0).to(tl.float32)
    grad = tl.load(GRAD + r[:, None] * D + d[None, :], mask=ok, other=0.0).to(tl.float32)
    lse = tl.load(GRAD_LSE + r, mask=r < rows, other=0.0)
    tl.store(DELTA + r, tl.sum(out * grad, 1) - lse, mask=r < rows)


@triton.jit
def _pair_keys(KS, KL, kl, at, stride, j, d, d_next, d_last, ok, DETERMINANT: tl.constexpr):
    """The keys of the pairs (j, l) of a tile: with them a head is plain attention over pairs."""
    if DETERMINANT:
        j_next = tl.load(KS + j * stride + d_next)
        j_last = tl.load(KS + j * stride + d_last)
        l_next = tl.load(KL + at[:, None] * stride + d_next[None, :], mask=ok, other=0.0)
        l_last = tl.load(KL + at[:, None] * stride + d_last[None, :], mask=ok, other=0.0)
        # q . (k_s x k_l) = (q x k_s) . k_l
        return _cross_fold(
            tl.broadcast_to(j_next[None, :], l_next.shape), tl.broadcast_to(j_last[None, :], l_last.shape),
            l_next, l_last,
        )  # fmt: skip
    else:
        return kl * tl.load(KS + j * stride + d)[None, :]


@triton.jit
def query_grad_kernel(
    Q, KS, VS, KL, VL, GRAD, LSE, DELTA, DQ, T, scale, window_s, window_l, H, N,
    G: tl.constexpr, D: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    DETERMINANT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of q for BP queries' BG heads: the keys are folded, so that it gathers in the tensor core's sums."""
    parts: tl.constexpr = (G + BG - 1) // BG
    first = tl.program_id(0) * BP
    part = tl.program_id(1) % parts
    head = (tl.program_id(1) // parts) % N
    b = (tl.program_id(1) // parts // N).to(tl.int64)
    rows = tl.arange(0, BP * BG)
    pos = first + (rows // BG if BP > 1 else 0 * rows)
    member = part * BG + rows % BG
    row_ok = (pos < T) & (member < G)
    d = tl.arange(0, D)
    d_next, d_last = _neighbours(d, D)
    at = pos * H + head * G + member
    queries = b * T * H
    ok = row_ok[:, None]
    q = tl.load(Q + queries * D + at[:, None] * D + d[None, :], mask=ok, other=0.0)
    grad = tl.load(GRAD + queries * D + at[:, None] * D + d[None, :], mask=ok, other=0.0)
    log = tl.load(LSE + queries + at, mask=row_ok, other=0.0) * LOG2E
    delta = tl.load(DELTA + queries + at, mask=row_ok, other=0.0)
    stride = N * D
    keys = (b * T * N + head) * D
    factor = scale * LOG2E
    dq = tl.zeros((BP * BG, D), tl.float32)
    newest = tl.minimum(first + BP, T) - 1
    oldest = tl.maximum(0, first - window_l + 1)
    j_first = tl.maximum(0, first - window_s + 1)
    for tile in tl.range(0, tl.cdiv(newest + 1 - oldest, BN)):
        at_l = newest - tile * BN - tl.arange(0, BN)
        l_ok = at_l >= oldest
        kl = tl.load(KL + keys + at_l[:, None] * stride + d[None, :], mask=l_ok[:, None], other=0.0)
        vl = tl.load(VL + keys + at_l[:, None] * stride + d[None, :], mask=l_ok[:, None], other=0.0)
        # Rows that do not exist have q = grad = delta = 0 and so need no mask.
        blind = (l_ok == 0)[None, :]
        if BP > 1:
            blind = blind | (at_l[None, :] > pos[:, None]) | (at_l[None, :] <= pos[:, None] - window_l)
        for j in tl.range(j_first, newest + 1):
            kk = _pair_keys(KS + keys, KL + keys, kl, at_l, stride, j, d, d_next, d_last, l_ok[:, None], DETERMINANT)
            vj = tl.load(VS + keys + j * stride + d)
            s = tl.dot(q, tl.trans(kk), input_precision=PRECISION)
            z = tl.dot(grad * vj[None, :], tl.trans(vl), input_precision=PRECISION)
            p = tl.exp2(s * factor - log[:, None])
            unseen = blind
            if BP > 1:
                unseen = blind | ((j > pos) | (j <= pos - window_s))[:, None]
            ds = tl.where(unseen, 0.0, p * (z - delta[:, None]))
            dq = tl.dot(ds.to(kk.dtype), kk, dq, input_precision=PRECISION)
    tl.store(DQ + queries * D + at[:, None] * D + d[None, :], (dq * scale).to(DQ.dtype.element_ty), mask=ok)


@triton.jit
def key_grad_kernel(
    Q, KS, VS, KL, VL, GRAD, LSE, DELTA, DKL, DVL, PART_K, PART_V, PAIR_K, PAIR_V,
    T, scale, window_s, window_l, H, N, width,
    G: tl.constexpr, D: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    DETERMINANT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of BN rows of the large stream, and their share of the small stream's.

    Outside runs j, so that the pairs (j, l) are folded once and the inner loop over queries is that of plain attention:
    E = sum_i dS^T q and F = sum_i P^T grad gather in the tensor core. Each pair's E then gives both dk_l (E folded with
    k_j) and dk_j (E folded with k_l, summed over the tile), and F the same of the values. DKL and DVL are this
    program's own float32 rows; PART_K and PART_V [tiles, width, D] the shares that `small_grad_kernel` adds up.
    """
    tile = tl.program_id(0)
    l_first = tile * BN
    pair = tl.program_id(1)
    head = pair % N
    b = (pair // N).to(tl.int64)
    at_l = l_first + tl.arange(0, BN)
    d = tl.arange(0, D)
    d_next, d_last = _neighbours(d, D)
    rows = tl.arange(0, BP * BG)
    stride = N * D
    keys = (b * T * N + head) * D
    factor = scale * LOG2E
    parts: tl.constexpr = (G + BG - 1) // BG
    queries = b * T * H
    share = (pair.to(tl.int64) * tl.num_programs(0) + tile) * width * D
    j_first = tl.maximum(0, l_first - window_s + 1)
    i_end = tl.minimum(T, tl.minimum(l_first + BN, T) - 1 + window_l)
    for j in tl.range(j_first, i_end):
        # l_first, in words that change with j: the addresses below are made anew rather than held, dozens of registers
        # of them, while the inner loop runs.
        here = tl.minimum(l_first, j + window_s - 1) + tl.arange(0, BN)
        at_tile = here[:, None] * stride + d[None, :]
        l_ok = here < T
        kl = tl.load(KL + keys + at_tile, mask=l_ok[:, None], other=0.0)
        vl = tl.load(VL + keys + at_tile, mask=l_ok[:, None], other=0.0)
        kk = _pair_keys(KS + keys, KL + keys, kl, here, stride, j, d, d_next, d_last, l_ok[:, None], DETERMINANT)
        vj = tl.load(VS + keys + j * stride + d)
        # By way of memory: what comes from a load may stay in shared memory, what was computed would take a quarter of
        # the registers for as long as the inner loop runs.
        tl.store(PAIR_K + keys + at_tile, kk, mask=l_ok[:, None])
        tl.store(PAIR_V + keys + at_tile, vl * vj[None, :], mask=l_ok[:, None])
        tl.debug_barrier()
        kk = tl.load(PAIR_K + keys + at_tile, mask=l_ok[:, None], other=0.0)
        vv = tl.load(PAIR_V + keys + at_tile, mask=l_ok[:, None], other=0.0)
        e = tl.zeros((BN, D), tl.float32)
        f = tl.zeros((BN, D), tl.float32)
        begin = tl.maximum(j, l_first)
        end = tl.minimum(i_end, j + window_s)
        for step in tl.range(0, tl.cdiv(end - begin, BP) * parts):
            i = begin + step // parts * BP
            pos = i + (rows // BG if BP > 1 else 0 * rows)
            member = step % parts * BG + rows % BG
            at = pos * H + head * G + member
            if BP == 1 and G % BG == 0:
                q = tl.load(Q + queries * D + at[:, None] * D + d[None, :])
                grad = tl.load(GRAD + queries * D + at[:, None] * D + d[None, :])
                log = tl.load(LSE + queries + at) * LOG2E
                delta = tl.load(DELTA + queries + at)
            else:
                row_ok = (pos < end) & (member < G)
                ok = row_ok[:, None]
                q = tl.load(Q + queries * D + at[:, None] * D + d[None, :], mask=ok, other=0.0)
                grad = tl.load(GRAD + queries * D + at[:, None] * D + d[None, :], mask=ok, other=0.0)
                log = tl.load(LSE + queries + at, mask=row_ok, other=0.0) * LOG2E
                delta = tl.load(DELTA + queries + at, mask=row_ok, other=0.0)
            p = tl.exp2(tl.dot(kk, tl.trans(q), input_precision=PRECISION) * factor - log[None, :])
            # Rows that do not exist, of queries or of keys, add nothing: they are zero in q and grad, or not stored.
            if BP == 1:
                sees = ((at_l <= i) & (at_l > i - window_l))[:, None]
            else:
                sees = (at_l[:, None] <= pos[None, :]) & (at_l[:, None] > pos[None, :] - window_l)
            p = tl.where(sees, p, 0.0)
            f = tl.dot(p.to(grad.dtype), grad, f, input_precision=PRECISION)
            z = tl.dot(vv, tl.trans(grad), input_precision=PRECISION)
            ds = p * (z - delta[None, :])
            e = tl.dot(ds.to(q.dtype), q, e, input_precision=PRECISION)
        slot = share + (j - (l_first - window_s + 1)) * D
        there = tl.minimum(l_first, end - 1) + tl.arange(0, BN)
        at_tile = there[:, None] * stride + d[None, :]
        l_ok = there < T
        kl = tl.load(KL + keys + at_tile, mask=l_ok[:, None], other=0.0)
        vl = tl.load(VL + keys + at_tile, mask=l_ok[:, None], other=0.0)
        tl.store(PART_V + slot + d, tl.sum(vl.to(tl.float32) * f, 0))
        old = tl.load(DVL + keys + at_tile, mask=l_ok[:, None], other=0.0)
        vj = tl.load(VS + keys + j * stride + d).to(tl.float32)
        tl.store(DVL + keys + at_tile, old + f * vj[None, :], mask=l_ok[:, None])
        if DETERMINANT:
            # dk_l = E x k_s and dk_s = k_l x E, each component of E put where it counts: first what adds, then what
            # takes off. The threads of the program must see each other's rows in between.
            l_next = tl.load(KL + keys + there[:, None] * stride + d_next[None, :], mask=l_ok[:, None], other=0.0)
            l_last = tl.load(KL + keys + there[:, None] * stride + d_last[None, :], mask=l_ok[:, None], other=0.0)
            j_next = tl.load(KS + keys + j * stride + d_next).to(tl.float32)
            j_last = tl.load(KS + keys + j * stride + d_last).to(tl.float32)
            to_next = DKL + keys + there[:, None] * stride + d_next[None, :]
            to_last = DKL + keys + there[:, None] * stride + d_last[None, :]
            plus = tl.sum(l_last.to(tl.float32) * e, 0)
            minus = tl.sum(l_next.to(tl.float32) * e, 0)
            tl.store(PART_K + slot + d_next, plus)
            tl.debug_barrier()
            tl.store(to_last, tl.load(to_last, mask=l_ok[:, None], other=0.0) + e * j_next[None, :], mask=l_ok[:, None])
            tl.store(PART_K + slot + d_last, tl.load(PART_K + slot + d_last) - minus)
            tl.debug_barrier()
            tl.store(to_next, tl.load(to_next, mask=l_ok[:, None], other=0.0) - e * j_last[None, :], mask=l_ok[:, None])
        else:
            kj = tl.load(KS + keys + j * stride + d).to(tl.float32)
            tl.store(PART_K + slot + d, tl.sum(kl.to(tl.float32) * e, 0))
            old = tl.load(DKL + keys + at_tile, mask=l_ok[:, None], other=0.0)
            tl.store(DKL + keys + at_tile, old + e * kj[None, :], mask=l_ok[:, None])
        tl.debug_barrier()


@triton.jit
def small_grad_kernel(
    PART_K, PART_V, DKS, DVS, T, scale, window_s, window_l, N, tiles, width,
    D: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Row j of the small stream: its shares from the tiles that it meets, always in the same order."""
    j = tl.program_id(0)
    pair = tl.program_id(1)
    d = tl.arange(0, D)
    # Queries j .. j + window_s - 1 look back as far as row j - window_l + 1.
    first = tl.maximum(0, j - window_l + 1) // BN
    last = tl.minimum(T - 1, j + window_s - 1) // BN
    dk = tl.zeros((D,), tl.float32)
    dv = tl.zeros((D,), tl.float32)
    for tile in range(first, last + 1):
        slot = (pair.to(tl.int64) * tiles + tile) * width + j - (tile * BN - window_s + 1)
        dk += tl.load(PART_K + slot * D + d)
        dv += tl.load(PART_V + slot * D + d)
    to = ((pair // N).to(tl.int64) * T * N + j * N + pair % N) * D
    tl.store(DKS + to + d, (dk * scale).to(DKS.dtype.element_ty))
    tl.store(DVS + to + d, dv.to(DVS.dtype.element_ty))


def forward(
    q: Tensor, ks: Tensor, vs: Tensor, kl: Tensor, vl: Tensor, window_s: int, window_l: int, scale: float, form: str
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, D] in the dtype of q, and the natural log-sum [B, T, H] in float32."""
    (B, T, H, D), N = q.shape, ks.shape[2]
    q, ks, vs, kl, vl = (_plain(x) for x in (q, ks, vs, kl, vl))
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    shape = shapes(q, N, form)
    _launcher(forward_kernel, H // N, shape["D"], form)[_tiles(T, B * N, H // N)](
        *(q, ks, vs, kl, vl, out, lse, T, scale, min(window_s, T), min(window_l, T), H, N), **shape
    )
    return out[..., :D], lse


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, ks, vs, kl, vl; two calls give the same bits."""
    (B, T, H, D), N = q.shape, ks.shape[2]
    G, ws, wl = H // N, min(window_s, T), min(window_l, T)
    grad, q, ks, vs, kl, vl, out = (_plain(x) for x in (grad, q, ks, vs, kl, vl, out))
    grad_lse = grad_lse.contiguous()
    shape = shapes(q, N, form)
    delta = torch.empty_like(lse)
    rows = B * T * H
    delta_kernel[(triton.cdiv(rows, 32),)](out, grad, grad_lse, delta, rows, D=shape["D"], BR=32)
    dq = torch.empty_like(q)
    given = (q, ks, vs, kl, vl, grad, lse, delta)
    _launcher(query_grad_kernel, G, shape["D"], form)[_tiles(T, B * N, G)](*given, dq, T, scale, ws, wl, H, N, **shape)
    # The tile is part of the buffers' shape, so that it is not tuned but told.
    tile = key_tile(shape["D"], form)
    tiles, width = triton.cdiv(T, tile), tile + ws + wl - 2
    dkl, dvl = (torch.zeros(kl.shape, dtype=torch.float32, device=q.device) for _ in range(2))
    part_k, part_v = (
        torch.empty(B * N, tiles, width, shape["D"], dtype=torch.float32, device=q.device) for _ in range(2)
    )
    pair_k, pair_v, dks, dvs = (torch.empty_like(kl) for _ in range(4))
    _launcher(key_grad_kernel, G, shape["D"], form)[(tiles, B * N)](
        *given, dkl, dvl, part_k, part_v, pair_k, pair_v, T, scale, ws, wl, H, N, width, **shape
    )
    small_grad_kernel[(T, B * N)](
        *(part_k, part_v, dks, dvs, T, scale, ws, wl, N, tiles, width), D=shape["D"], BN=tile, num_warps=1
    )
    dkl, dvl = dkl.mul_(scale).to(q.dtype), dvl.to(q.dtype)
    return dq[..., :D], dks[..., :D], dvs[..., :D], dkl[..., :D], dvl[..., :D]


def shapes(q: Tensor, key_heads: int, form: str) -> dict[str, Any]:
    """The compile-time arguments that the shapes decide; a configuration decides the others."""
    G = q.shape[2] // key_heads
    return {
        "G": G,
        "D": q.shape[-1],
        "BG": group(G),
        "DETERMINANT": form == "determinant",
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }


def group(G: int) -> int:
    """Heads a tile; more than 64 that share a key head go to several programs."""
    return min(64, triton.next_power_of_2(G))


def padded(width: int) -> int:
    """The head width that kernels work with: the next power of two, zeros in what is added."""
    return max(16, triton.next_power_of_2(width))


def key_tile(width: int, form: str) -> int:
    """Rows of the large stream that a program of `key_grad_kernel` owns."""
    return 16 if interpreted() else 64


def configurations(kernel: str, G: int, width: int, form: str) -> list[triton.Config]:
    """What is tried on a GPU for `kernel` ("forward", "query_grad", "key_grad"), the most promising first."""
    queries = max(1, 64 // group(G))
    if interpreted():
        # Tiles as small as the tensor core allows, so that short texts cross their borders.
        return [_config(max(1, 16 // group(G)), 16, 4)]
    return [_config(queries, 64, 4)]


def _config(queries: int, rows: int, warps: int, stages: int = 2) -> triton.Config:
    return triton.Config({"BP": queries, "BN": rows}, num_warps=warps, num_stages=stages)


@functools.cache
def _launcher(kernel: Any, G: int, width: int, form: str) -> Any:
    name = kernel.__name__.removesuffix("_kernel")
    keys = ["D", "G", "DETERMINANT", "window_s", "window_l"]
    return triton.autotune(configurations(name, G, width, form), key=keys, cache_results=True)(kernel)


def _tiles(T: int, pairs: int, G: int) -> Any:
    return lambda meta: (triton.cdiv(T, meta["BP"]), pairs * triton.cdiv(G, meta["BG"]))


def _plain(x: Tensor) -> Tensor:
    """A tensor [B, T, heads, D] contiguous and as wide as the kernels want it."""
    if x[0].numel() >= 2**31:
        raise ValueError(
            f"a row of {list(x.shape)} holds 2^31 elements or more, which the Triton kernels cannot address"
        )
    return F.pad(x, (0, padded(x.shape[-1]) - x.shape[-1])).contiguous()
