"""Match3 in windows: is there a pair, one of the last few tokens and one of the last few, that completes a triple?

Tokens are non-empty sets of `bits` features, and a triple is complete when each feature lies in an even number of its
three (their exclusive or is empty). Whether such a pair exists is what Sanford, Hsu and Telgarsky (arXiv 2306.02896)
call Match3, over the group Z_2^bits: pairwise attention would have to be as wide as the text is long to say it in one
layer, attention to pairs needs a head of as many numbers as there are features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Match3:
    """The task: tokens 1 .. 2^bits - 1, windows that include the token itself."""

    bits: int = 4
    window1: int = 6
    window2: int = 6

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16 or min(self.window1, self.window2) < 1:
            raise ValueError(f"bits must be 1 to 16 and windows at least 1, got {self}")

    @property
    def vocabulary(self) -> int:
        """Ids that a model needs; 0 is never a token, and 0 and 1 are the answers."""
        return 2**self.bits

    def draw(self, rows: int, length: int, dice: torch.Generator) -> tuple[Int[Tensor, "R T"], Int[Tensor, "R T"]]:
        """Random tokens, and for each the answer, 1 where a pair completes it. No token completes a triple with itself
        or twice, for the empty set is not among them: what counts are pairs of two other places.
        """
        tokens = torch.randint(1, self.vocabulary, (rows, length), generator=dice)
        return tokens, self.answers(tokens).long()

    def answers(self, tokens: Int[Tensor, "R T"]) -> Bool[Tensor, "R T"]:
        """Whether the windows of each place hold a pair that completes it."""
        found = torch.zeros_like(tokens, dtype=torch.bool)
        for back1 in range(self.window1):
            first = _earlier(tokens, back1)
            for back2 in range(self.window2):
                second = _earlier(tokens, back2)
                found |= (first >= 0) & (second >= 0) & (tokens ^ first ^ second == 0)
        return found

    def signs(self) -> Float[Tensor, "V bits"]:
        """-1 for each feature that a token has, 1 for each that it has not: products of signs are exclusive ors."""
        ids = torch.arange(self.vocabulary)[:, None]
        return 1.0 - 2.0 * (ids >> torch.arange(self.bits) & 1).float()


def _earlier(tokens: Tensor, back: int) -> Tensor:
    """The token `back` places before each; -1 where the row had not begun."""
    moved = torch.full_like(tokens, -1)
    if back < tokens.shape[1]:
        moved[:, back:] = tokens[:, : tokens.shape[1] - back]
    return moved
