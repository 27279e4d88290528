"""The squared-ReLU feed-forward as a module: dense, 2:4 in training once sparse enough, row-skipping to decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kernels.backend import Backend
from kernels.sparse_relu2 import relu2_ffn, skip_rows

_UNIT = 1_000_000_000
STEPS, ZEROS, VIOLATING, LOST, SPARSE = range(5)


@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """When training goes over to 2:4 activations, and back."""

    mode: Literal["dense", "measured", "sparse"] = "measured"
    """Never, by what is measured, or from the first step."""

    warmup: int = 1000
    """Training steps that are dense whatever is measured: at the start half of the activations are zero."""

    zeros: float = 0.85
    """Smoothed fraction of zeros from which on training is sparse ..."""

    violating: float = 0.02
    """... if no more than this fraction of groups has more than two activations that are not zero."""

    slack: float = 0.05
    """How far zeros may fall below `zeros` (and violating groups grow, times two) before it is dense again."""

    memory: float = 0.99
    """Smoothing of what is measured, a step."""

    dense_features: float = 0.05
    """Densest features, whose weight gradients stay dense."""

    def __post_init__(self) -> None:
        if not (0 < self.zeros <= 1 and 0 <= self.slack < self.zeros and 0 <= self.memory < 1 and self.warmup >= 0):
            raise ValueError(f"zeros, slack and memory must be fractions and warmup not negative, got {self}")


class ReLU2FeedForward(nn.Module):
    """relu(up x)^2 down, without biases and without a gate; `down` is stored transposed, [hidden, width].

    In training it measures its zeros and goes over to 2:4 activations by `config`; what it knows lies in the state
    dict (while its weights are frozen nothing is measured, and nothing changes). In evaluation it is exact: up to `few`
    tokens at a time read only the rows of `down` that they need.
    """

    notes = ("measured",)
    """Buffers that training writes: part of what learns, and of a run's state."""

    few: int = 4
    """Tokens that are decoded by skipping rows; more are a dense product."""

    def __init__(
        self, width: int, hidden: int, config: SparsityConfig | None = None, *, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        if hidden % 32:
            raise ValueError(f"hidden ({hidden}) must be a multiple of 32 for 2:4 activations")
        self.config = config or SparsityConfig()
        self.backend: Backend = backend
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down = nn.Parameter(torch.empty(hidden, width))
        nn.init.uniform_(self.down, -(hidden**-0.5), hidden**-0.5)
        # Integers, in billionths: a change of the module's dtype leaves them alone, and a resumed run is bit for bit.
        self.register_buffer("measured", torch.zeros(5, dtype=torch.int64))
        self.measured: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., width]."""
        if not self.training:
            return self._exact(x)
        # Checkpointing computes a forward again inside the backward: it must neither count nor change course.
        counts = self.up_proj.weight.requires_grad and torch._C._current_graph_task_id() == -1
        if counts:
            self._decide()
        if bool(self.measured[SPARSE]):
            y, counters = relu2_ffn(
                x, self.up_proj.weight, self.down, dense_features=self.config.dense_features, backend=self.backend
            )
        else:
            h = self.up_proj(x)
            y = h.relu().square() @ self.down
            counters = measure(h.detach()) if counts else None
        if counters is not None and counts:
            self._note(counters)
        return y

    @property
    def sparse(self) -> bool:
        """Whether training steps are 2:4 now."""
        return bool(self.measured[SPARSE])

    def counters(self) -> dict[str, float]:
        """What was measured, smoothed over steps: fractions, and whether training is sparse."""
        _, zeros, violating, lost, sparse = self.measured.tolist()
        return {
            "zeros": zeros / _UNIT,
            "violating_groups": violating / _UNIT,
            "lost_energy": lost / _UNIT,
            "sparse": float(sparse),
        }

    def _exact(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows > self.few or torch.is_grad_enabled():
            return self.up_proj(x).relu().square() @ self.down
        h = self.up_proj(x).reshape(rows, -1)
        return skip_rows(h, self.down, "relu2", backend=self.backend).reshape(x.shape)

    @torch.no_grad()
    def _decide(self) -> None:
        c = self.config
        if c.mode != "measured":
            self.measured[SPARSE] = int(c.mode == "sparse")
            return
        steps, zeros, violating, _, sparse = self.measured.tolist()
        slack, factor = (c.slack, 2) if sparse else (0.0, 1)
        ready = zeros >= (c.zeros - slack) * _UNIT and violating <= c.violating * factor * _UNIT
        self.measured[SPARSE] = int(steps >= c.warmup and ready)

    @torch.no_grad()
    def _note(self, counters: Tensor) -> None:
        fresh = (counters.double() * _UNIT).round().long().to(self.measured.device)
        old = self.measured[ZEROS : LOST + 1]
        # The first measurement stands for itself: a mean that starts at zero would take long to believe anything.
        kept = self.config.memory if int(self.measured[STEPS]) else 0.0
        self.measured[ZEROS : LOST + 1] = (kept * old.double() + (1 - kept) * fresh.double()).round().long()
        self.measured[STEPS] += 1


def measure(h: Tensor) -> Tensor:
    """The counters of relu2_ffn for pre-activations [..., F] of a dense step, float32 [3]."""
    active = h.reshape(-1, h.shape[-1]).relu().float()
    groups = active.unflatten(-1, (-1, 4))
    kept = groups.topk(2, dim=-1).values
    energy = groups.pow(4).sum()
    lost = 1 - kept.pow(4).sum() / energy.clamp(min=torch.finfo(torch.float32).tiny)
    nonzero = groups != 0
    # A layer that is zero everywhere has lost nothing.
    lost = torch.where(energy > 0, lost.clamp(min=0), torch.zeros_like(lost))
    return torch.stack((1 - nonzero.float().mean(), (nonzero.sum(-1) > 2).float().mean(), lost))
