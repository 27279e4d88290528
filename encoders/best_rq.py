"""BEST-RQ: a speech encoder learns to guess, behind masks, the codes that a frozen random quantizer gives the frames
(Llama 3 paper, section 8.2; Chiu et al., 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from encoders.conformer import Conformer
from encoders.speech_tower import Sounds


@dataclass(frozen=True, kw_only=True)
class BestRQConfig:
    """The paper's settings."""

    codebooks: int = 16
    codes: int = 8192
    """In each codebook."""
    code_width: int = 16
    """What a stack of frames is projected to."""
    span: int = 32
    """Frames that a mask hides."""
    start: float = 0.025
    """Probability that a mask begins at a frame."""
    noise: float = 0.1
    """Deviation of what stands in a masked frame's place (Chiu et al.; the frames' own is 1)."""
    longest: int = 6000
    """Frames of a recording (60 s); of longer ones a random piece is taken."""

    def __post_init__(self) -> None:
        if not 0 < self.start < 1 or self.span < 1:
            raise ValueError(f"start must lie between 0 and 1 and span be at least 1, got {self.start}, {self.span}")


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What the encoder's guesses of a batch are worth."""

    loss: Float[Tensor, ""]
    """Summed over masked stacks, averaged over codebooks, in nats."""
    masked: int
    """Stacks that were guessed."""
    right: Float[Tensor, ""]
    """Of masked stacks, averaged over codebooks: how many were guessed right."""
    used: Float[Tensor, "codebooks"]
    """Perplexity of each codebook's codes in this batch: how many are in use."""


class Quantizer(nn.Module):
    """A random projection and random codebooks, never trained: the nearest code by cosine, in each codebook."""

    def __init__(self, width: int, config: BestRQConfig) -> None:
        super().__init__()
        self.projection: Tensor
        self.codes: Tensor
        self.register_buffer("projection", nn.init.xavier_uniform_(torch.empty(width, config.code_width)))
        books = torch.randn(config.codebooks, config.codes, config.code_width)
        self.register_buffer("codes", F.normalize(books, dim=-1))

    @torch.no_grad()
    def forward(self, stacks: Float[Tensor, "M W"]) -> Int[Tensor, "M codebooks"]:
        """The code of each stack of normalised frames."""
        # A code's length is 1 and a projection's own does not change which is nearest.
        projected = F.normalize(stacks.float() @ self.projection, dim=-1)
        return torch.stack([(projected @ book.T).argmax(-1) for book in self.codes], dim=1)


class BestRQ(nn.Module):
    """A Conformer with a quantizer of its input and a softmax for each codebook on its output."""

    def __init__(self, encoder: Conformer, config: BestRQConfig) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.quantizer = Quantizer(encoder.config.stack * encoder.config.bands, config)
        self.heads = nn.Linear(encoder.width, config.codebooks * config.codes)

    def forward(self, heard: Sounds) -> Guess:
        """Masks, encodes and guesses; what is drawn comes from torch's global generator."""
        config, encoder = self.config, self.encoder
        cut = [cropped(one, config.longest) for one in heard]
        frames = [encoder.normalised(one) for one in cut]
        codes = self.quantizer(torch.cat([encoder.stacked(one) for one in frames]))  # M codebooks
        hidden = [span_mask(len(one), config).to(one.device) for one in frames]
        noised = [
            torch.where(mask[:, None], config.noise * torch.randn_like(one), one)
            for one, mask in zip(frames, hidden, strict=True)
        ]
        features, real = encoder.encode([encoder.stacked(one) for one in noised])
        asked = torch.cat([wholly(mask, encoder.config.stack) for mask in hidden])
        chosen = features[real][asked]
        logits = self.heads(chosen).unflatten(-1, (config.codebooks, config.codes)).float()  # A codebooks codes
        truth = codes[asked]
        loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="sum") / config.codebooks
        right = (logits.argmax(-1) == truth).float().sum() / config.codebooks
        return Guess(loss=loss, masked=len(truth), right=right, used=perplexity(codes, config.codes))


def span_mask(frames: int, config: BestRQConfig) -> Bool[Tensor, "frames"]:
    """Which frames are hidden: a span begins at each with its own chance, and spans may overlap."""
    begins = torch.rand(frames) < config.start
    # A frame is hidden where one of the last `span` begins.
    counts = F.pad(begins.float(), (config.span, 0)).cumsum(0)
    return (counts[config.span :] - counts[: -config.span]) > 0.5


def wholly(mask: Bool[Tensor, "frames"], stack: int) -> Bool[Tensor, "stacks"]:
    """Which stacks are hidden in all of their frames: nothing of them is seen."""
    padded = F.pad(mask, (0, -len(mask) % stack), value=bool(mask[-1]))
    return padded.view(-1, stack).all(1)


def cropped(frames: Float[Tensor, "N C"], longest: int) -> Float[Tensor, "_ C"]:
    """The recording, or a random piece of one that is too long."""
    if len(frames) <= longest:
        return frames
    start = int(torch.randint(len(frames) - longest + 1, ()))
    return frames[start : start + longest]


def perplexity(codes: Int[Tensor, "M codebooks"], count: int) -> Float[Tensor, "codebooks"]:
    """For each codebook the exponential of the entropy of its codes: as many equally frequent ones would have."""
    shares = torch.stack([torch.bincount(column, minlength=count) for column in codes.T]).double()
    shares = shares / shares.sum(1, keepdim=True)
    return torch.special.entr(shares).sum(1).exp().float()


def coverage(config: BestRQConfig) -> float:
    """The share of frames that are hidden in a long recording."""
    return 1 - (1 - config.start) ** config.span


def total(guesses: Sequence[Guess]) -> tuple[float, float]:
    """Mean loss and share of right guesses over several batches."""
    masked = max(1, sum(one.masked for one in guesses))
    return sum(float(one.loss) for one in guesses) / masked, sum(float(one.right) for one in guesses) / masked
