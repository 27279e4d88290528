"""Prompts made ready for the model: pictures opened, cut into tiles, encoded once and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from encoders import ImageEncoder
from encoders.pixels import to_tiles
from multimodal.batch import Batch, Item, Picture, collate
from multimodal.modality import Image
from multimodal.model import MultimodalModel, device_of
from multimodal.prompt import Row


class PictureReader:
    """Turns the pictures of prompts into features; the last `keep` pictures are not encoded again."""

    def __init__(self, model: MultimodalModel, *, keep: int = 64) -> None:
        self._model = model
        self._keep = keep
        self._known: OrderedDict[str, Picture] = OrderedDict()

    def batch(self, rows: Sequence[Row]) -> Batch:
        """The rows with their pictures' features as one batch on the model's device."""
        shown = {id(image): image for row in rows for image in row.images}
        known = dict(zip(shown, self.pictures(list(shown.values())), strict=True))
        items = [Item(row=row, pictures=tuple(known[id(image)] for image in row.images)) for row in rows]
        return collate(items, pad=self._model.text.config.pad).to(device_of(self._model))

    @torch.no_grad()
    def pictures(self, images: Sequence[Image]) -> list[Picture]:
        """The features of each picture; those that are not known yet are encoded together."""
        keys = [image.key() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        made = dict(zip(new, encode_pictures(self._model, list(new.values())), strict=True)) if new else {}
        found = [made[key] if key in made else self._known[key] for key in keys]
        for key, picture in zip(keys, found, strict=True):
            self._known[key] = picture
            self._known.move_to_end(key)
        while len(self._known) > self._keep:
            self._known.popitem(last=False)
        return found


def encode_pictures(model: MultimodalModel, images: Sequence[Image]) -> list[Picture]:
    """The features of pictures and their places, on the model's device."""
    if "image" not in model.encoders:
        raise ValueError(
            "the prompt holds a picture, but the model has no image encoder; load it with an image adapter"
        )
    encoder = model.encoders["image"]
    assert isinstance(encoder, ImageEncoder)
    cut = [to_tiles(image.open(), encoder.preprocess) for image in images]
    counts = [len(tiles.pixels) for tiles in cut]
    places = [encoder.places(tiles.grid) for tiles in cut]
    device = device_of(model)
    owners = torch.arange(len(cut)).repeat_interleave(torch.tensor(counts))
    pixels = torch.cat([tiles.pixels for tiles in cut]).to(device)
    features = encoder(pixels, owners.to(device), torch.cat(places).to(device))
    return [
        Picture(places=place.to(device), features=rows.flatten(0, 1))
        for place, rows in zip(places, features.split(counts), strict=True)
    ]
