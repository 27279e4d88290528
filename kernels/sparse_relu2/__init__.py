"""Squared ReLU and 2:4 activation sparsity (arXiv 2503.16672): compression, products, the feed-forward, decoding.

A tensor is 2:4 where of every four neighbours along an axis at most two are not zero. It is kept as `values`, two of
four, and `metadata`, which two. README.md has the derivation, the layouts and the costs.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from kernels import compiler
from kernels.backend import Backend, Chosen, choose
from kernels.sparse_relu2 import cpu, reference

Layout = Literal["dense", "sm80", "sm90"]
Activation = Literal["relu2"] | None

TILES = {"dense": (1, 8), "sm80": (32, 32), "sm90": (64, 128)}
"""Rows and columns that a layout's metadata comes in multiples of."""

__all__ = ["compress_24", "decompress_24", "matmul_24", "relu2_ffn", "skip_rows"]


def compress_24(
    x: Tensor, layout: Layout = "sm80", activation: Activation = None, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """The two largest magnitudes of each group of four along the last axis of x [M, K]: values [M, K / 2] and which.

    `activation="relu2"` selects by relu(x) and squares the survivors. Equal magnitudes go to the places 2, 3, 0, 1 of
    their group in that order, as PyTorch's encoder fills up groups, so that the metadata is bit for bit its own; NaN
    counts as the largest. Metadata by layout: "dense" uint8 [M, K / 8], a nibble a group, in rows; "sm80" int16
    [M, K / 16], as torch.sparse has it for CUTLASS; "sm90" uint8 [M * K / 8], CUTLASS 3's tiles of 128 columns.

    Not differentiable (relu2_ffn is). ValueError for shapes that the layout does not tile.
    """
    _check_layout(layout)
    if activation not in (None, "relu2"):
        raise ValueError(f"no activation {activation!r}; activations: None, 'relu2'")
    if x.ndim != 2 or 0 in x.shape or not x.dtype.is_floating_point:
        raise ValueError(f"x must be floating [M, K] with neither 0, not {x.dtype} {list(x.shape)}")
    rows, columns = TILES[layout]
    if x.shape[0] % rows or x.shape[1] % columns:
        raise ValueError(f"x {list(x.shape)} must be multiples of {rows} x {columns} for layout {layout!r}; pad it")
    return _compress(x, layout, activation or "", backend)


def decompress_24(values: Tensor, metadata: Tensor, layout: Layout = "sm80") -> Tensor:
    """[M, K] with zeros where nothing was kept: the inverse of compress_24 on what is 2:4 already."""
    return reference.decompress(values, _in_rows(values, metadata, layout))


def matmul_24(
    values: Tensor, metadata: Tensor, dense: Tensor, layout: Layout = "sm80", *, backend: Backend = "auto"
) -> Tensor:
    """What compress_24 kept of [M, K] times dense [K, N], in its dtype.

    On a GPU of compute capability 8 by CUTLASS, from 9 on by cuSPARSELt, both through aten (backend "triton"); on the
    CPU by our own C++, which multiplies only kept values that are not zero. Not differentiable (relu2_ffn is).
    """
    metadata = _in_rows(values, metadata, layout)
    if dense.ndim != 2 or dense.shape[0] != 2 * values.shape[1] or dense.dtype != values.dtype:
        raise ValueError(
            f"dense must be {values.dtype} [{2 * values.shape[1]}, N], not {dense.dtype} {list(dense.shape)}"
        )
    return _matmul(values, metadata, dense, backend)


def skip_rows(h: Tensor, down: Tensor, activation: Activation = None, *, backend: Backend = "auto") -> Tensor:
    """h [B, F] times down [F, D] for few rows: only the rows of `down` are read whose activation is not zero. Exact.

    `down` is a down-projection stored transposed, so that a feature's weights are one piece of memory.
    `activation="relu2"` takes relu(h) squared. On the CPU dense above a density of cpu.DENSE_ABOVE. Not
    differentiable: for decoding.
    """
    if activation not in (None, "relu2"):
        raise ValueError(f"no activation {activation!r}; activations: None, 'relu2'")
    if h.ndim != 2 or down.ndim != 2 or h.shape[1] != down.shape[0] or h.dtype != down.dtype:
        raise ValueError(
            f"h [B, F] and down [F, D] must agree in F and dtype, not {h.dtype} {list(h.shape)} and "
            f"{down.dtype} {list(down.shape)}"
        )
    return _skip_rows(h, down, activation or "", backend)


def relu2_ffn(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    dense_features: float = 0.05,
    permute: bool = True,
    keep_mask: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """relu(x up^T)^2 down on 2:4 activations, forward and backward: [..., D] and three counters (float32 [3]).

    x [..., D]; up and down [F, D] (down transposed). Differentiable in the three. Forward: groups along features
    inside a token, the largest kept. Backward: the forward's mask stays, so that dx is the exact gradient of what was
    computed; weight gradients have groups along tokens, in the order of a fixed permutation, and the densest
    `dense_features` of the features are left dense. `permute` and `keep_mask` are on but to show what they are for.

    Counters: the fraction of activations that are zero, of groups that have more than two that are not, and of
    ||relu(h)^2||^2 that dropping them loses.
    """
    if up.shape != down.shape or up.ndim != 2 or x.shape[-1:] != up.shape[1:]:
        raise ValueError(
            f"up and down must both be [F, D] and x [..., D], not {list(up.shape)}, {list(down.shape)}, {list(x.shape)}"
        )
    if up.shape[0] % 32:
        raise ValueError(f"hidden width ({up.shape[0]}) must be a multiple of 32: metadata comes in words of tiles")
    if not 0 <= dense_features <= 1:
        raise ValueError(f"dense_features ({dense_features}) must be a fraction between 0 and 1")
    if not x.dtype == up.dtype == down.dtype:
        raise ValueError(f"x, up and down must have one dtype, not {x.dtype}, {up.dtype}, {down.dtype}")
    from kernels.sparse_relu2 import feed_forward

    return feed_forward.run(x, up, down, dense_features, permute, keep_mask, backend)


@torch.library.custom_op("scion::compress_24", mutates_args=())
def _compress(x: Tensor, layout: str, activation: str, backend: str) -> tuple[Tensor, Tensor]:
    chosen = chosen_for("compress_24", x, backend)
    if chosen == "triton":
        from kernels.sparse_relu2 import triton

        return triton.compress(x, layout, activation or None)
    values, metadata = (cpu if chosen == "cpu" else reference).compress(x, activation or None)
    return values, reference.arrange(metadata, layout).clone()


@_compress.register_fake
def _(x: Tensor, layout: str, activation: str, backend: str) -> tuple[Tensor, Tensor]:
    M, K = x.shape
    shape, dtype = {
        "dense": ((M, K // 8), torch.uint8),
        "sm80": ((M, K // 16), torch.int16),
        "sm90": ((M * K // 8,), torch.uint8),
    }[layout]
    return x.new_empty(M, K // 2), x.new_empty(shape, dtype=dtype)


@torch.library.custom_op("scion::matmul_24", mutates_args=())
def _matmul(values: Tensor, metadata: Tensor, dense: Tensor, backend: str) -> Tensor:
    chosen = chosen_for("matmul_24", values, backend)
    if chosen == "triton":
        from kernels.sparse_relu2 import tensor_cores

        return tensor_cores.matmul(values, metadata, dense)
    return (cpu if chosen == "cpu" else reference).matmul(values, metadata, dense)


@_matmul.register_fake
def _(values: Tensor, metadata: Tensor, dense: Tensor, backend: str) -> Tensor:
    return dense.new_empty(values.shape[0], dense.shape[1])


@torch.library.custom_op("scion::skip_rows", mutates_args=())
def _skip_rows(h: Tensor, down: Tensor, activation: str, backend: str) -> Tensor:
    chosen = chosen_for("skip_rows", h, backend)
    if chosen == "triton":
        from kernels.sparse_relu2 import triton_decode

        return triton_decode.skip_rows(h, down, activation or None)
    return (cpu if chosen == "cpu" else reference).skip_rows(h, down, activation or None)


@_skip_rows.register_fake
def _(h: Tensor, down: Tensor, activation: str, backend: str) -> Tensor:
    return h.new_empty(h.shape[0], down.shape[1])


def chosen_for(op: str, x: Tensor, backend: str) -> Chosen:
    """What runs `op` on x."""
    obstacles = {"cpu": functools.partial(_cpu_obstacle, x), "triton": functools.partial(_triton_obstacle, x)}
    return choose(op, cast(Backend, backend), x.device, obstacles)


def _cpu_obstacle(x: Tensor) -> str | None:
    return _dtype_obstacle(x) or compiler.why_not(Path(cpu.SOURCE))


def _triton_obstacle(x: Tensor) -> str | None:
    return _dtype_obstacle(x)


def _dtype_obstacle(x: Tensor) -> str | None:
    if x.dtype in (torch.float32, torch.bfloat16, torch.float16):
        return None
    return f"it takes float32, bfloat16 and float16, the tensors are {x.dtype}"


def _check_layout(layout: Any) -> None:
    if layout not in TILES:
        raise ValueError(f"no layout {layout!r}; layouts: {', '.join(TILES)}")


def _in_rows(values: Tensor, metadata: Tensor, layout: Layout) -> Tensor:
    _check_layout(layout)
    M, half = values.shape
    wanted = torch.int16 if layout == "sm80" else torch.uint8
    size = M * half // (8 if layout == "sm80" else 4)
    if metadata.dtype != wanted or metadata.numel() != size:
        raise ValueError(
            f"metadata of values {list(values.shape)} in layout {layout!r} is {wanted} of {size} numbers, not "
            f"{metadata.dtype} of {metadata.numel()}"
        )
    return reference.rows(metadata, layout, M)
