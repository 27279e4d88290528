"""The learning rate's course over a run: a linear warm-up, then half a cosine down to a floor."""

from __future__ import annotations

import math


def schedule(step: int, *, steps: int, warm_up: int, floor: float = 0.0) -> float:
    """What the learning rate is multiplied by in step `step` (the first step is 1, the last one `steps`).

    A pure function of the step, so nothing of it needs saving: it rises linearly and reaches 1 in step `warm_up`, then
    follows a cosine that ends at `floor` in step `steps`, and stays there.
    """
    if step < 1:
        raise ValueError(f"steps are counted from 1, got step {step}")
    if step <= warm_up:
        return step / warm_up
    done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
