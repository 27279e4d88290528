"""The CPU's fast path: float32 activations handed to cpu.cpp, which multiplies kept values only."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels.library import INTEGER, POINTER, SETS, SIZE, addresses, declared, plain, set_of

SOURCE = Path(__file__).with_suffix(".cpp")

DENSE_ABOVE = 0.9
"""Density of activations above which all rows are read in their order. Measured (benchmarks/sparse_relu2.py): skipping
pays, if little, up to a density of 1; from here on it saves less than a tenth of the rows."""


def compress(x: Tensor, activation: str | None) -> tuple[Tensor, Tensor]:
    """As reference.compress, bit for bit: values [M, K / 2] in x's dtype, metadata uint8 [M, K / 8]."""
    M, K = x.shape
    wide = plain(x)
    values, metadata = torch.empty(M, K // 2), torch.empty(M, K // 8, dtype=torch.uint8)
    relu = int(activation == "relu2")
    _library().sparse_relu2_compress(*addresses(wide, values, metadata), M, K, relu, relu, torch.get_num_threads())
    return values.to(x.dtype), metadata


def matmul(values: Tensor, metadata: Tensor, dense: Tensor, instructions: str = "best") -> Tensor:
    """[M, K] in the "dense" layout times [K, N], in the dtype of `dense`, summed in float32."""
    (M, half), N = values.shape, dense.shape[1]
    inputs = (plain(values), metadata.contiguous(), plain(dense))
    out = torch.empty(M, N)
    _library().sparse_relu2_matmul(
        *addresses(*inputs, out), M, 2 * half, N, torch.get_num_threads(), SETS[instructions]
    )
    return out.to(dense.dtype)


def skip_rows(h: Tensor, down: Tensor, activation: str | None, instructions: str = "best") -> Tensor:
    """[B, F] times [F, D], reading only the rows of `down` that a row of h has no zero for, in the dtype of h.

    Dense where a row's density is above DENSE_ABOVE.
    """
    (B, F), D = h.shape, down.shape[1]
    library, wide, weight = _library(), plain(h), down.detach().contiguous()
    if weight.dtype not in (torch.float32, torch.bfloat16):
        weight = weight.float()
    out = torch.empty(B, D)
    places, values = torch.empty(F, dtype=torch.int32), torch.empty(F)
    for b in range(B):
        at = addresses(places, values)
        n = library.sparse_relu2_nonzeros(wide[b].data_ptr(), *at, F, int(activation == "relu2"))
        if n > DENSE_ABOVE * F:
            # All rows in their order, by the same loop: PyTorch's product of a vector with a matrix that is stored this
            # way took 40 times as long in bfloat16, where a processor has no instructions for it.
            places, n = torch.arange(F, dtype=torch.int32), F
            values = wide[b].relu().square() if activation == "relu2" else wide[b].clone()
            at = addresses(places, values)
        library.sparse_relu2_skip_rows(
            *(*at, n, weight.data_ptr(), out[b].data_ptr(), D, int(weight.dtype == torch.bfloat16)),
            *(torch.get_num_threads(), SETS[instructions]),
        )
    return out.to(h.dtype)


def instruction_set() -> str:
    """The best instruction set of this machine that the source is compiled for."""
    return set_of(_library().sparse_relu2_instruction_set())


@functools.cache
def _library() -> ctypes.CDLL:
    return declared(
        SOURCE,
        {
            "sparse_relu2_compress": ([POINTER] * 3 + [SIZE] * 2 + [INTEGER] * 3, None),
            "sparse_relu2_matmul": ([POINTER] * 4 + [SIZE] * 3 + [INTEGER] * 2, None),
            "sparse_relu2_nonzeros": ([POINTER] * 3 + [SIZE, INTEGER], SIZE),
            "sparse_relu2_skip_rows": ([POINTER] * 2 + [SIZE] + [POINTER] * 2 + [SIZE] + [INTEGER] * 3, None),
            "sparse_relu2_instruction_set": ([], INTEGER),
        },
    )
