"""Row-skipping products on a GPU: a compacted list of active rows, then a product that reads only those.

Deterministic: the list keeps the features' order, and partial sums are added up in a fixed one. The host never learns
how many rows are active; at full density the same bytes are read as by a dense product, so there is no switch.
"""

# Triton's own types do not tell what a decorated kernel takes.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tuning import tuned

SPLITS = 16
"""Programs that share a block of columns, each with a part of the list."""

BLOCKS = ((8, 128, 4), (16, 128, 4), (8, 256, 4), (16, 64, 2))
"""Rows read at once, columns and warps: what is tried on a GPU, the most promising first."""


@triton.jit
def compact_kernel(H, PLACES, VALUES, COUNT, F, RELU2: tl.constexpr, BF: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    n = 0
    for first in range(0, F, BF):
        f = first + tl.arange(0, BF)
        h = tl.load(H + b * F + f, mask=f < F, other=0.0).to(tl.float32)
        if RELU2:
            h = tl.where(h <= 0.0, 0.0, h * h)
        active = h != 0.0
        number = active.to(tl.int32)
        at = n + tl.cumsum(number, 0) - number
        tl.store(PLACES + b * F + at, f, mask=active)
        tl.store(VALUES + b * F + at, h, mask=active)
        n += tl.sum(number, 0)
    tl.store(COUNT + b, n)


@triton.jit
def gather_kernel(PLACES, VALUES, COUNT, DOWN, PARTS, F, D, SPLIT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    b = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    n = tl.load(COUNT + b)
    each = tl.cdiv(tl.cdiv(n, SPLIT), BR) * BR
    end = tl.minimum(n, (part + 1) * each)
    out = tl.zeros([BD], tl.float32)
    for first in range(part * each, end, BR):
        j = first + tl.arange(0, BR)
        place = tl.load(PLACES + b * F + j, mask=j < end, other=0).to(tl.int64)
        value = tl.load(VALUES + b * F + j, mask=j < end, other=0.0)
        rows = tl.load(DOWN + place[:, None] * D + d[None, :], mask=(j < end)[:, None] & (d < D)[None, :], other=0.0)
        out += tl.sum(rows.to(tl.float32) * value[:, None], 0)
    tl.store(PARTS + (b * SPLIT + part) * D + d, out, mask=d < D)


@functools.cache
def _launcher() -> Any:
    configurations = [triton.Config({"BR": rows, "BD": columns}, num_warps=warps) for rows, columns, warps in BLOCKS]
    return tuned(gather_kernel, configurations, key=("F", "D"))


def skip_rows(h: Tensor, down: Tensor, activation: str | None) -> Tensor:
    """As reference.skip_rows, summed in float32."""
    (B, F), D = h.shape, down.shape[1]
    h, down = h.contiguous(), down.contiguous()
    places = torch.empty(B, F, dtype=torch.int32, device=h.device)
    values = torch.empty(B, F, dtype=torch.float32, device=h.device)
    count = torch.empty(B, dtype=torch.int32, device=h.device)
    parts = torch.empty(B, SPLITS, D, dtype=torch.float32, device=h.device)
    compact_kernel[(B,)](h, places, values, count, F, RELU2=activation == "relu2", BF=1024, num_warps=4)
    _launcher()[lambda cut: (triton.cdiv(D, cut["BD"]), SPLITS, B)](
        places, values, count, down, parts, F, D, SPLIT=SPLITS
    )
    return parts.sum(1).to(h.dtype)
