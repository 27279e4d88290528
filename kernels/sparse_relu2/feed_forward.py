"""The paper's feed-forward with 2:4 activations, forward and backward, as one differentiable op.

The backward's mask, its groups along tokens and its split of dense features are the paper's; README.md derives them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.sparse_relu2 import chosen_for, reference
from kernels.sparse_relu2 import cpu as cpu_path
from kernels.sparse_relu2.packed import Packed, counters

TOKENS = 64
"""Tokens are filled up with zeros to a multiple: groups along tokens are four, tiles of metadata up to 64."""


def run(
    x: Tensor, up: Tensor, down: Tensor, dense_features: float, permute: bool, keep_mask: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """See `relu2_ffn`."""
    tokens = x.reshape(-1, x.shape[-1])
    T = tokens.shape[0]
    if permute:
        order, back = permutation(T, x.device)
        tokens = tokens[order]
    tokens = F.pad(tokens, (0, 0, 0, -T % TOKENS))
    out, *_, counters = _forward(tokens, up, down, T, dense_features, keep_mask, backend)
    out = out[:T]
    if permute:
        out = out[back]
    return out.reshape(x.shape), counters


def permutation(T: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The fixed order of T tokens, and its inverse: neighbours fire the same features, which would break groups.

    Tokens are sorted by a hash of their place: no generator, so that it is the same on every device and compiles.
    """
    mixed = torch.arange(1, T + 1, device=device)
    for shift, factor in ((16, 0x45D9F3B), (15, 0x27D4EB2D), (16, 1)):
        mixed = ((mixed ^ mixed >> shift) * factor) & 0xFFFFFFFF
    order = mixed.argsort(stable=True)
    return order, order.argsort()


@torch.library.custom_op("scion::relu2_ffn", mutates_args=())
def _forward(
    x: Tensor, up: Tensor, down: Tensor, real: int, dense_features: float, keep_mask: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    chosen = chosen_for("relu2_ffn", x, backend)
    h = x @ up.T
    if chosen == "triton":
        from kernels.sparse_relu2 import triton

        packed = triton.pack(h, real, keep_mask)
    else:
        packed = pack(h, real, keep_mask, chosen)
    out = multiply(reference.squared(packed.kept), packed.metadata, down, chosen)
    return out, *packed  # pyright: ignore[reportReturnType]


@torch.library.custom_op("scion::relu2_ffn_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    up: Tensor,
    down: Tensor,
    kept: Tensor,
    metadata: Tensor,
    turned: Tensor,
    turned_metadata: Tensor,
    counts: Tensor,
    dense_features: float,
    keep_mask: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, up, down: three products with a sparse operand, one dense."""
    chosen = chosen_for("relu2_ffn", x, backend)
    dy2 = grad @ down.T
    if not keep_mask:
        # What the forward dropped comes back, and only groups along features are chosen anew.
        active = (x @ up.T).relu()
        dh, y2 = 2 * dy2 * active, reference.squared(active)
        values, metadata = reference.compress(dh, None)
        turned_dh, turned_dh_metadata = reference.compress(dh.T.contiguous(), None)
    elif chosen == "triton":
        from kernels.sparse_relu2 import triton

        values, turned_dh, turned_dh_metadata = triton.pack_gradient(dy2, kept, metadata)
        y2 = dh = None
    else:
        values = 2 * dy2.unflatten(-1, (-1, 4)).gather(-1, reference.places_of(metadata)).flatten(-2) * kept
        dh, y2 = reference.decompress(values, metadata), None
        turned_dh, turned_dh_metadata = _compress(dh.T.contiguous(), chosen)
    dx = multiply(values, metadata, up, chosen)
    d_up = multiply(turned_dh, turned_dh_metadata, x, chosen)
    d_down = multiply(turned, turned_metadata, grad, chosen)
    features = math.ceil(dense_features * up.shape[0])
    if features:
        dense = counts.topk(features).indices
        dh = reference.decompress(values, metadata) if dh is None else dh
        y2 = reference.decompress(reference.squared(kept), metadata) if y2 is None else y2
        d_up[dense] = dh[:, dense].T @ x
        d_down[dense] = y2[:, dense].T @ grad
    return dx, d_up, d_down


def pack(h: Tensor, real: int, keep_mask: bool, chosen: str) -> Packed:
    """Both compressions of pre-activations h [T, F], of which the first `real` rows are tokens."""
    active = h.relu()
    kept, metadata = _compress(active, chosen)
    masked = reference.decompress(kept, metadata) if keep_mask else active
    turned, turned_metadata = _compress(reference.squared(masked).T.contiguous(), chosen)
    nonzero = active != 0
    counts = nonzero.sum(0, dtype=torch.int32)
    violating = (nonzero.unflatten(-1, (-1, 4)).sum(-1) > 2).sum()
    wide = torch.promote_types(h.dtype, torch.float32)
    energy, remaining = (one.to(wide).pow(4).sum() for one in (active, kept))
    return Packed(
        kept,
        metadata,
        turned,
        turned_metadata,
        counts,
        counters(counts, violating, energy, remaining, real, h.shape[1]),
    )


def multiply(values: Tensor, metadata: Tensor, dense: Tensor, chosen: str) -> Tensor:
    """The product of a compressed operand by the backend that was chosen."""
    if chosen == "triton":
        from kernels.sparse_relu2 import tensor_cores

        return tensor_cores.matmul(values, metadata, dense)
    return (cpu_path if chosen == "cpu" else reference).matmul(values, metadata, dense)


def _compress(x: Tensor, chosen: str) -> tuple[Tensor, Tensor]:
    return (cpu_path if chosen == "cpu" else reference).compress(x, None)


@_forward.register_fake
def _(x: Tensor, up: Tensor, down: Tensor, *_: Any) -> tuple[Tensor, ...]:
    T, width = x.shape[0], up.shape[0]
    return (
        x.new_empty(x.shape),
        x.new_empty(T, width // 2),
        x.new_empty(T, width // 8, dtype=torch.uint8),
        x.new_empty(width, T // 2),
        x.new_empty(width, T // 8, dtype=torch.uint8),
        x.new_empty(width, dtype=torch.int32),
        x.new_empty(3, dtype=torch.float32),
    )


@_backward.register_fake
def _(grad: Tensor, x: Tensor, up: Tensor, down: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), up.new_empty(up.shape), down.new_empty(down.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:6])
    ctx.mark_non_differentiable(*output[1:])
    ctx.rest = inputs[4:]


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.rest), None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
