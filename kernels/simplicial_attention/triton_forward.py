"""Triton kernel of the forward pass of 2-simplicial attention; README.md derives its loop order.

A tile's rows are `BP` queries times `BG` of the heads that share a key head, so that with 64 heads a key head one query
fills a tensor-core tile and no row sees another window than its neighbours.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false
# Triton's annotations do not describe what its compiler takes.

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def cross_fold(a_next, a_last, b_next, b_last):
    """The cross product of chunks of three: a and b at the next and at the last place of each chunk, cyclically."""
    x = a_next.to(tl.float32) * b_last.to(tl.float32) - a_last.to(tl.float32) * b_next.to(tl.float32)
    return x.to(b_next.dtype)


@triton.jit
def neighbours(d, THIRD: tl.constexpr):
    """The next and the last component of each chunk of three, cyclically.

    The host puts all first components before all second and all third ones, THIRD columns (a multiple of 8) each, so
    that what a thread loads lies together; what follows is padding.
    """
    after = tl.where(d < 2 * THIRD, d + THIRD, tl.where(d < 3 * THIRD, d - 2 * THIRD, d))
    before = tl.where(d < THIRD, d + 2 * THIRD, tl.where(d < 3 * THIRD, d - THIRD, d))
    return tl.max_contiguous(tl.multiple_of(after, 8), 8), tl.max_contiguous(tl.multiple_of(before, 8), 8)


@triton.jit
def _pairs(
    q, kl, l_next, l_last, vl, KS, VS, row_stride, d, d_next, d_last, j_first, j_end, blind, pos, window_s,
    top, weight, acc, factor,
    MASK: tl.constexpr, ONE: tl.constexpr, THIRD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the large window, which stays where it is, against every row of the small one."""
    for j in tl.range(j_first, j_end):
        vj = tl.load(VS + j * row_stride + d).to(tl.float32)
        if THIRD > 0:
            k_next = tl.load(KS + j * row_stride + d_next)
            k_last = tl.load(KS + j * row_stride + d_last)
            # q . (k_s x k_l) = (q x k_s) . k_l: three folds of q would not fit the registers.
            kk = cross_fold(k_next[None, :], k_last[None, :], l_next, l_last)
            s = tl.dot(q, tl.trans(kk), input_precision=PRECISION)
        else:
            kj = tl.load(KS + j * row_stride + d)
            s = tl.dot(q * kj[None, :], tl.trans(kl), input_precision=PRECISION)
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
    q, KL, VL, KS, VS, row_stride, d, d_next, d_last, j_first, newest, oldest, tile, pos, window_s,
    window_l, top, weight, acc, factor,
    BN: tl.constexpr, ONE: tl.constexpr, THIRD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile that not every row sees whole."""
    at_l = newest - tile * BN - tl.arange(0, BN)
    l_ok = at_l >= oldest
    kl = tl.load(KL + at_l[:, None] * row_stride + d[None, :], mask=l_ok[:, None], other=0.0)
    vl = tl.load(VL + at_l[:, None] * row_stride + d[None, :], mask=l_ok[:, None], other=0.0)
    l_next, l_last = kl, kl
    if THIRD > 0:
        l_next = tl.load(KL + at_l[:, None] * row_stride + d_next[None, :], mask=l_ok[:, None], other=0.0)
        l_last = tl.load(KL + at_l[:, None] * row_stride + d_last[None, :], mask=l_ok[:, None], other=0.0)
    blind = (l_ok == 0)[None, :]
    if not ONE:
        blind = blind | (at_l[None, :] > pos[:, None]) | (at_l[None, :] <= pos[:, None] - window_l)
    return _pairs(
        q, kl, l_next, l_last, vl, KS, VS, row_stride, d, d_next, d_last, j_first, newest + 1, blind, pos,
        window_s, top, weight, acc, factor,
        True, ONE, THIRD, PRECISION,
    )  # fmt: skip


@triton.jit
def forward_kernel(
    Q, KS, VS, KL, VL, OUT, LSE, T, scale, window_s, window_l, H, N,
    G: tl.constexpr, D: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    THIRD: tl.constexpr, PRECISION: tl.constexpr,
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
    d_next, d_last = neighbours(d, THIRD)
    at = pos * H + head * G + member
    queries = b * T * H
    ok = row_ok[:, None]
    q = tl.load(Q + queries * D + at[:, None] * D + d[None, :], mask=ok, other=0.0)
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
            l_next, l_last = kl, kl
            if THIRD > 0:
                l_next = tl.load(KL + keys + at_l[:, None] * stride + d_next[None, :])
                l_last = tl.load(KL + keys + at_l[:, None] * stride + d_last[None, :])
            top, weight, acc = _pairs(
                q, kl, l_next, l_last, vl, KS + keys, VS + keys, stride, d, d_next, d_last,
                j_first, newest + 1, None, pos, window_s, top, weight, acc, factor,
                False, True, THIRD, PRECISION,
            )  # fmt: skip
        top, weight, acc = _edge(
            q, KL + keys, VL + keys, KS + keys, VS + keys, stride, d, d_next, d_last,
            j_first, newest, oldest, tiles - 1, pos, window_s, window_l, top, weight, acc, factor,
            BN, True, THIRD, PRECISION,
        )  # fmt: skip
    else:
        for tile in tl.range(0, tiles):
            top, weight, acc = _edge(
                q, KL + keys, VL + keys, KS + keys, VS + keys, stride, d, d_next, d_last,
                j_first, newest, oldest, tile, pos, window_s, window_l, top, weight, acc, factor,
                BN, False, THIRD, PRECISION,
            )  # fmt: skip
    weight = tl.where(row_ok, weight, 1.0)
    out = acc / weight[:, None]
    tl.store(OUT + queries * D + at[:, None] * D + d[None, :], out.to(OUT.dtype.element_ty), mask=ok)
    tl.store(LSE + queries + at, top * scale + tl.log(weight), mask=row_ok)
