"""One token of each row on its way through a block: the residual steps of decoding, x -> x + f(norm(x)).

    self_attention_step    f is self-attention; the token's key and value are written into a cache
    cross_attention_step   f is attention to remembered media, times a gate
    swiglu_step            f is a SwiGLU feed-forward, times a gate
    head_step              norm and head: logits

x is [B, 1, D], of head_step [..., D]; x, weights, keys and values are all float32 or all bfloat16. `Norm` is the weight
[D] and the epsilon of an RMS norm. For inference: there are no gradients. The README says why the op exists.
"""

from __future__ import annotations

from torch import Tensor

from kernels.backend import Backend, choose
from kernels.token_step import reference
from kernels.token_step.reference import Norm as Norm


def self_attention_step(
    x: Tensor,
    norm: Norm,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    rotation: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """x + attention(norm(x)). `weights` are q [H * K, D], k and v [G * K, D] and o [D, H * K].

    `keys` and `values` [B, G, C, K] are written at `places` ([B, 1], or [1, 1] for all rows alike), and a row sees what
    stands at its place and before it. `rotation` is cosine and signed sine, [B or 1, 1, 1, K].
    """
    if choose("self_attention_step", backend, x.device, {"cpu": lambda: _obstacle(x, *weights, keys, values)}) == "cpu":
        from kernels.token_step import cpu

        return cpu.self_attention_step(x, norm, weights, rotation, keys, values, places)
    return reference.self_attention_step(x, norm, weights, rotation, keys, values, places)


def cross_attention_step(
    x: Tensor,
    norm: Norm,
    q: Tensor,
    query_norm: Norm,
    out: Tensor,
    scale: float,
    keys: Tensor,
    values: Tensor,
    sees: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """x + scale * attention(norm(x)), with a norm on each query head; q [H * K, D], out [D, H * K].

    `sees` [B, S] says which of the `keys` and `values` [B, G, S, K] a row looks at, at least one; None: all.
    """
    if choose("cross_attention_step", backend, x.device, {"cpu": lambda: _obstacle(x, q, out, keys, values)}) == "cpu":
        from kernels.token_step import cpu

        return cpu.cross_attention_step(x, norm, q, query_norm, out, scale, keys, values, sees)
    return reference.cross_attention_step(x, norm, q, query_norm, out, scale, keys, values, sees)


def swiglu_step(
    x: Tensor, norm: Norm, gate: Tensor, up: Tensor, down: Tensor, scale: float = 1.0, *, backend: Backend = "auto"
) -> Tensor:
    """x + scale * down(silu(gate(norm(x))) * up(norm(x))); gate and up [N, D], down [D, N]."""
    if choose("swiglu_step", backend, x.device, {"cpu": lambda: _obstacle(x, gate, up, down)}) == "cpu":
        from kernels.token_step import cpu

        return cpu.swiglu_step(x, norm, gate, up, down, scale)
    return reference.swiglu_step(x, norm, gate, up, down, scale)


def head_step(x: Tensor, norm: Norm, weight: Tensor, *, backend: Backend = "auto") -> Tensor:
    """norm(x) @ weight^T, weight [V, D]."""
    if choose("head_step", backend, x.device, {"cpu": lambda: _obstacle(x, weight)}) == "cpu":
        from kernels.token_step import cpu

        return cpu.head_step(x, norm, weight)
    return reference.head_step(x, norm, weight)


def _obstacle(x: Tensor, *tensors: Tensor) -> str | None:
    from kernels.token_step.cpu import obstacle

    return obstacle(x, *tensors)
