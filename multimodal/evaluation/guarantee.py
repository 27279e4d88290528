"""The guarantee, measured: with adapters attached, text alone gives bit for bit the logits of the bare text model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from text_backbone import KeyValueCache, TextBackbone


@runtime_checkable
class Composed(Protocol):
    """What is asked of a multimodal model here."""

    text: TextBackbone

    def __call__(self, batch: Any, *, every_position: bool = False) -> Tensor: ...

    def remember(self, batch: Any) -> Any: ...

    def before(self, memory: Any, sees: Tensor) -> Mapping[int, Any]: ...

    def listen(self, batch: Any) -> Tensor | None: ...

    def embeds(self, tokens: Tensor, speech: Tensor | None = None) -> tuple[Tensor, Tensor] | None: ...


@torch.no_grad()
def text_unchanged(model: Composed, batch: Any, *, new: int = 4) -> dict[str, float]:
    """The largest absolute difference of logits, case by case, between the composed model and its bare text model.

    0.0 is bit-identical (a NaN on one side only is infinity). `batch` (multimodal.batch.Batch) must mix rows that have
    pictures or recordings with rows that have none. Both models are always given the same batch shape, for matrix
    products are not batch-invariant. The cases, over real tokens only:

        alone                  the text rows by themselves
        beside_pictures        the text rows in the mixed batch
        before_first_picture   the picture rows' tokens ahead of their first picture (left out where there are none)
        cached_prefill         as beside_pictures, written into a key-value cache
        cached_decode          `new` more tokens of each text row, one at a time, in the mixed batch
        cached_decode_alone    the same, the text rows by themselves
    """
    was_training = _set_training(model, False)
    try:
        return _cases(model, batch, new)
    finally:
        _set_training(model, was_training)


def _cases(model: Composed, batch: Any, new: int) -> dict[str, float]:
    places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    real = places < batch.lengths[:, None]  # B T
    textual = ~((batch.index >= 0).any(-1) | (batch.tokens >= model.text.config.vocabulary).any(-1))  # B
    if not textual.any() or textual.all():
        raise ValueError(
            f"the batch has {int(textual.sum())} rows without pictures out of {len(textual)}; "
            "it must mix rows with pictures and rows without"
        )
    alone = _rows_without_media(batch, textual)
    bare = _bare(model.text, batch.tokens)
    differences = {
        "alone": _largest(
            model(alone, every_position=True), model.text(alone.tokens, lengths=alone.lengths), real[textual]
        )
    }
    mixed, plain = model(batch, every_position=True), model.text(bare, lengths=batch.lengths)
    differences["beside_pictures"] = _largest(mixed, plain, real & textual[:, None])
    # Placeholders are other tokens to the bare model: what follows them may differ, what precedes them may not.
    opened = (batch.sees.any(-1) | (batch.tokens >= model.text.config.vocabulary)).cumsum(-1) > 0  # B T
    ahead = real & ~textual[:, None] & ~opened
    if ahead.any():
        differences["before_first_picture"] = _largest(mixed, plain, ahead)
    prefill, decode = _cached(model, batch, bare, textual, new)
    differences["cached_prefill"] = prefill
    differences["cached_decode"] = decode
    every = torch.ones(len(alone.tokens), dtype=torch.bool, device=alone.tokens.device)
    differences["cached_decode_alone"] = _cached(model, alone, alone.tokens, every, new)[1]
    return differences


def _cached(
    model: Composed, batch: Any, bare: Int[Tensor, "B T"], textual: Bool[Tensor, "B"], new: int
) -> tuple[float, float]:
    """Largest differences of the text rows in a cached prefill, and in `new` decoding steps after it."""
    text, (B, T) = model.text, batch.tokens.shape
    weight = text.model.embed_tokens.weight
    ours, theirs = (KeyValueCache(text.config, B, T + new, weight.dtype, weight.device) for _ in range(2))
    memory = model.remember(batch)
    last = (torch.arange(B, device=batch.tokens.device), batch.lengths - 1)

    x = text.embed(batch.tokens, model.embeds(batch.tokens, model.listen(batch)))
    composed = text.head(text.run(x, before=model.before(memory, batch.sees), cache=ours, lengths=batch.lengths))
    plain = text(bare, cache=theirs, lengths=batch.lengths)
    real = torch.arange(T, device=batch.tokens.device) < batch.lengths[:, None]
    prefill = _largest(composed, plain, real & textual[:, None])

    # New tokens see what the last token of the prompt saw; both models are fed the bare model's choice.
    before, decode = model.before(memory, batch.sees[last][:, None]), 0.0
    token = plain[last].argmax(-1)[:, None]
    for _ in range(new):
        composed = text.head(text.run(text.embed(token), before=before, cache=ours))
        plain = text(token, cache=theirs)
        decode = max(decode, _largest(composed, plain, textual[:, None]))
        token = plain[:, -1].argmax(-1)[:, None]
    return prefill, decode


def _bare(text: TextBackbone, tokens: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The tokens with an ordinary one where a placeholder stood: the bare model knows no placeholders."""
    return tokens.masked_fill(tokens >= text.config.vocabulary, 0)


def _rows_without_media(batch: Any, textual: Bool[Tensor, "B"]) -> Any:
    """The batch's text rows as a batch of their own."""
    rows, T = int(textual.sum()), batch.tokens.shape[1]
    return replace(
        batch,
        tokens=batch.tokens[textual],
        lengths=batch.lengths[textual],
        targets=batch.targets[textual],
        places=batch.places[:0],
        owners=batch.owners[:0],
        index=batch.index[textual][:, :0],
        sees=torch.zeros(rows, T, 0, dtype=torch.bool, device=batch.tokens.device),
        tiles=None,
        pictures=None,
        features=None,
        heard=None,
        speech=None,
        sizes=None,
    )


def _largest(ours: Float[Tensor, "B T V"], theirs: Float[Tensor, "B T V"], where: Bool[Tensor, "B T"]) -> float:
    """The largest absolute difference at the chosen tokens; infinity where only one side is a number."""
    ours, theirs = ours[where], theirs[where]
    gap = (ours.double() - theirs.double()).abs().masked_fill(ours == theirs, 0.0)
    gap = gap.masked_fill(ours.isnan() & theirs.isnan(), 0.0)
    return float(gap.nan_to_num(nan=float("inf"), posinf=float("inf")).max()) if gap.numel() else 0.0


def _set_training(model: Any, mode: bool) -> bool:
    """Puts a module into a mode (dropout off while measuring) and gives the one it was in."""
    before = bool(getattr(model, "training", False))
    if isinstance(model, torch.nn.Module):
        model.train(mode)
    return before
