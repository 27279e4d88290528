"""Prompts made ready for the model: pictures and recordings opened, encoded once and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from adapters import SpeechAdapter
from encoders import ImageEncoder, SpeechEncoder
from encoders.pixels import to_tiles
from multimodal.batch import Batch, Item, Picture, Sound, collate
from multimodal.modality import Audio, Image
from multimodal.model import MultimodalModel, device_of
from multimodal.prompt import Row


class MediaReader:
    """Turns the media of prompts into features; the last `keep` of each kind are not encoded again."""

    def __init__(self, model: MultimodalModel, *, keep: int = 64) -> None:
        self._model = model
        self._keep = keep
        self._known: OrderedDict[str, Picture] = OrderedDict()
        self._heard: OrderedDict[str, Sound] = OrderedDict()

    def batch(self, rows: Sequence[Row]) -> Batch:
        """The rows with the features of their media as one batch on the model's device."""
        shown = {id(image): image for row in rows for image in row.images}
        known = dict(zip(shown, self.pictures(list(shown.values())), strict=True))
        played = {id(audio): audio for row in rows for audio in row.sounds}
        heard = dict(zip(played, self.sounds(list(played.values())), strict=True))
        items = [
            Item(
                row=row,
                pictures=tuple(known[id(image)] for image in row.images),
                sounds=tuple(heard[id(audio)] for audio in row.sounds),
            )
            for row in rows
        ]
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

    @torch.no_grad()
    def sounds(self, audios: Sequence[Audio]) -> list[Sound]:
        """The features of each recording; those that are not known yet are encoded together."""
        keys = [audio.key() for audio in audios]
        new = {key: audio for key, audio in zip(keys, audios, strict=True) if key not in self._heard}
        made = dict(zip(new, encode_sounds(self._model, list(new.values())), strict=True)) if new else {}
        found = [made[key] if key in made else self._heard[key] for key in keys]
        for key, sound in zip(keys, found, strict=True):
            self._heard[key] = sound
            self._heard.move_to_end(key)
        while len(self._heard) > self._keep:
            self._heard.popitem(last=False)
        return found


def encode_sounds(model: MultimodalModel, audios: Sequence[Audio]) -> list[Sound]:
    """The features of recordings, on the model's device."""
    if "speech" not in model.encoders:
        raise ValueError(
            "the prompt holds a recording, but the model has no speech encoder; load it with a speech adapter"
        )
    encoder, adapter = model.encoders["speech"], model.adapters["speech"]
    assert isinstance(encoder, SpeechEncoder)
    assert isinstance(adapter, SpeechAdapter)
    context = model.text.config.context
    prepared = []
    for audio in audios:
        heard = encoder.prepare(audio.open())
        rows = adapter.rows(encoder.frames(len(heard)))
        if rows > context:
            raise ValueError(
                f"a recording of {len(heard)} frames takes {rows} places, the text model has {context}; "
                "cut it up, or have it transcribed piece by piece with assistant.transcribe(...)"
            )
        prepared.append((heard, rows))
    device = device_of(model)
    sizes = torch.tensor([len(heard) for heard, _ in prepared], device=device)
    features, counts = encoder(torch.cat([heard for heard, _ in prepared]).to(device), sizes)
    return [
        Sound(rows=rows, features=part)
        for (_, rows), part in zip(prepared, features.split(counts.tolist()), strict=True)
    ]


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
