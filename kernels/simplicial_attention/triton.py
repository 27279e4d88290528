"""The GPU's fast path: what is allocated, launched and tuned around the Triton kernels."""

# pyright: reportCallIssue=false, reportArgumentType=false
# Triton's annotations do not describe how its kernels are launched.

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from kernels.backend import interpreted
from kernels.simplicial_attention.triton_backward import (
    delta_kernel,
    key_grad_kernel,
    query_grad_kernel,
    small_grad_kernel,
)
from kernels.simplicial_attention.triton_forward import forward_kernel
from kernels.tuning import tuned


def forward(
    q: Tensor, ks: Tensor, vs: Tensor, kl: Tensor, vl: Tensor, window_s: int, window_l: int, scale: float, form: str
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, D] in the dtype of q, and the natural log-sum [B, T, H] in float32."""
    (B, T, H, D), N = q.shape, ks.shape[2]
    shape = shapes(q, N, form)
    q, ks, vs, kl, vl = (_plain(x, form) for x in (q, ks, vs, kl, vl))
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    _launcher(forward_kernel, H // N, shape["D"], form, _arch(q))[_grid(T, B * N, H // N)](
        *(q, ks, vs, kl, vl, out, lse, T, scale, window_s, window_l, H, N), **shape
    )
    return _restored(out, D, form), lse


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, ks, vs, kl, vl; two calls give the same bits."""
    (B, T, H, D), N = q.shape, ks.shape[2]
    G, ws, wl = H // N, window_s, window_l
    shape = shapes(q, N, form)
    grad, q, ks, vs, kl, vl, out = (_plain(x, form) for x in (grad, q, ks, vs, kl, vl, out))
    grad_lse = grad_lse.contiguous()
    delta = torch.empty_like(lse)
    rows = B * T * H
    delta_kernel[(triton.cdiv(rows, 32),)](out, grad, grad_lse, delta, rows, D=shape["D"], BR=32)
    dq = torch.empty_like(q)
    given = (q, ks, vs, kl, vl, grad, lse, delta)
    _launcher(query_grad_kernel, G, shape["D"], form, _arch(q))[_grid(T, B * N, G)](
        *given, dq, T, scale, ws, wl, H, N, **shape
    )
    # A tile's keys are part of the buffers' shape, so that they are not tuned but told.
    keys = key_tile(G, shape["D"], form, _arch(q)).keys
    count, width = triton.cdiv(T, keys), keys + ws + wl - 2
    dkl, dvl = (torch.zeros(kl.shape, dtype=torch.float32, device=q.device) for _ in range(2))
    part_k, part_v = (
        torch.empty(B * N, count, width, shape["D"], dtype=torch.float32, device=q.device) for _ in range(2)
    )
    pair_k, pair_v, dks, dvs = (torch.empty_like(kl) for _ in range(4))
    _launcher(key_grad_kernel, G, shape["D"], form, _arch(q))[(count, B * N)](
        *given, dkl, dvl, part_k, part_v, pair_k, pair_v, T, scale, ws, wl, H, N, width, **shape
    )
    small_grad_kernel[(T, B * N)](
        *(part_k, part_v, dks, dvs, T, scale, ws, wl, N, count, width), D=shape["D"], BN=keys, num_warps=1
    )
    dkl, dvl = dkl.mul_(scale).to(q.dtype), dvl.to(q.dtype)
    dq, dks, dvs, dkl, dvl = (_restored(x, D, form) for x in (dq, dks, dvs, dkl, dvl))
    return dq, dks, dvs, dkl, dvl


def shapes(q: Tensor, key_heads: int, form: str) -> dict[str, Any]:
    """The compile-time arguments that the shapes of the call decide; a tile decides the others."""
    width = q.shape[-1]
    return {
        "G": q.shape[2] // key_heads,
        "D": padded(width, form),
        "THIRD": third(width) if form == "determinant" else 0,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }


def third(width: int) -> int:
    """Columns that each component of the determinant's chunks takes, filled up so that loads of 16 bytes stay whole."""
    return -(-width // 24) * 8


def padded(width: int, form: str) -> int:
    """The head width that kernels work with: the next power of two, zeros in what is added."""
    return max(16, triton.next_power_of_2(3 * third(width) if form == "determinant" else width))


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How a kernel is cut for one GPU generation."""

    rows: int
    """Queries times heads a tile."""
    keys: int
    """Rows of the large stream a tile."""
    warps: int
    heads: int = 64
    """The most heads a tile; what is left of its rows is filled with queries."""
    stages: int = 2
    """Turns of a loop that loads run ahead of the arithmetic."""


def tiles(kernel: str, G: int, width: int, form: str, arch: int) -> list[Tile]:
    """What is tried on a GPU for `kernel` ("forward", "query_grad", "key_grad"), the most promising first.

    Pruned to what the static table (`make kernels`) shows to keep its registers in the hot loop. `G` heads share a key
    head, `width` is a padded head width, `arch` 80, 90 or 100 (0: the interpreter, where small tiles make short texts
    cross their borders).
    """
    determinant = form == "determinant"
    if arch == 0:
        return [Tile(rows=16, keys=16, warps=4)]
    if kernel == "forward":
        first = Tile(rows=64, keys=32 if determinant else 64, warps=4)
        return [first, *_others(first, determinant)]
    if kernel == "query_grad":
        rows = 32 if determinant and arch < 90 and width > 64 else 64
        first = Tile(rows=rows, keys=32 if determinant or arch < 90 else 64, warps=4)
        return [first, *_others(first, determinant)]
    first = key_tile(G, width, form, arch)
    return [first, replace(first, stages=3)]


def _others(first: Tile, determinant: bool) -> list[Tile]:
    """Loads a turn further ahead, and half as many keys, which leaves room for more blocks."""
    others = [replace(first, stages=3)]
    return others if determinant or first.keys < 64 else [*others, replace(first, keys=first.keys // 2)]


def key_tile(G: int, width: int, form: str, arch: int) -> Tile:
    """The tile of `key_grad_kernel`: its keys are part of buffers' shapes, so that all that are tried have as many."""
    if arch == 0:
        return Tile(rows=16, keys=16, warps=4)
    # With few heads a tile of consecutive queries of one head needs fewer addresses than one of both.
    heads = 64 if G >= 8 else 1
    if form == "determinant" and arch >= 100:
        return Tile(rows=64, keys=32, warps=4, heads=heads)
    if width <= 64:
        return Tile(rows=64 if arch == 90 else 32, keys=64, warps=4, heads=heads)
    return Tile(rows=32, keys=64 if arch >= 100 else 128, warps=8, heads=heads)


def cut(tile: Tile, G: int) -> dict[str, int]:
    """A tile as the kernels' compile-time arguments, for G heads that share a key head."""
    heads = min(tile.rows, tile.heads, triton.next_power_of_2(G))
    return {"BG": heads, "BP": tile.rows // heads, "BN": tile.keys}


@functools.cache
def _launcher(kernel: Any, G: int, width: int, form: str, arch: int) -> Any:
    name = kernel.__name__.removesuffix("_kernel")
    configurations = [
        triton.Config(cut(tile, G), num_warps=tile.warps, num_stages=tile.stages)
        for tile in tiles(name, G, width, form, arch)
    ]
    return tuned(
        kernel,
        configurations,
        key=("D", "G", "THIRD", "window_s", "window_l"),
        # A tile of more keys than the window has would mostly be masked.
        fits=lambda cut, call: cut["BN"] < 2 * call["window_l"],
        added_to=("DKL", "DVL") if name == "key_grad" else (),
    )


def _arch(q: Tensor) -> int:
    if interpreted():
        return 0
    major, _ = torch.cuda.get_device_capability(q.device)
    return min(100, max(80, 10 * major))


def _grid(T: int, pairs: int, G: int) -> Any:
    return lambda meta: (triton.cdiv(T, meta["BP"]), pairs * triton.cdiv(G, meta["BG"]))


def _plain(x: Tensor, form: str) -> Tensor:
    """A tensor [B, T, heads, D] contiguous, as wide as the kernels want it, the determinant's components apart."""
    if x[0].numel() >= 2**31:
        raise ValueError(
            f"a row of {list(x.shape)} holds 2^31 elements or more, which the Triton kernels cannot address"
        )
    width = x.shape[-1]
    if form == "determinant":
        # [..., 3 c + r] -> [..., r THIRD + c]
        x = F.pad(x.unflatten(-1, (-1, 3)).transpose(-1, -2), (0, third(width) - width // 3)).flatten(-2)
    return F.pad(x, (0, padded(width, form) - x.shape[-1])).contiguous()


def _restored(x: Tensor, width: int, form: str) -> Tensor:
    """The inverse of `_plain`."""
    if form == "determinant":
        x = x[..., : 3 * third(width)].unflatten(-1, (3, -1))[..., : width // 3].transpose(-1, -2).flatten(-2)
    return x[..., :width].contiguous()
