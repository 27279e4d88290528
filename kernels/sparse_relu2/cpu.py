"""The CPU's fast path: float32 activations handed to cpu.cpp, which multiplies kept values only."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels import compiler

SOURCE = Path(__file__).with_suffix(".cpp")

SETS = {"best": 0, "plain": 1, "avx2": 2, "avx512": 3}
"""The instruction sets that the source is compiled for; one that the machine lacks becomes its best."""

DENSE_ABOVE = 0.3
"""Density of activations above which the dense product is taken. A cautious bar, from a prototype that was 2.5 times as
fast as dense at a density of 0.2; benchmarks/sparse_relu2.py shows where this machine breaks even."""


def compress(x: Tensor, activation: str | None) -> tuple[Tensor, Tensor]:
    """As reference.compress, bit for bit: values [M, K / 2] in x's dtype, metadata uint8 [M, K / 8]."""
    M, K = x.shape
    wide = _plain(x)
    values, metadata = torch.empty(M, K // 2), torch.empty(M, K // 8, dtype=torch.uint8)
    relu = int(activation == "relu2")
    _library().sparse_relu2_compress(
        *(one.data_ptr() for one in (wide, values, metadata)), M, K, relu, relu, torch.get_num_threads()
    )
    return values.to(x.dtype), metadata


def matmul(values: Tensor, metadata: Tensor, dense: Tensor, instructions: str = "best") -> Tensor:
    """[M, K] in the "dense" layout times [K, N], in the dtype of `dense`, summed in float32."""
    (M, half), N = values.shape, dense.shape[1]
    inputs = (_plain(values), metadata.contiguous(), _plain(dense))
    out = torch.empty(M, N)
    _library().sparse_relu2_matmul(
        *(one.data_ptr() for one in (*inputs, out)), M, 2 * half, N, torch.get_num_threads(), SETS[instructions]
    )
    return out.to(dense.dtype)


def skip_rows(h: Tensor, down: Tensor, activation: str | None, instructions: str = "best") -> Tensor:
    """[B, F] times [F, D], reading only the rows of `down` that a row of h has no zero for, in the dtype of h.

    Dense where a row's density is above DENSE_ABOVE.
    """
    (B, F), D = h.shape, down.shape[1]
    library, wide, weight = _library(), _plain(h), down.detach().contiguous()
    if weight.dtype not in (torch.float32, torch.bfloat16):
        weight = weight.float()
    out = torch.empty(B, D)
    places, values = torch.empty(F, dtype=torch.int32), torch.empty(F)
    for b in range(B):
        at = (places.data_ptr(), values.data_ptr())
        n = library.sparse_relu2_nonzeros(wide[b].data_ptr(), *at, F, int(activation == "relu2"))
        if n > DENSE_ABOVE * F:
            row = wide[b].relu().square() if activation == "relu2" else wide[b]
            out[b] = row.to(weight.dtype) @ weight
            continue
        library.sparse_relu2_skip_rows(
            *(*at, n, weight.data_ptr(), out[b].data_ptr(), D, int(weight.dtype == torch.bfloat16)),
            *(torch.get_num_threads(), SETS[instructions]),
        )
    return out.to(h.dtype)


def instruction_set() -> str:
    """The best instruction set of this machine that the source is compiled for."""
    number = _library().sparse_relu2_instruction_set()
    return next(name for name, value in SETS.items() if value == number)


@functools.cache
def _library() -> ctypes.CDLL:
    library = compiler.load(SOURCE)
    pointer, size, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    for name, given, returned in (
        ("compress", [pointer] * 3 + [size] * 2 + [number] * 3, None),
        ("matmul", [pointer] * 4 + [size] * 3 + [number] * 2, None),
        ("nonzeros", [pointer] * 3 + [size, number], size),
        ("skip_rows", [pointer] * 2 + [size] + [pointer] * 2 + [size] + [number] * 3, None),
    ):
        function = getattr(library, f"sparse_relu2_{name}")
        function.argtypes, function.restype = given, returned
    return library


def _plain(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32).contiguous()
