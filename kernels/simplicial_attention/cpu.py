"""The CPU's fast path: float32 tensors handed to cpu.cpp."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels.library import INTEGER, POINTER, REAL, SETS, SIZE, addresses, declared, plain, set_of

SOURCE = Path(__file__).with_suffix(".cpp")

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
    inputs = [plain(x) for x in (q, ks, vs, kl, vl)]
    out = torch.empty(q.shape, dtype=torch.float32)
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    _library().simplicial_forward(
        *addresses(*inputs, out, lse),
        *(B, T, H, ks.shape[2], D, window_s, window_l),
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
    delta = (grad.float() * out.float()).sum(-1) - grad_lse
    inputs = [plain(x) for x in (grad, delta, q, ks, vs, kl, vl, lse)]
    grads = [torch.empty(x.shape, dtype=torch.float32) for x in (q, ks, vs, kl, vl)]
    library = _library()
    queries = library.simplicial_slab_queries(window_l, H // N)
    slabs = torch.empty(B * N * -(-T // queries), 2 * (2 * queries + window_s + window_l), D)
    library.simplicial_backward(
        *addresses(*inputs, *grads, slabs),
        *(B, T, H, N, D, window_s, window_l),
        *(scale, _FORMS[form], torch.get_num_threads(), SETS[instructions]),
    )
    dq, dks, dvs, dkl, dvl = (x.to(q.dtype) for x in grads)
    return dq, dks, dvs, dkl, dvl


def instruction_set() -> str:
    """The best instruction set of this machine that the source is compiled for."""
    return set_of(_library().simplicial_instruction_set())


@functools.cache
def _library() -> ctypes.CDLL:
    rest = [SIZE] * 7 + [REAL] + [INTEGER] * 3
    return declared(
        SOURCE,
        {
            "simplicial_forward": ([POINTER] * 7 + rest, None),
            "simplicial_backward": ([POINTER] * 14 + rest, None),
            "simplicial_slab_queries": ([SIZE] * 2, SIZE),
            "simplicial_instruction_set": ([], INTEGER),
        },
    )
