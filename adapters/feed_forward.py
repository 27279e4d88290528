"""The feed-forward of an adapter's block."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kernels.sparse_relu2.module import ReLU2FeedForward, SparsityConfig
from kernels.token_step.cpu import swiglu_step
from kernels.token_step.module import few_rows, hooked, norm_of, plain_weights

Activation = Literal["swiglu", "relu2_dense", "relu2"]
"""relu2: squared ReLU that trains on 2:4 activations once they are sparse; relu2_dense: one that never does."""


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases, as in the text model's own blocks."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    def step(self, norm: nn.Module, gate: Float[Tensor, "1"], x: Float[Tensor, "B T D"]) -> Tensor | None:
        """x + tanh(gate) * self(norm(x)) for one token a row, by the fused op; None where that does not apply."""
        if x.shape[1] != 1 or not few_rows(x) or hooked(self, norm):
            return None
        weights = plain_weights((self.gate_proj, self.up_proj, self.down_proj), self.down_proj.weight.dtype)
        return None if weights is None else swiglu_step(x, norm_of(norm), *weights, scale=float(gate.tanh()))


def feed_forward(
    width: int, hidden: int, activation: Activation, sparsity: SparsityConfig | None = None
) -> SwiGLU | ReLU2FeedForward:
    """Of as many parameters whatever the activation: squared ReLU has no gate, and is half as wide again as `hidden`
    (rounded up to a multiple of 32, which 2:4 activations need). `sparsity` is read by "relu2" alone.
    """
    if activation == "swiglu":
        return SwiGLU(width, hidden)
    when = SparsityConfig(mode="dense") if activation == "relu2_dense" else sparsity
    return ReLU2FeedForward(width, -(-3 * hidden // 64) * 32, when)


def sparsity(model: nn.Module) -> dict[str, float]:
    """The counters of every feed-forward of squared ReLU that learns, by the name of its place: for a training's log.

    Zeros, violating groups and lost energy are fractions, smoothed over steps; `sparse` is 1 where steps are 2:4.
    """
    return {
        f"{place}.{name}": value
        for place, module in model.named_modules()
        if isinstance(module, ReLU2FeedForward) and module.up_proj.weight.requires_grad
        for name, value in module.counters().items()
    }
