"""2-simplicial attention in two sliding windows (Fast and Simplex, arXiv 2507.02754).

A query looks at pairs: one row j of a first window and one row l of a second. The score of a pair is a form that is
linear in all three vectors, one softmax runs over all pairs, and a pair's value is the product of its rows' values:

    score(i, j, l) = scale * sum_d q[i, d] k1[j, d] k2[l, d]             i - window1 < j <= i, i - window2 < l <= i
    out(i) = sum_{j, l} softmax_{(j, l)}(score(i)) * v1[j] * v2[l]

README.md has the derivation of the kernels and their costs.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import compiler
from kernels.backend import Backend, Chosen, choose
from kernels.simplicial_attention import cpu, reference
from kernels.simplicial_attention.decode import simplicial_decode

Form = Literal["trilinear", "determinant"]

__all__ = ["Form", "simplicial_attention", "simplicial_decode"]

MAX_TRITON_WIDTH = 128
"""The widest head that the Triton kernels hold in registers."""


@overload
def simplicial_attention(
    q: Tensor,
    k1: Tensor,
    v1: Tensor,
    k2: Tensor,
    v2: Tensor,
    *,
    window1: int,
    window2: int,
    scale: float | None = None,
    form: Form = "trilinear",
    return_lse: Literal[False] = False,
    backend: Backend = "auto",
) -> Tensor: ...


@overload
def simplicial_attention(
    q: Tensor,
    k1: Tensor,
    v1: Tensor,
    k2: Tensor,
    v2: Tensor,
    *,
    window1: int,
    window2: int,
    scale: float | None = None,
    form: Form = "trilinear",
    return_lse: Literal[True],
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]: ...


def simplicial_attention(
    q: Tensor,
    k1: Tensor,
    v1: Tensor,
    k2: Tensor,
    v2: Tensor,
    *,
    window1: int,
    window2: int,
    scale: float | None = None,
    form: Form = "trilinear",
    return_lse: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each token to pairs of a row of its first and a row of its second window.

    q [B, T, H, D]; k1, v1, k2, v2 [B, T, N, D] with H a multiple of N: query head h reads key head h // (H / N).
    Windows count rows and include the token itself. `scale` defaults to D ** -0.5. Returns [B, T, H, D]; with
    `return_lse` also the natural log of the sum of the exponentials of all scores, [B, T, H] in float32 (float64 for
    float64 tensors). Differentiable once in all five, from both outputs.

    `form="determinant"` scores by the sum of determinants of [q, k1, k2] over chunks of three components (the last
    chunk filled up with zeros), which a common rotation of the three vectors leaves as it is.

    ValueError for shapes, windows or a scale that make no sense, and for a backend that was asked for by name and
    cannot run (kernels/backend.py).
    """
    D = _check(q, k1, v1, k2, v2, window1, window2, form)
    factor = D**-0.5 if scale is None else float(scale)
    if not 0 < abs(factor) < float("inf"):
        raise ValueError(f"scale ({factor}) must be finite and not 0")
    negative = factor < 0
    if window1 > window2:
        # Both forms are symmetric in the two streams but for the determinant's sign; kernels want the small one first.
        k1, v1, window1, k2, v2, window2 = k2, v2, window2, k1, v1, window1
        negative ^= form == "determinant"
    if form == "determinant" and D % 3:
        q, k1, v1, k2, v2 = (F.pad(x, (0, -D % 3)) for x in (q, k1, v1, k2, v2))
    if negative:
        # Exact, and lets the kernels take the maximum before they scale.
        q = -q
    out, lse = _forward(q, k1, v1, k2, v2, window1, window2, abs(factor), form, backend)
    out = out[..., :D]
    return (out, lse) if return_lse else out


@torch.library.custom_op("scion::simplicial_attention", mutates_args=())
def _forward(
    q: Tensor,
    ks: Tensor,
    vs: Tensor,
    kl: Tensor,
    vl: Tensor,
    window_s: int,
    window_l: int,
    scale: float,
    form: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    chosen = _choose(q, form, backend)
    window_s, window_l = _within(q, window_s, window_l)
    if chosen == "triton":
        from kernels.simplicial_attention import triton

        return triton.forward(q, ks, vs, kl, vl, window_s, window_l, scale, form)
    if chosen == "cpu":
        return cpu.forward(q, ks, vs, kl, vl, window_s, window_l, scale, form)
    return reference.forward(q, ks, vs, kl, vl, window_s, window_l, scale, form)


@torch.library.custom_op("scion::simplicial_attention_backward", mutates_args=())
def _backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    chosen = _choose(q, form, backend)
    window_s, window_l = _within(q, window_s, window_l)
    if chosen == "triton":
        from kernels.simplicial_attention import triton

        return triton.backward(grad, grad_lse, q, ks, vs, kl, vl, out, lse, window_s, window_l, scale, form)
    if chosen == "cpu":
        return cpu.backward(grad, grad_lse, q, ks, vs, kl, vl, out, lse, window_s, window_l, scale, form)
    return reference.backward(grad, grad_lse, q, ks, vs, kl, vl, out, lse, window_s, window_l, scale, form)


@_forward.register_fake
def _(q: Tensor, ks: Tensor, vs: Tensor, kl: Tensor, vl: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=wide)


@_backward.register_fake
def _(grad: Tensor, grad_lse: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in rest[:5])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.rest = inputs[5:]


def _differentiate(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad, grad_lse, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _choose(q: Tensor, form: str, backend: str) -> Chosen:
    obstacles = {"cpu": functools.partial(_cpu_obstacle, q), "triton": functools.partial(_triton_obstacle, q, form)}
    return choose("simplicial_attention", cast(Backend, backend), q.device, obstacles)


def _cpu_obstacle(q: Tensor) -> str | None:
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the tensors are {q.dtype}"
    return compiler.why_not(Path(cpu.SOURCE))


def _triton_obstacle(q: Tensor, form: str) -> str | None:
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 and float16, the tensors are {q.dtype}"
    most = MAX_TRITON_WIDTH if form == "trilinear" else MAX_TRITON_WIDTH // 24 * 24
    if q.shape[-1] > most:
        return f"heads are {q.shape[-1]} wide, at most {most} fit"
    return None


def _within(q: Tensor, *windows: int) -> tuple[int, ...]:
    """Windows that end with the text, as every backend takes them."""
    return tuple(min(window, q.shape[1]) for window in windows)


def _check(q: Tensor, k1: Tensor, v1: Tensor, k2: Tensor, v2: Tensor, window1: int, window2: int, form: str) -> int:
    if q.ndim != 4 or 0 in q.shape:
        raise ValueError(f"q must be [B, T, H, D] with none of them 0, not {list(q.shape)}")
    B, T, H, D = q.shape
    for name, x in {"k1": k1, "v1": v1, "k2": k2, "v2": v2}.items():
        if x.ndim != 4 or x.shape[:2] != (B, T) or x.shape[3] != D or x.shape != k1.shape:
            raise ValueError(f"{name} must be [{B}, {T}, key heads, {D}] as q is, not {list(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, q is {q.dtype} on {q.device}")
    if H % k1.shape[2]:
        raise ValueError(f"heads ({H}) must be a multiple of key heads ({k1.shape[2]})")
    if not q.dtype.is_floating_point:
        raise ValueError(f"q must be of a floating dtype, not {q.dtype}")
    for name, window in {"window1": window1, "window2": window2}.items():
        if window < 1:
            raise ValueError(f"{name} ({window}) must be at least 1: a token sees itself")
    if form not in ("trilinear", "determinant"):
        raise ValueError(f"no form {form!r}; forms: trilinear, determinant")
    return D
