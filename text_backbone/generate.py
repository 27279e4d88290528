"""Batched generation: a generator of tokens, greedy or sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from text_backbone.cache import KeyValueCache
from text_backbone.model import Before, Embeds, TextBackbone


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is picked."""

    temperature: float = 0.0
    """0 takes the likeliest token; above, logits are divided by it before sampling."""

    top_p: float = 1.0
    """Sample from the fewest likeliest tokens that hold this share of the probability."""

    top_k: int = 0
    """Sample from this many likeliest tokens (applied before `top_p`); 0 means all."""

    seed: int | None = None
    """Makes the draws repeatable; None takes a fresh seed from the system."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature ({self.temperature}) must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p ({self.top_p}) must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k ({self.top_k}) must be 0 (all) or above")


GREEDY = Sampling()


def generate(
    text: TextBackbone,
    tokens: Int[Tensor, "B T"],
    lengths: Int[Tensor, "B"],
    *,
    before_prompt: Before | None = None,
    before_next: Before | None = None,
    embeds: Embeds | None = None,
    sampling: Sampling = GREEDY,
    stops: Sequence[int] | None = None,
    max_new: int = 256,
) -> Iterator[tuple[Int[Tensor, "B"], Bool[Tensor, "B"]]]:
    """New tokens, one per row and step, as they are made.

    Each step gives (token, alive): `alive` says for which rows the token counts, that is, which had not stopped before
    it; a stop token itself is alive, rows that have stopped get `pad`. It ends when every row has stopped, after
    `max_new` steps, or when the longest row fills the model's context.

    `tokens` are right padded, `lengths` (1 or more each) say how many are real. `before_prompt` is handed to the model
    with the prompt, `before_next` with every single token after it. `stops` default to the model's own.
    """
    if lengths.shape[0] != tokens.shape[0]:
        raise ValueError(f"lengths has {lengths.shape[0]} rows, tokens has {tokens.shape[0]}")
    shortest, longest = int(lengths.min()), int(lengths.max())
    if not 1 <= shortest <= longest <= tokens.shape[1]:
        raise ValueError(
            f"lengths ({shortest} .. {longest}) must be within 1 .. {tokens.shape[1]}, the width of tokens"
        )
    if longest > text.config.context:
        raise ValueError(f"the prompt has {longest} tokens, the model's context is {text.config.context}; shorten it")
    if max_new < 0:
        raise ValueError(f"max_new ({max_new}) must be 0 or above")
    steps = min(max_new, text.config.context - longest)
    stop = torch.tensor(tuple(text.config.stops if stops is None else stops), dtype=torch.long, device=tokens.device)
    return _tokens(text, tokens, lengths, before_prompt, before_next, embeds, sampling, stop, steps)


@torch.no_grad()
def _tokens(
    text: TextBackbone,
    tokens: Tensor,
    lengths: Tensor,
    before_prompt: Before | None,
    before_next: Before | None,
    embeds: Embeds | None,
    sampling: Sampling,
    stop: Tensor,
    steps: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    B, T = tokens.shape
    if steps == 0:
        return
    weight = text.model.embed_tokens.weight
    cache = KeyValueCache(text.config, B, T + steps, weight.dtype, weight.device)
    draws = torch.Generator()
    if sampling.seed is None:
        draws.seed()
    else:
        draws.manual_seed(sampling.seed)

    x = text.run(text.embed(tokens, embeds), before=before_prompt, cache=cache, lengths=lengths)
    # The head only where it is asked for: at the last real token of each row.
    x = x[torch.arange(B, device=x.device), lengths.to(x.device) - 1][:, None]
    alive = torch.ones(B, dtype=torch.bool, device=tokens.device)
    for step in range(steps):
        token = pick(text.head(x)[:, 0], sampling, draws).masked_fill(~alive, text.config.pad)
        yield token, alive
        alive = alive & ~torch.isin(token, stop)
        if step + 1 == steps or not bool(alive.any()):
            return
        x = text.run(text.embed(token[:, None]), before=before_next, cache=cache)


def pick(logits: Float[Tensor, "B V"], sampling: Sampling, draws: torch.Generator) -> Int[Tensor, "B"]:
    """One token per row. `draws` is a CPU generator, so that a seed means the same on every device.

    Each row uses one draw, by its place in the batch: what a row gets does not depend on the other rows' logits.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    share = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    ids = None
    if 0 < sampling.top_k < logits.shape[-1]:
        share, ids = share.topk(sampling.top_k, dim=-1)
        share = share / share.sum(-1, keepdim=True)
    elif sampling.top_p < 1:
        share, ids = share.sort(dim=-1, descending=True)
    if sampling.top_p < 1:
        share = share.masked_fill(share.cumsum(-1) - share >= sampling.top_p, 0)
    heights = share.cumsum(-1)
    draw = torch.rand(logits.shape[0], 1, dtype=torch.float64, generator=draws).to(logits.device)
    place = torch.searchsorted(heights, draw * heights[:, -1:], right=True)
    return (place if ids is None else ids.gather(-1, place))[:, 0]


def complete(
    text: TextBackbone,
    tokens: Int[Tensor, "B T"],
    lengths: Int[Tensor, "B"],
    *,
    before_prompt: Before | None = None,
    before_next: Before | None = None,
    embeds: Embeds | None = None,
    sampling: Sampling = GREEDY,
    stops: Sequence[int] | None = None,
    max_new: int = 256,
) -> list[list[int]]:
    """The new tokens of each row, without the stop token: `generate`, gathered."""
    stops = tuple(text.config.stops if stops is None else stops)
    rows: list[list[int]] = [[] for _ in range(tokens.shape[0])]
    stream = generate(
        text,
        tokens,
        lengths,
        before_prompt=before_prompt,
        before_next=before_next,
        embeds=embeds,
        sampling=sampling,
        stops=stops,
        max_new=max_new,
    )
    for token, alive in stream:
        for row, new, counts in zip(rows, token.tolist(), alive.tolist(), strict=True):
            if counts and new not in stops:
                row.append(new)
    return rows
