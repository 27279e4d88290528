"""Triton kernels of the backward pass of 2-simplicial attention, without atomics; README.md derives the loop orders."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false
# Triton's annotations do not describe what its compiler takes.

from __future__ import annotations

import triton
import triton.language as tl

from kernels.simplicial_attention.triton_forward import LOG2E, cross_fold, neighbours


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
def _pair_keys(KS, KL, kl, at, stride, j, d, d_next, d_last, ok, THIRD: tl.constexpr):
    """The keys of the pairs (j, l) of a tile: with them a head is plain attention over pairs."""
    if THIRD > 0:
        j_next = tl.load(KS + j * stride + d_next)
        j_last = tl.load(KS + j * stride + d_last)
        l_next = tl.load(KL + at[:, None] * stride + d_next[None, :], mask=ok, other=0.0)
        l_last = tl.load(KL + at[:, None] * stride + d_last[None, :], mask=ok, other=0.0)
        # q . (k_s x k_l) = (q x k_s) . k_l
        return cross_fold(j_next[None, :], j_last[None, :], l_next, l_last)
    else:
        return kl * tl.load(KS + j * stride + d)[None, :]


@triton.jit
def query_grad_kernel(
    Q, KS, VS, KL, VL, GRAD, LSE, DELTA, DQ, T, scale, window_s, window_l, H, N,
    G: tl.constexpr, D: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    THIRD: tl.constexpr, PRECISION: tl.constexpr,
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
    d_next, d_last = neighbours(d, THIRD)
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
            kk = _pair_keys(KS + keys, KL + keys, kl, at_l, stride, j, d, d_next, d_last, l_ok[:, None], THIRD)
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
    THIRD: tl.constexpr, PRECISION: tl.constexpr,
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
    d_next, d_last = neighbours(d, THIRD)
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
        kk = _pair_keys(KS + keys, KL + keys, kl, here, stride, j, d, d_next, d_last, l_ok[:, None], THIRD)
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
        if THIRD > 0:
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
