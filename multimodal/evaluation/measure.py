"""What is measured of each sample, and how the samples' mean becomes a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


def as_it_is(means: Float[np.ndarray, "*draws 1"]) -> Float[np.ndarray, "*draws"]:
    """The mean itself: what most metrics are."""
    return means[..., 0]


def ratio(means: Float[np.ndarray, "*draws 2"]) -> Float[np.ndarray, "*draws"]:
    """The first column over the second: a share among the samples that were asked; 0 where none was."""
    right, asked = means[..., 0], means[..., 1]
    return np.divide(right, asked, out=np.zeros_like(right), where=asked > 0)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One metric over n samples: `of_means` maps the means of `samples`, [..., k], to the score, [...].

    So a corpus score (BLEU) and a share among some of the samples (a slot) are resampled as truly as a plain mean.
    """

    samples: Float[np.ndarray, "n k"]
    of_means: Callable[[np.ndarray], np.ndarray] = as_it_is

    @property
    def value(self) -> float:
        """The score over all samples."""
        return float(self.of_means(self.samples.mean(0, keepdims=True))[0])

    def __len__(self) -> int:
        return len(self.samples)


def mean_of(values: Sequence[float | int]) -> Measure:
    """The measure that is the plain mean of one number a sample."""
    return Measure(samples=np.asarray(values, dtype=np.float64).reshape(-1, 1))


def share_of(right: Sequence[float | int], asked: Sequence[float | int]) -> Measure:
    """The measure that is a share: what was right over what was asked, summed over samples."""
    return Measure(samples=np.stack([np.asarray(right, float), np.asarray(asked, float)], axis=1), of_means=ratio)
