"""How far a score may be trusted: 95% percentile bootstrap over samples, also of the difference of two scores.

Samples are drawn with replacement, always as whole samples, so two measures of the same samples are drawn alike and
their difference is paired. What is resampled are per-sample numbers: CIDEr's inverse document frequencies stay those of
the whole set, only the samples' scores are drawn; BLEU's n-gram counts are drawn and summed anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from multimodal.evaluation.measure import Measure

DRAWS = 4000
_LEVELS = (2.5, 97.5)
_CHUNK = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One score minus another on the same samples, with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_equality(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def interval(measure: Measure, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The 95% interval (low, high) of the measure's score."""
    low, high = np.percentile(measure.of_means(_means(measure.samples, draws, seed)), _LEVELS)
    return float(low), float(high)


def difference(ours: Measure, theirs: Measure, *, draws: int = DRAWS, seed: int = 0) -> Difference:
    """`ours` minus `theirs`, sample by sample the same pictures in the same order; ValueError if they cannot be."""
    if len(ours) != len(theirs):
        raise ValueError(f"a paired difference needs the same samples: {len(ours)} here, {len(theirs)} there")
    # The same seed draws the same samples for both: that is what makes it paired.
    gaps = ours.of_means(_means(ours.samples, draws, seed)) - theirs.of_means(_means(theirs.samples, draws, seed))
    low, high = np.percentile(gaps, _LEVELS)
    return Difference(value=ours.value - theirs.value, low=float(low), high=float(high))


def _means(samples: Float[np.ndarray, "n k"], draws: int, seed: int) -> Float[np.ndarray, "draws k"]:
    """The columns' means in each of `draws` resamples: how often each sample is drawn, times the samples."""
    n = len(samples)
    if n == 0:
        raise ValueError("no samples: there is nothing to resample")
    if draws < 1:
        raise ValueError(f"draws ({draws}) must be at least 1")
    random = np.random.default_rng(seed)
    means, step = [], max(1, _CHUNK // n)
    for first in range(0, draws, step):
        times = random.multinomial(n, np.full(n, 1 / n), size=min(step, draws - first))
        means.append(times @ samples / n)
    return np.concatenate(means)
