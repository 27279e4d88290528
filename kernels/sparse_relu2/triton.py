"""2:4 compression on a GPU: select, square and pack in one read, by integer keys.

The bits of floats that are not negative order as the floats do. A key is those bits, then the tie order of the place
in its group (place ^ 1 is 1, 0, 3, 2: of equals the places 2, 3, 0, 1), so that a network of minima and maxima over
keys finds the two largest of four and brings their places along. Only survivors are squared.

16-bit dtypes have keys of 32 bits, float32 of 64. A NaN counts as the largest, but for one with its sign bit set under
relu^2, which counts as negative: NVIDIA's own arithmetic makes NaN without it.
"""

# Triton's own types do not tell what a decorated kernel takes.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportAssignmentType=false
from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import interpreted
from kernels.sparse_relu2.packed import Packed, counters
from kernels.tuning import tuned

BLOCKS = ((32, 128, 4), (32, 256, 4), (64, 128, 8), (32, 128, 2))
"""Rows, columns and warps of a block of the one-way compression: what is tried on a GPU, the most promising first."""

SIDE, SIDE_WARPS = 32, (2, 1, 4)
"""Rows and columns of a block that is compressed both ways (part of buffers' shapes), and warps that are tried."""

_LAYOUTS = {"dense": 0, "sm80": 1, "sm90": 2}


@triton.jit
def _bits(x, WIDE: tl.constexpr):
    """Bits of floats as signed integers that have room for a key."""
    if WIDE:
        return x.to(tl.int32, bitcast=True).to(tl.int64)
    return x.to(tl.int16, bitcast=True).to(tl.int32)


@triton.jit
def _floats(bits, TYPE: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:
        return bits.to(tl.int32).to(TYPE, bitcast=True)
    return bits.to(tl.int16).to(TYPE, bitcast=True)


@triton.jit
def _two_of_four(bits, BR: tl.constexpr, BC: tl.constexpr, SIGNED: tl.constexpr, WIDE: tl.constexpr):
    """bits [BR, BC] -> kept bits [BR, BC / 2], above them rubbish that `_floats` drops, and nibbles [BR, BC / 4].

    SIGNED: bits may be of negative floats, whose magnitude counts; else they are of floats >= 0.
    """
    even, odd = tl.split(tl.reshape(bits, (BR, BC // 4, 2, 2)))
    b0, b2 = tl.split(even)
    b1, b3 = tl.split(odd)
    if SIGNED:
        # Lowest the sign, which decides between equal magnitudes of one place only: never.
        MASK: tl.constexpr = 0x7FFFFFFF if WIDE else 0x7FFF
        k0 = (b0 & MASK) << 3 | 2 | (b0 < 0).to(b0.dtype)
        k1 = (b1 & MASK) << 3 | (b1 < 0).to(b1.dtype)
        k2 = (b2 & MASK) << 3 | 6 | (b2 < 0).to(b2.dtype)
        k3 = (b3 & MASK) << 3 | 4 | (b3 < 0).to(b3.dtype)
    else:
        k0 = b0 << 2 | 1
        k1 = b1 << 2
        k2 = b2 << 2 | 3
        k3 = b3 << 2 | 2
    h01 = tl.maximum(k0, k1)
    h23 = tl.maximum(k2, k3)
    first = tl.maximum(h01, h23)
    second = tl.maximum(tl.minimum(h01, h23), tl.maximum(tl.minimum(k0, k1), tl.minimum(k2, k3)))
    if SIGNED:
        SHIFT: tl.constexpr = 31 if WIDE else 15
        first_bits = first >> 3 | (first & 1) << SHIFT
        second_bits = second >> 3 | (second & 1) << SHIFT
        first_place = (first >> 1 & 3) ^ 1
        second_place = (second >> 1 & 3) ^ 1
    else:
        first_bits = first >> 2
        second_bits = second >> 2
        first_place = (first & 3) ^ 1
        second_place = (second & 3) ^ 1
    # The place above the bits: the minimum of the two is the one that comes first.
    ABOVE: tl.constexpr = 32 if WIDE else 16
    one = first_place << ABOVE | first_bits
    two = second_place << ABOVE | second_bits
    low = tl.minimum(one, two)
    high = tl.maximum(one, two)
    nibble = (low >> ABOVE | (high >> ABOVE) << 2).to(tl.int32)
    return tl.reshape(tl.join(low, high), (BR, BC // 2)), nibble


@triton.jit
def _square(x, INTERPRET: tl.constexpr):
    # The interpreter multiplies bfloat16 as integers; a GPU rounds the product of two halves once by itself.
    if INTERPRET:
        return (x.to(tl.float32) * x.to(tl.float32)).to(x.dtype)
    return x * x


@triton.jit
def _store_metadata(META, nibble, r0, c0, M, K, BR: tl.constexpr, BC: tl.constexpr, LAYOUT: tl.constexpr):
    r = r0 + tl.arange(0, BR)
    low, high = tl.split(tl.reshape(nibble, (BR, BC // 8, 2)))
    byte = low | high << 4  # [BR, BC / 8]
    if LAYOUT == 1:
        low, high = tl.split(tl.reshape(byte, (BR, BC // 16, 2)))
        word = low | high << 8
        k = c0 // 16 + tl.arange(0, BC // 16)
        row = r // 32 * 32 + r % 8 * 4 + r % 32 // 8
        odd_row = (row % 2)[:, None]
        odd_word = (k % 2)[None, :]
        swap = odd_word - odd_row
        # Only where one of the two is odd: +1 for an even row and odd word, -1 the other way round.
        column = k[None, :] - swap
        at = (column // 2) * M * 2 + (row[:, None] + swap) * 2 + column % 2
        tl.store(META + at, word.to(tl.int16), mask=(r < M)[:, None] & (k < K // 16)[None, :])
    else:
        k = c0 // 8 + tl.arange(0, BC // 8)
        if LAYOUT == 2:
            at = (k // 16)[None, :] * (M * 16) + r[:, None] * 16 + (k % 16)[None, :]
        else:
            at = r[:, None] * (K // 8) + k[None, :]
        tl.store(META + at, byte.to(tl.uint8), mask=(r < M)[:, None] & (k < K // 8)[None, :])


@triton.jit
def compress_kernel(
    X,
    VALUES,
    META,
    M,
    K,
    stride,
    RELU2: tl.constexpr,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    INTERPRET: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    r0 = tl.program_id(0) * BR
    c0 = tl.program_id(1) * BC
    r = r0 + tl.arange(0, BR)
    c = c0 + tl.arange(0, BC)
    x = tl.load(X + r[:, None].to(tl.int64) * stride + c[None, :], mask=(r < M)[:, None] & (c < K)[None, :], other=0.0)
    bits = _bits(x, WIDE)
    if RELU2:
        bits = tl.maximum(bits, 0)
    kept, nibble = _two_of_four(bits, BR, BC, not RELU2, WIDE)
    values = _floats(kept, X.dtype.element_ty, WIDE)
    if RELU2:
        values = _square(values, INTERPRET)
    half = c0 // 2 + tl.arange(0, BC // 2)
    at = r[:, None].to(tl.int64) * (K // 2) + half[None, :]
    tl.store(VALUES + at, values, mask=(r < M)[:, None] & (half < K // 2)[None, :])
    _store_metadata(META, nibble, r0, c0, M, K, BR, BC, LAYOUT)


@triton.jit
def _spread(values, nibble, BR: tl.constexpr, BC: tl.constexpr):
    """values [BR, BC / 2] back to their places: [BR, BC], zeros elsewhere."""
    first, second = tl.split(tl.reshape(values, (BR, BC // 4, 2)))
    p = nibble & 3
    q = nibble >> 2
    zero = tl.zeros_like(first)
    y0 = tl.where(p == 0, first, zero)
    y1 = tl.where(p == 1, first, tl.where(q == 1, second, zero))
    y2 = tl.where(p == 2, first, tl.where(q == 2, second, zero))
    y3 = tl.where(q == 3, second, zero)
    return tl.reshape(tl.join(tl.join(y0, y2), tl.join(y1, y3)), (BR, BC))


@triton.jit
def _store_turned(
    bits,
    TURNED,
    TURNED_META,
    r0,
    c0,
    M,
    K,
    SQUARE: tl.constexpr,
    TYPE: tl.constexpr,
    WIDE: tl.constexpr,
    INTERPRET: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """Compresses the block [BR, BC] along its rows, into [K, M / 2]."""
    kept, nibble = _two_of_four(tl.trans(bits), BC, BR, not SQUARE, WIDE)
    values = _floats(kept, TYPE, WIDE)
    if SQUARE:
        values = _square(values, INTERPRET)
    c = c0 + tl.arange(0, BC)
    half = r0 // 2 + tl.arange(0, BR // 2)
    at = c[:, None].to(tl.int64) * (M // 2) + half[None, :]
    tl.store(TURNED + at, values, mask=(c < K)[:, None] & (half < M // 2)[None, :])
    _store_metadata(TURNED_META, nibble, c0, r0, K, M, BC, BR, 0)


@triton.jit
def pack_kernel(
    H,
    KEPT,
    META,
    TURNED,
    TURNED_META,
    COUNTS,
    SUMS,
    M,
    K,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    INTERPRET: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """One read of pre-activations: both compressions, and each block's part of the counters."""
    r0 = tl.program_id(0) * BR
    c0 = tl.program_id(1) * BC
    r = r0 + tl.arange(0, BR)
    c = c0 + tl.arange(0, BC)
    inside = (r < M)[:, None] & (c < K)[None, :]
    bits = tl.maximum(_bits(tl.load(H + r[:, None].to(tl.int64) * K + c[None, :], mask=inside, other=0.0), WIDE), 0)
    kept, nibble = _two_of_four(bits, BR, BC, False, WIDE)
    values = _floats(kept, H.dtype.element_ty, WIDE)
    half = c0 // 2 + tl.arange(0, BC // 2)
    at = r[:, None].to(tl.int64) * (K // 2) + half[None, :]
    tl.store(KEPT + at, values, mask=(r < M)[:, None] & (half < K // 2)[None, :])
    _store_metadata(META, nibble, r0, c0, M, K, BR, BC, 0)
    turned = _bits(_spread(values, nibble, BR, BC), WIDE) if MASKED else bits
    _store_turned(turned, TURNED, TURNED_META, r0, c0, M, K, True, H.dtype.element_ty, WIDE, INTERPRET, BR, BC)
    active = (bits != 0).to(tl.int32)
    tl.store(COUNTS + tl.program_id(0).to(tl.int64) * K + c, tl.sum(active, 0), mask=c < K)
    full = tl.sum(tl.reshape(active, (BR, BC // 4, 4)), 2) > 2
    whole = _floats(bits, H.dtype.element_ty, WIDE).to(tl.float32)
    rest = values.to(tl.float32)
    block = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 3
    tl.store(SUMS + block, tl.sum(tl.sum(full.to(tl.float32), 1), 0))
    tl.store(SUMS + block + 1, tl.sum(tl.sum(whole * whole * whole * whole, 1), 0))
    tl.store(SUMS + block + 2, tl.sum(tl.sum(rest * rest * rest * rest, 1), 0))


@triton.jit
def gradient_kernel(
    GRAD,
    KEPT,
    META,
    VALUES,
    TURNED,
    TURNED_META,
    M,
    K,
    WIDE: tl.constexpr,
    INTERPRET: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """dh = 2 dy2 relu(h) where the forward kept something: along features as the forward's, along tokens anew."""
    r0 = tl.program_id(0) * BR
    c0 = tl.program_id(1) * BC
    r = r0 + tl.arange(0, BR)
    c = c0 + tl.arange(0, BC)
    inside = (r < M)[:, None] & (c < K)[None, :]
    grad = tl.load(GRAD + r[:, None].to(tl.int64) * K + c[None, :], mask=inside, other=0.0)
    half = c0 // 2 + tl.arange(0, BC // 2)
    mask = (r < M)[:, None] & (half < K // 2)[None, :]
    at = r[:, None].to(tl.int64) * (K // 2) + half[None, :]
    kept = tl.load(KEPT + at, mask=mask, other=0.0)
    k = c0 // 8 + tl.arange(0, BC // 8)
    byte = tl.load(META + r[:, None] * (K // 8) + k[None, :], mask=(r < M)[:, None] & (k < K // 8)[None, :], other=0)
    byte = byte.to(tl.int32)
    nibble = tl.reshape(tl.join(byte & 15, byte >> 4), (BR, BC // 4))
    even, odd = tl.split(tl.reshape(grad, (BR, BC // 4, 2, 2)))
    g0, g2 = tl.split(even)
    g1, g3 = tl.split(odd)
    p = nibble & 3
    q = nibble >> 2
    first = tl.where(p == 0, g0, tl.where(p == 1, g1, g2))
    second = tl.where(q == 1, g1, tl.where(q == 2, g2, g3))
    gathered = tl.reshape(tl.join(first, second), (BR, BC // 2)).to(tl.float32)
    values = (2.0 * gathered * kept.to(tl.float32)).to(GRAD.dtype.element_ty)
    tl.store(VALUES + at, values, mask=mask)
    spread = _bits(_spread(values, nibble, BR, BC), WIDE)
    _store_turned(spread, TURNED, TURNED_META, r0, c0, M, K, False, GRAD.dtype.element_ty, WIDE, INTERPRET, BR, BC)


@functools.cache
def _launcher(kernel: Any) -> Any:
    blocks = BLOCKS if kernel is compress_kernel else tuple((SIDE, SIDE, warps) for warps in SIDE_WARPS)
    configurations = [triton.Config({"BR": rows, "BC": columns}, num_warps=warps) for rows, columns, warps in blocks]
    # Rows come and go with the batch: a pick for a width serves them all.
    return tuned(kernel, configurations, key=("K", "WIDE", "LAYOUT", "RELU2", "MASKED"))


def compress(x: Tensor, layout: str, activation: str | None) -> tuple[Tensor, Tensor]:
    """As reference.compress, with the metadata in its layout."""
    if x.stride(1) != 1:
        x = x.contiguous()
    M, K = x.shape
    values = torch.empty(M, K // 2, dtype=x.dtype, device=x.device)
    shape, dtype = {
        "dense": ((M, K // 8), torch.uint8),
        "sm80": ((M, K // 16), torch.int16),
        "sm90": ((M * K // 8,), torch.uint8),
    }[layout]
    metadata = torch.empty(shape, dtype=dtype, device=x.device)
    _launcher(compress_kernel)[lambda cut: (triton.cdiv(M, cut["BR"]), triton.cdiv(K, cut["BC"]))](
        *(x, values, metadata, M, K, x.stride(0)),
        RELU2=activation == "relu2",
        LAYOUT=_LAYOUTS[layout],
        WIDE=x.dtype == torch.float32,
        INTERPRET=interpreted(),
    )
    return values, metadata


def pack(h: Tensor, real: int, keep_mask: bool) -> Packed:
    """As feed_forward.pack."""
    M, K = h.shape
    h = h.contiguous()
    grid = (triton.cdiv(M, SIDE), triton.cdiv(K, SIDE))
    kept, turned = h.new_empty(M, K // 2), h.new_empty(K, M // 2)
    metadata = h.new_empty(M, K // 8, dtype=torch.uint8)
    turned_metadata = h.new_empty(K, M // 8, dtype=torch.uint8)
    counts = h.new_empty(grid[0], K, dtype=torch.int32)
    sums = h.new_empty(grid[0] * grid[1], 3, dtype=torch.float32)
    _launcher(pack_kernel)[grid](
        *(h, kept, metadata, turned, turned_metadata, counts, sums, M, K),
        MASKED=keep_mask,
        WIDE=h.dtype == torch.float32,
        INTERPRET=interpreted(),
    )
    number, (violating, energy, remaining) = counts.sum(0, dtype=torch.int32), sums.sum(0)
    return Packed(
        *(kept, metadata, turned, turned_metadata, number),
        counters(number, violating, energy, remaining, real, K),
    )


def pack_gradient(grad: Tensor, kept: Tensor, metadata: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dh along features (its metadata is the forward's), and along tokens with metadata."""
    M, K = grad.shape
    values, turned = grad.new_empty(M, K // 2), grad.new_empty(K, M // 2)
    turned_metadata = grad.new_empty(K, M // 8, dtype=torch.uint8)
    _launcher(gradient_kernel)[(triton.cdiv(M, SIDE), triton.cdiv(K, SIDE))](
        *(grad.contiguous(), kept, metadata, values, turned, turned_metadata, M, K),
        WIDE=grad.dtype == torch.float32,
        INTERPRET=interpreted(),
    )
    return values, turned, turned_metadata
