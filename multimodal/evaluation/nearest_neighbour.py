"""The baseline every captioner has to beat: the caption of the training picture that looks most like this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


def pool(features: Sequence[Float[Tensor, "_ E"]]) -> Float[Tensor, "n E"]:
    """The mean feature of each picture, in float32: pictures may have different numbers of features."""
    return torch.stack([picture.float().mean(0) for picture in features])


class NearestNeighbour:
    """Remembers pooled features [n, E] and captions of training pictures; answers with the nearest one's caption.

    Features are standardised, column by column, by the training pictures' mean and standard deviation.
    """

    def __init__(
        self,
        features: Float[Tensor, "n E"],
        captions: Sequence[str],
        *,
        distance: Literal["cosine", "euclidean"] = "cosine",
    ) -> None:
        if not captions or len(features) != len(captions):
            raise ValueError(f"{len(features)} pictures with {len(captions)} captions; every picture needs one")
        if distance not in ("cosine", "euclidean"):
            raise ValueError(f"no distance {distance!r}; there are 'cosine' and 'euclidean'")
        self.captions, self.distance = tuple(captions), distance
        features = features.float()
        # A column that never changes says nothing; its deviation of 0 must not become a division by 0.
        self._mean, deviation = features.mean(0), features.std(0, correction=0)
        self._deviation = torch.where(deviation > 0, deviation, 1.0)
        self._gallery = self._standard(features)

    def nearest(self, features: Float[Tensor, "m E"], *, chunk: int = 1024) -> Int[Tensor, "m"]:
        """The number of the nearest training picture of each; the first one where several are equally near."""
        if features.shape[1] != self._gallery.shape[1]:
            raise ValueError(f"features have width {features.shape[1]}, the gallery has {self._gallery.shape[1]}")
        squares = self._gallery.square().sum(-1) if self.distance == "euclidean" else 0.0
        found = [
            (2 * self._standard(part) @ self._gallery.T - squares).argmax(-1) for part in features.float().split(chunk)
        ]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

    def answers(self, features: Float[Tensor, "m E"]) -> list[str]:
        """The nearest training picture's caption for each picture."""
        return [self.captions[i] for i in self.nearest(features).tolist()]

    def _standard(self, features: Tensor) -> Tensor:
        standard = (features - self._mean) / self._deviation
        return torch.nn.functional.normalize(standard, dim=-1) if self.distance == "cosine" else standard
