"""The CPU's fast path: float32 tensors handed to cpu.cpp."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels import compiler

SOURCE = Path(__file__).with_suffix(".cpp")

SETS = {"best": 0, "plain": 1, "avx2": 2, "avx512": 3}
"""The instruction sets that the source is compiled for."""

_FORMS = {"trilinear": 0, "determinant": 1}


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
    instructions: str = "best",
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, D] in the dtype of q, and the natural log-sum [B, T, H] in float32."""
    B, T, H, D = q.shape
    inputs = [_plain(x) for x in (q, ks, vs, kl, vl)]
    out = torch.empty(q.shape, dtype=torch.float32)
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    _library().simplicial_forward(
        *(_at(x) for x in (*inputs, out, lse)),
        *(B, T, H, ks.shape[2], D, min(window_s, T), min(window_l, T)),
        *(scale, _FORMS[form], torch.get_num_threads(), SETS[instructions]),
    )
    return out.to(q.dtype), lse


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
    instructions: str = "best",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, ks, vs, kl, vl; the same bits whatever the number of threads."""
    (B, T, H, D), N = q.shape, ks.shape[2]
    ws, wl = min(window_s, T), min(window_l, T)
    delta = (grad.float() * out.float()).sum(-1) - grad_lse
    inputs = [_plain(x) for x in (grad, delta, q, ks, vs, kl, vl, lse)]
    grads = [torch.empty(x.shape, dtype=torch.float32) for x in (q, ks, vs, kl, vl)]
    library = _library()
    queries = library.simplicial_slab_queries(wl, H // N)
    slabs = torch.empty(B * N * -(-T // queries), 2 * (2 * queries + ws + wl), D)
    library.simplicial_backward(
        *(_at(x) for x in (*inputs, *grads, slabs)),
        *(B, T, H, N, D, ws, wl),
        *(scale, _FORMS[form], torch.get_num_threads(), SETS[instructions]),
    )
    dq, dks, dvs, dkl, dvl = (x.to(q.dtype) for x in grads)
    return dq, dks, dvs, dkl, dvl


def instruction_set() -> str:
    """The best instruction set of this machine that the source is compiled for."""
    number = _library().simplicial_instruction_set()
    return next(name for name, value in SETS.items() if value == number)


@functools.cache
def _library() -> ctypes.CDLL:
    library = compiler.load(SOURCE)
    sizes, rest = [ctypes.c_long] * 7, [ctypes.c_float, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    for function, tensors in ((library.simplicial_forward, 7), (library.simplicial_backward, 14)):
        function.argtypes = [ctypes.c_void_p] * tensors + sizes + rest
        function.restype = None
    library.simplicial_slab_queries.argtypes = [ctypes.c_long] * 2
    library.simplicial_slab_queries.restype = ctypes.c_long
    return library


def _plain(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32).contiguous()


def _at(x: Tensor) -> int:
    return x.data_ptr()
