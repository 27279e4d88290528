"""A linear probe: how much of a label can be read off frozen features by a linear map, fitted in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What the probe got right of the test, and what the commonest label alone would have."""

    accuracy: float
    majority: float
    n: int


def pooled(features: Sequence[Float[Tensor, "_ E"]]) -> Float[Tensor, "n two_E"]:
    """Mean and deviation over time of each recording's features."""
    return torch.stack([torch.cat([one.float().mean(0), one.float().std(0, correction=0)]) for one in features])


def linear_probe(
    train: Float[Tensor, "n E"],
    labels: Sequence[str],
    test: Float[Tensor, "m E"],
    truth: Sequence[str],
    *,
    ridge: float = 0.1,
) -> Probed:
    """Ridge regression from standardised features to one-hot labels; the largest output is the answer."""
    names = sorted(set(labels))
    if len(names) < 2 or len(labels) != len(train) or len(truth) != len(test) or not truth:
        raise ValueError(
            f"a probe needs two labels at least and one for each sample: {len(names)} labels, {len(labels)} for "
            f"{len(train)} samples, {len(truth)} for {len(test)}"
        )
    mean, deviation = train.mean(0), train.std(0) + 1e-3
    x, y = ((part.double() - mean) / deviation for part in (train, test))
    target = torch.tensor([[name == label for name in names] for label in labels], dtype=torch.float64)
    centre = target.mean(0)
    weight = torch.linalg.solve(x.T @ x / len(x) + ridge * torch.eye(x.shape[1]), x.T @ (target - centre) / len(x))
    said = [names[i] for i in (y @ weight + centre).argmax(-1).tolist()]
    commonest = max(names, key=list(labels).count)
    count = len(truth)
    return Probed(
        accuracy=sum(one == other for one, other in zip(said, truth, strict=True)) / count,
        majority=sum(other == commonest for other in truth) / count,
        n=count,
    )
