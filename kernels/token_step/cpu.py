"""The C++ path: cpu.cpp through ctypes. Its callers have asked `obstacle`, or know its answer."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels.compiler import why_not
from kernels.library import POINTER, REAL, declared
from kernels.token_step.reference import Norm

SOURCE = Path(__file__).with_name("cpu.cpp")
DTYPES = (torch.float32, torch.bfloat16)
MOST_ROWS = 64
"""Rows that cpu.cpp has room for."""


def obstacle(x: Tensor, *tensors: Tensor) -> str | None:
    """Why the C++ path cannot take x with these weights, keys and values; None when it can."""
    if x.dtype not in DTYPES or any(one.dtype != x.dtype for one in tensors):
        found = ", ".join(sorted({str(one.dtype) for one in (x, *tensors)}))
        return f"all its tensors must be float32 or all bfloat16, they are {found}"
    if any(one.device != x.device or not one.is_contiguous() for one in tensors):
        return "its weights, keys and values must be contiguous and on the CPU"
    if x.numel() > MOST_ROWS * x.shape[-1]:
        return f"it takes at most {MOST_ROWS} rows, x is {list(x.shape)}"
    if torch.is_grad_enabled() and any(one.requires_grad for one in (x, *tensors)):
        return "it has no gradients; call it under torch.no_grad()"
    return why_not(SOURCE)


def self_attention_step(
    x: Tensor,
    norm: Norm,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    rotation: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    places: Tensor,
) -> Tensor:
    (weight, eps), (q, k, v, o) = norm, weights
    B, G, C, K = keys.shape
    D, H = x.shape[-1], len(q) // K
    wide, weight, y = _wide(x), _wide(weight), torch.empty(x.shape)
    cosine, sine = _wide(rotation[0]), _wide(rotation[1])
    room = torch.empty(B * (D + 2 * (H + G) * K + H * C))
    _library().self_attention_step(
        wide.data_ptr(),
        weight.data_ptr(),
        eps,
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        o.data_ptr(),
        cosine.data_ptr(),
        sine.data_ptr(),
        K if len(cosine) > 1 else 0,
        keys.data_ptr(),
        values.data_ptr(),
        C,
        places.data_ptr(),
        1 if len(places) > 1 else 0,
        room.data_ptr(),
        y.data_ptr(),
        B,
        D,
        H,
        G,
        K,
        q.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return y if x.dtype == torch.float32 else y.to(x.dtype)


def cross_attention_step(
    x: Tensor,
    norm: Norm,
    q: Tensor,
    query_norm: Norm,
    out: Tensor,
    scale: float,
    keys: Tensor,
    values: Tensor,
    sees: Tensor | None,
) -> Tensor:
    (weight, eps), (query_weight, query_eps) = norm, query_norm
    B, G, S, K = keys.shape
    D, H = x.shape[-1], len(q) // K
    wide, weight, query_weight, y = _wide(x), _wide(weight), _wide(query_weight), torch.empty(x.shape)
    room = torch.empty(B * (D + 2 * H * K + H * S))
    mask = None if sees is None else sees.contiguous()
    _library().cross_attention_step(
        wide.data_ptr(),
        weight.data_ptr(),
        eps,
        q.data_ptr(),
        query_weight.data_ptr(),
        query_eps,
        out.data_ptr(),
        scale,
        keys.data_ptr(),
        values.data_ptr(),
        S,
        None if mask is None else mask.data_ptr(),
        room.data_ptr(),
        y.data_ptr(),
        B,
        D,
        H,
        G,
        K,
        q.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return y if x.dtype == torch.float32 else y.to(x.dtype)


def swiglu_step(x: Tensor, norm: Norm, gate: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    weight, eps = norm
    N, D = gate.shape
    M = x.numel() // D
    wide, weight, y = _wide(x), _wide(weight), torch.empty(x.shape)
    room = torch.empty(M * (D + N))
    _library().swiglu_step(
        wide.data_ptr(),
        weight.data_ptr(),
        eps,
        gate.data_ptr(),
        up.data_ptr(),
        down.data_ptr(),
        scale,
        room.data_ptr(),
        y.data_ptr(),
        M,
        D,
        N,
        gate.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return y if x.dtype == torch.float32 else y.to(x.dtype)


def head_step(x: Tensor, norm: Norm, weight: Tensor) -> Tensor:
    norm_weight, eps = norm
    N, D = weight.shape
    M = x.numel() // D
    wide, norm_weight, y = _wide(x), _wide(norm_weight), torch.empty(*x.shape[:-1], N)
    room = torch.empty(M * D)
    _library().head_step(
        wide.data_ptr(),
        norm_weight.data_ptr(),
        eps,
        weight.data_ptr(),
        room.data_ptr(),
        y.data_ptr(),
        M,
        D,
        N,
        weight.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return y if x.dtype == torch.float32 else y.to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """x as cpu.cpp reads it: float32, one row behind the other. The caller keeps it alive through the call."""
    return x.float().contiguous()


@functools.cache
def _library() -> ctypes.CDLL:
    p, real, size, tail = POINTER, REAL, ctypes.c_int64, [ctypes.c_int32] * 2
    return declared(
        SOURCE,
        {
            "self_attention_step": ([p, p, real, *[p] * 6, size, p, p, size, p, size, p, p, *[size] * 5, *tail], None),
            "cross_attention_step": (
                [p, p, real, p, p, real, p, real, p, p, size, p, p, p, *[size] * 5, *tail],
                None,
            ),
            "swiglu_step": ([p, p, real, p, p, p, real, p, p, size, size, size, *tail], None),
            "head_step": ([p, p, real, p, p, p, size, size, size, *tail], None),
        },
    )
