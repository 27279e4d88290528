"""Captioned pictures on their way into training: shards, their mixture, the features' cache, the loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import PIL.Image
import torch

from encoders import ImageEncoder
from encoders.pixels import Tiles, to_tiles
from multimodal.batch import Batch, Item, collate
from multimodal.data.feature_cache import FeatureCache, Features, Filled, View, fill_cache
from multimodal.data.loader import Loader, LoaderConfig
from multimodal.data.order import Mixture, Turns
from multimodal.data.prepare import Prepare
from multimodal.data.sample import Example, ShardExamples, read_picture
from multimodal.data.tolerance import BadSample
from multimodal.fingerprint import fingerprint
from multimodal.lexical_start import Captioned
from multimodal.prompt import PromptReader


@dataclass(frozen=True, kw_only=True)
class PictureData:
    """Which pictures a run learns from, and how they are read."""

    train: tuple[str, ...]
    """WebDataset shards: paths, folders, globs or `shard-{000..009}.tar`, one entry a source."""
    start: tuple[str, ...] = ()
    """Shards that a lexical start is fitted on; none: those of `train`. Better others: of pictures that the start was
    fitted on, the projector knows more than it will ever know of new ones."""
    weights: tuple[float, ...] = ()
    """Share of each source in a batch; none: all sources are one."""
    batch: int = 48
    """Rows of one optimizer step, over all processes."""
    cache: str = ""
    """Folder for the frozen encoder's features; empty: pictures are encoded every time they come."""
    views: int = 1
    """Views of each picture in the cache: the picture and views - 1 augmentations."""
    caption_prompt: str = "Image caption:"
    """The words between a picture and its caption."""
    longest: int = 512
    """Longest row in tokens."""
    seed: int = 0
    """Of the data's order."""
    reading: LoaderConfig = field(default_factory=LoaderConfig)


def starting(data: PictureData) -> list[ShardExamples]:
    """The shards that a lexical start is fitted on."""
    return [ShardExamples(pattern) for pattern in data.start or data.train]


def sources(data: PictureData) -> list[ShardExamples]:
    """The training shards of each source; ValueError for none, BadShard for one that is missing or damaged."""
    if not data.train:
        raise ValueError(
            "no training shards are named; give --data.train a path, or make shards with recipes/prepare_shards.py"
        )
    return [ShardExamples(pattern) for pattern in data.train]


def picture_loader(
    data: PictureData,
    examples: Sequence[ShardExamples],
    reader: PromptReader,
    encoder: ImageEncoder,
    *,
    pad: int,
    accumulate: int = 1,
    rank: int = 0,
    ranks: int = 1,
) -> Loader[Item, Batch]:
    """Batches of this process, in an order that depends on `data` alone."""
    cache = open_cache(data, encoder) if data.cache else None
    prepare = Prepare(
        reader=reader,
        preprocess=encoder.preprocess,
        places=encoder.places,
        caption_prompt=data.caption_prompt,
        cache=cache,
        views=data.views,
        longest=data.longest,
    )
    mixture = Mixture(sources=tuple(tuple(one.sizes) for one in examples), seed=data.seed, weights=data.weights or None)
    turns = Turns(rows=data.batch, rank=rank, ranks=ranks, micro=accumulate)
    return Loader(
        list(examples), mixture, turns, prepare=prepare, collate=partial(collate, pad=pad), config=data.reading
    )


def open_cache(data: PictureData, encoder: ImageEncoder) -> FeatureCache:
    """The features that this encoder makes of pictures prepared as it wants them."""
    return FeatureCache(data.cache, encoder=fingerprint(encoder), preprocessing=repr(encoder.preprocess))


def fill(
    data: PictureData,
    examples: Sequence[ShardExamples],
    encoder: ImageEncoder,
    *,
    augment: Callable[[PIL.Image.Image], PIL.Image.Image],
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Filled]:
    """Computes the features that the cache lacks; ValueError for an encoder that learns, whose features would grow
    old.
    """
    if any(weight.requires_grad for weight in encoder.parameters()):
        raise ValueError("the image encoder learns, so its features cannot be cached; leave --data.cache empty")
    device = next(encoder.parameters()).device
    # Chance comes from torch's global generator, which the cache seeds for each view.

    def prepare(view: View) -> Tiles:
        picture = read_picture(view.data)
        return to_tiles(augment(picture) if view.number else picture, encoder.preprocess)

    @torch.no_grad()
    def encode(tiles: Sequence[Tiles]) -> list[Features]:
        counts = torch.tensor([len(one.pixels) for one in tiles])
        owners = torch.arange(len(tiles)).repeat_interleave(counts)
        places = torch.cat([encoder.places(one.grid) for one in tiles])
        made = encoder(torch.cat([one.pixels for one in tiles]).to(device), owners.to(device), places.to(device))
        return [
            Features(rows=rows.flatten(0, 1), grid=one.grid)
            for rows, one in zip(made.split(counts.tolist()), tiles, strict=True)
        ]

    pictures = (picture for source in examples for example in _readable(source) for picture in example.media)
    yield from fill_cache(
        data.cache,
        pictures,
        encoder=fingerprint(encoder),
        preprocessing=repr(encoder.preprocess),
        prepare=prepare,
        encode=encode,
        views=data.views,
        rank=rank,
        ranks=ranks,
        max_bad_share=data.reading.max_bad_share,
    )


def captioned(
    data: PictureData, examples: Sequence[ShardExamples], encoder: ImageEncoder, *, most: int = 16384
) -> Iterator[Captioned]:
    """The first `most` captioned pictures of the training shards with their cached features, for a lexical start."""
    cache = open_cache(data, encoder)
    given = 0
    for example in (one for source in examples for one in _readable(source) if one.captions):
        found = cache.find(example.media[0])
        if found is None:
            continue
        rows, whole = found.rows.float(), encoder.places(found.grid)[:, 2] == 1
        patches = rows[~whole].mean(0)
        # Of several tiles the mean: a caption is of the whole picture.
        tiles = rows[whole].view(found.grid[0] * found.grid[1], -1, rows.shape[1])
        yield Captioned(patches=patches, whole=tiles.mean(0), caption=example.captions[0])
        given += 1
        if given == most:
            return


def _readable(source: ShardExamples) -> Iterator[Example]:
    """The samples that are examples; what is wrong with the others is counted where they are learned from."""
    for index in range(len(source)):
        try:
            yield source[index]
        except BadSample:
            continue
