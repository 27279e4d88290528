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
        pictures = {id(image): image for row in rows for image in row.images}
        known = {identity: self._picture(image) for identity, image in pictures.items()}
        items = [Item(row=row, pictures=tuple(known[id(image)] for image in row.images)) for row in rows]
        pad = self._model.text.config.pad
        return collate(items, pad=pad).to(device_of(self._model))

    @torch.no_grad()
    def _picture(self, image: Image) -> Picture:
        key = image.key()
        if key not in self._known:
            self._known[key] = encode_picture(self._model, image)
            while len(self._known) > self._keep:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


def encode_picture(model: MultimodalModel, image: Image) -> Picture:
    """The features of one picture and their places."""
    if "image" not in model.encoders:
        raise ValueError(
            "the prompt holds a picture, but the model has no image encoder; load it with an image adapter"
        )
    encoder = model.encoders["image"]
    assert isinstance(encoder, ImageEncoder)
    tiles = to_tiles(image.open(), encoder.preprocess)
    pixels = tiles.pixels.to(device_of(model))
    owners = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
    places = encoder.places(tiles.grid)
    return Picture(places=places, features=encoder(pixels, owners, places.to(pixels.device)).flatten(0, 1))
