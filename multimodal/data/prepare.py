"""From an example of a shard to an item of a batch: tokens, and tiles or cached features; runs in loader workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from encoders.pixels import Preprocess, to_tiles
from multimodal.batch import Item, Picture
from multimodal.data.feature_cache import FeatureCache
from multimodal.data.sample import Example, read_picture
from multimodal.data.tolerance import BadSample
from multimodal.modality import Image
from multimodal.prompt import PromptReader, Row

Places = Callable[[tuple[int, int]], Float[Tensor, "M 3"]]


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Makes items; everything that is chance (which caption, which view) comes from the generator it is given."""

    reader: PromptReader
    preprocess: Preprocess
    places: Places
    caption_prompt: str
    cache: FeatureCache | None = None
    """Where the frozen encoder's features lie; pictures are cut into tiles where there is none."""
    views: int = 1
    """Views of each picture in the cache."""
    longest: int = 512
    """Rows of more tokens are bad samples."""

    def __call__(self, example: Example, random: torch.Generator) -> Item:
        row = self._row(example, random)
        if len(row.tokens) > self.longest:
            raise BadSample("too_long", f"{example.key} has {len(row.tokens)} tokens (limit {self.longest})")
        pictures = tuple(self._picture(example, data, random) for data in example.media)
        return Item(row=row, pictures=pictures, key=example.key)

    def _row(self, example: Example, random: torch.Generator) -> Row:
        if example.messages:
            return self.reader.dialog(example.messages, learn=True)
        caption = example.captions[_draw(len(example.captions), random)]
        shown = [Image(data) for data in example.media]
        return self.reader.raw([*shown, self.caption_prompt], answer=f" {caption}")

    def _picture(self, example: Example, data: bytes, random: torch.Generator) -> Picture:
        if self.cache is not None:
            found = self.cache.find(data, _draw(self.views, random))
            if found is None:
                raise BadSample("not_cached", f"{example.key}: its features were not computed (a broken picture?)")
            return Picture(features=found.rows, places=self.places(found.grid))
        tiles = to_tiles(read_picture(data, example.key), self.preprocess)
        return Picture(tiles=tiles.pixels, places=self.places(tiles.grid))


def _draw(count: int, random: torch.Generator) -> int:
    """One of `count`; nothing is drawn where there is no choice."""
    return int(torch.randint(count, (), generator=random)) if count > 1 else 0
