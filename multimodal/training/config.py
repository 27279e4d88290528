"""How a run learns: what, how fast, for how long."""

from __future__ import annotations

from dataclasses import dataclass

from multimodal.training.learns import Learns


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a run learns: what, how fast, for how long."""

    learns: Learns = ((r"adapters\..*", 1.0),)
    """Name patterns and learning-rate multipliers; the first match wins, what none names is frozen."""
    steps: int = 1000
    """Optimizer steps of the whole run."""
    learning_rate: float = 1e-4
    """At the top of the schedule, times the multiplier in `learns`."""
    warm_up: int = 100
    """Steps over which the learning rate rises linearly."""
    floor: float = 0.1
    """Where the cosine ends, as a share of the learning rate."""
    weight_decay: float = 0.1
    """On matrices only: gates, norms and biases are left alone."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two decay rates."""
    epsilon: float = 1e-8
    """AdamW's guard against a division by zero."""
    clip: float = 1.0
    """The gradient's largest norm."""
    accumulate: int = 1
    """Batches a process takes for one step; their gradients are summed in float32."""
    recompute: bool = False
    """Gradient checkpointing: activations are computed again in the backward pass instead of kept."""
    patience: int = 5
    """Steps in a row with a loss or gradient that is not finite, after which the run stops."""
    seed: int = 0
    """Of what the steps draw (dropout, noise): a step's draws depend on this and its number alone."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.warm_up <= self.steps:
            raise ValueError(f"warm_up ({self.warm_up}) must lie between 0 and steps ({self.steps})")
        for name in ("learning_rate", "clip", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is a share of the learning rate, between 0 and 1, got {self.floor}")
