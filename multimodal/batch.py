"""Rows and their media as tensors: one batch for training, evaluation and generation alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multimodal.prompt import Row

NO_TARGET = -100


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture ready for the model: its tiles, or the frozen features that the encoder would make of them."""

    places: Float[Tensor, "m 3"]
    """Where each feature lies (encoders.ImageEncoder.places)."""
    tiles: Float[Tensor, "n 3 s s"] | None = None
    features: Float[Tensor, "m e"] | None = None


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One recording ready for the model: what the encoder hears, or the frozen features that it would make of it."""

    rows: int
    """Rows of the text that it takes (adapters.SpeechAdapter.rows)."""
    heard: Float[Tensor, "n c"] | None = None
    features: Float[Tensor, "f e"] | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """A row with its pictures and recordings, before it is put into a batch."""

    row: Row
    pictures: tuple[Picture, ...] = ()
    sounds: tuple[Sound, ...] = ()
    script: Row | None = None
    """The same row with the transcript in place of the recording: what a teacher reads."""
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B rows, right padded to T tokens, and all their pictures packed one behind the other: no padding among the
    features.
    """

    tokens: Int[Tensor, "B T"]
    lengths: Int[Tensor, "B"]
    targets: Int[Tensor, "B T"]
    """The token that follows each token where it is to be learned, -100 elsewhere."""
    places: Float[Tensor, "P 3"]
    owners: Int[Tensor, "P"]
    """Which picture each feature is of, in rising order."""
    index: Int[Tensor, "B M"]
    """Which packed features a row has, -1 where it has none."""
    sees: Bool[Tensor, "B T M"]
    tiles: Float[Tensor, "N 3 S S"] | None = None
    pictures: Int[Tensor, "N"] | None = None
    """Which picture each tile is of."""
    features: Float[Tensor, "P E"] | None = None
    heard: Float[Tensor, "J C"] | None = None
    """What the speech encoder hears of all recordings, in the order of their placeholders."""
    speech: Float[Tensor, "F U"] | None = None
    """The recordings' frozen features."""
    sizes: Int[Tensor, "R"] | None = None
    """How many rows of `heard` or `speech` each recording has."""
    script: Batch | None = None
    """The rows with transcripts in place of recordings, for a teacher."""
    keys: tuple[str, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    """Samples left out of this batch, by reason."""

    @property
    def has_media(self) -> bool:
        """Whether it has pictures."""
        return self.tiles is not None or self.features is not None

    @property
    def has_speech(self) -> bool:
        return self.sizes is not None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        moved = {
            entry.name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
            for entry in fields(self)
            if isinstance(value := getattr(self, entry.name), Tensor | Batch)
        }
        return replace(self, **moved)


def collate(items: Sequence[Item], *, pad: int, width: int | None = None) -> Batch:
    """One batch of `items`; `pad` fills the ends of shorter rows, `width` asks for a fixed number of tokens a row."""
    if not items:
        raise ValueError("a batch needs at least one row")
    rows = [item.row.heard([sound.rows for sound in item.sounds]) for item in items]
    T = width or max(len(row.tokens) for row in rows)
    B = len(rows)
    tokens = torch.full((B, T), pad, dtype=torch.long)
    targets = torch.full((B, T), NO_TARGET, dtype=torch.long)
    M = max((sum(len(picture.places) for picture in item.pictures) for item in items), default=0)
    index = torch.full((B, M), -1, dtype=torch.long)
    sees = torch.zeros(B, T, M, dtype=torch.bool)
    packed = 0
    for b, (item, expanded) in enumerate(zip(items, rows, strict=True)):
        row = torch.tensor(expanded.tokens)
        tokens[b, : len(row)] = row
        for start, stop in expanded.learned:
            assert start > 0, "the first token follows nothing and cannot be learned"
            targets[b, start - 1 : stop - 1] = row[start:stop]
        m = 0
        for picture, (start, stop) in zip(item.pictures, expanded.spans, strict=True):
            size = len(picture.places)
            index[b, m : m + size] = torch.arange(packed, packed + size)
            sees[b, start:stop, m : m + size] = True
            m, packed = m + size, packed + size
    pictures = [picture for item in items for picture in item.pictures]
    scripts = [Item(row=item.script) for item in items if item.script is not None]
    assert len(scripts) in (0, B), "all rows have a script, or none"
    return Batch(
        tokens=tokens,
        lengths=torch.tensor([len(row.tokens) for row in rows]),
        targets=targets,
        places=torch.cat([picture.places for picture in pictures]) if pictures else torch.zeros(0, 3),
        owners=torch.arange(len(pictures)).repeat_interleave(
            torch.tensor([len(one.places) for one in pictures], dtype=torch.long)
        ),
        index=index,
        sees=sees,
        script=collate(scripts, pad=pad) if scripts else None,
        keys=tuple(item.key for item in items),
        **_packed_media(pictures),
        **_packed_speech([sound for item in items for sound in item.sounds]),
    )


def _packed_media(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Features where every picture has them, tiles where every picture has those; a mixture is our own mistake."""
    if not pictures:
        return {}
    if all(picture.features is not None for picture in pictures):
        return {"features": torch.cat([picture.features for picture in pictures if picture.features is not None])}
    tiles = [picture.tiles for picture in pictures if picture.tiles is not None]
    assert len(tiles) == len(pictures), "a batch holds tiles or features, not both"
    owners = torch.arange(len(tiles)).repeat_interleave(torch.tensor([len(one) for one in tiles]))
    return {"tiles": torch.cat(tiles), "pictures": owners}


def _packed_speech(sounds: Sequence[Sound]) -> dict[str, Any]:
    """Features where every recording has them, else what the encoder hears of each."""
    if not sounds:
        return {}
    features = [sound.features for sound in sounds if sound.features is not None]
    heard = [sound.heard for sound in sounds if sound.heard is not None]
    assert len(features) == len(sounds) or len(heard) == len(sounds), "a batch holds features or sounds, not both"
    chosen, name = (features, "speech") if len(features) == len(sounds) else (heard, "heard")
    return {name: torch.cat(chosen), "sizes": torch.tensor([len(one) for one in chosen])}


def stand_in(batch: Batch | None, *, tile: tuple[int, int, int], places: Float[Tensor, "m 3"], pad: int) -> Batch:
    """A batch that has media: `batch` itself, or with one more row, of which nothing is learned, that sees a blank
    picture.

    Sharded training (FSDP2) wants every process to run the same modules, whatever its samples hold.
    """
    if batch is not None and batch.has_media:
        return batch
    M = len(places)
    T = 1 if batch is None else batch.tokens.shape[1]
    B = 0 if batch is None else len(batch.tokens)
    one = Batch(
        tokens=torch.full((1, T), pad),
        lengths=torch.ones(1, dtype=torch.long),
        targets=torch.full((1, T), NO_TARGET),
        tiles=torch.zeros(1, *tile),
        pictures=torch.zeros(1, dtype=torch.long),
        places=places,
        owners=torch.zeros(M, dtype=torch.long),
        index=torch.arange(M)[None],
        sees=torch.ones(1, T, M, dtype=torch.bool),
    )
    if batch is None:
        return one
    return replace(
        one,
        tokens=torch.cat([batch.tokens, one.tokens]),
        lengths=torch.cat([batch.lengths, one.lengths]),
        targets=torch.cat([batch.targets, one.targets]),
        index=torch.cat([torch.full((B, M), -1), one.index]),
        sees=torch.cat([torch.zeros(B, T, M, dtype=torch.bool), one.sees]),
        heard=batch.heard,
        speech=batch.speech,
        sizes=batch.sizes,
        keys=batch.keys,
        skipped=batch.skipped,
    )
