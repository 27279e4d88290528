"""Recall: a whole picture compared with remembered ones, for names that no linear map of one example each can hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_MEMBER = 0.9
"""A feature that is this near to a sum of remembered ones is taken to be one of them, or a view of it."""
_NEAREST = 64
"""Names that are weighed; with the sharpness of the softmax those behind them weigh nothing."""


class Recall(nn.Module):
    """Attention of a picture's feature to remembered names, each a key (a sum of unit directions) and its words.

    Features are first square-rooted (what vision models give is heavy-tailed), centred and whitened, so that directions
    in which pictures of one thing differ count little; cosines then go through a softmax with a floor: a picture that
    is like nothing remembered recalls nothing. A name is J words, each a number of a code; it starts as silence (word
    0, whose code is zero). All of it has a closed form (multimodal.lexical_start).
    """

    words: Tensor

    def __init__(
        self,
        features: int,
        width: int,
        *,
        names: int,
        words: int,
        slots: int,
        sharpness: float = 50.0,
        floor: float = 0.2,
        leave_out: float = 0.25,
    ) -> None:
        super().__init__()
        self.sharpness, self.floor = sharpness, floor
        self.leave_out = leave_out
        """How often, in training, a picture is taken out of the memory that it is part of: it would otherwise always
        know its own name, and the text never learn how far to trust what is recalled of pictures that are new."""
        self.mean = nn.Parameter(torch.zeros(features))
        self.whitening = nn.Parameter(torch.eye(features))
        self.keys = nn.Parameter(F.normalize(torch.randn(names, features), dim=-1))
        self.codes = nn.Parameter(torch.zeros(1 + words, width))
        self.register_buffer("words", torch.zeros(names, slots, dtype=torch.long))

    def forward(self, features: Float[Tensor, "N E"]) -> Float[Tensor, "N J D"]:
        """The words recalled, of about unit size where the memory is sure, near zero where it recalls nothing."""
        nearness = self.directions(features) @ self.keys.T  # N U
        sizes = self.keys.norm(dim=-1)
        cosines = nearness / sizes.clamp(min=1e-6)
        if self.training and self.leave_out:
            drawn = torch.rand(len(cosines), 1, device=cosines.device) < self.leave_out
            cosines = torch.where(drawn & (nearness > _MEMBER), _without(nearness, sizes), cosines)
        weights = torch.exp(self.sharpness * (cosines - 1))
        # Not torch.softmax: the floor is one more, silent, thing to attend to.
        total = weights.sum(-1, keepdim=True) + torch.exp(torch.tensor(self.sharpness * (self.floor - 1)))
        best, names = (weights / total).topk(min(_NEAREST, len(self.keys)), dim=-1)  # N k
        said = torch.einsum("nk,nkjd->njd", best, self.codes[self.words[names]])
        # Blended words are shorter than single ones: stretched, but not to full size.
        return 1.3 * said / (said.square().mean(-1, keepdim=True).sqrt() + 0.3)

    def directions(self, features: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
        """Whitened features of unit length."""
        return F.normalize((rooted(features) - self.mean) @ self.whitening, dim=-1)


def rooted(features: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
    """The signed square root."""
    return features.sign() * features.abs().sqrt()


def _without(nearness: Float[Tensor, "N U"], sizes: Float[Tensor, " U"]) -> Float[Tensor, "N U"]:
    """The cosine of a unit vector u to a key S less u itself; 0 where nothing is left of the key."""
    left = (sizes.square() - 2 * nearness + 1).clamp(min=0).sqrt()
    return torch.where(left > 0.1, (nearness - 1) / left.clamp(min=0.1), 0.0)
