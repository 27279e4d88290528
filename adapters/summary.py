"""A picture as a whole: what its summary features say together, and the name that it recalls, word by word."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapters.recall import Recall


class Summary(nn.Module):
    """A tile's whole features (class token, mean, root mean square, ...) as 1 + J rows of the text's width.

    The first row is linear in all of them. The others are the J words recalled from the last of them, each with a code
    for its place in the name and with the word before it: as in an induction head, what was said last is the key to
    what comes next.
    """

    def __init__(self, whole: int, features: int, width: int, *, names: int, words: int, slots: int) -> None:
        super().__init__()
        self.linear = nn.Linear(whole * features, width)
        self.recall = Recall(features, width, names=names, words=words, slots=slots)
        self.slots = nn.Parameter(0.5 * torch.randn(slots, width))
        self.previous = nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.previous.weight, gain=0.5)

    def forward(self, tiles: Float[Tensor, "N W E"]) -> Float[Tensor, "N J1 D"]:
        said = self.recall(tiles[:, -1])
        before = torch.cat([torch.zeros_like(said[:, :1]), said[:, :-1]], dim=1)
        words = said + self.slots + self.previous(before)
        return torch.cat([self.linear(tiles.flatten(1))[:, None], words], dim=1)
