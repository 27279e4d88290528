"""A captioning test: captioned pictures of shards, what a model says of each, of a wrong one and of none."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from encoders import ImageEncoder
from multimodal.assistant import Assistant
from multimodal.data.feature_cache import FeatureCache
from multimodal.data.sample import read_picture, to_example
from multimodal.data.sentences import Slots
from multimodal.data.shards import Shards
from multimodal.data.tolerance import BadSample
from multimodal.evaluation.controls import wrong_medium
from multimodal.evaluation.nearest_neighbour import NearestNeighbour, pool
from multimodal.modality import Image


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One captioned picture; `noun` and `slots` where the shard's record has them."""

    key: str
    picture: bytes
    captions: tuple[str, ...]
    """What may be said of it: one caption, or several that are equally true."""
    noun: str | None = None
    slots: Slots | None = None

    @property
    def caption(self) -> str:
        return self.captions[0]


@dataclass(frozen=True, kw_only=True)
class Said:
    """The model's captions of a test's pictures, and of its controls, in the order of the samples."""

    right: list[str]
    wrong_medium: list[str]
    no_medium: list[str]


def read_samples(patterns: str | Path | Sequence[str | Path], *, most: int = 0, opened: bool = True) -> list[Sample]:
    """The captioned pictures of shards, the first `most` unless that is 0.

    Conversations are passed over; what is no sample is too, with a warning that counts by reason; so is, with `opened`,
    a picture that cannot be opened. ValueError where no captioned picture is left.
    """
    samples: list[Sample] = []
    broken: Counter[str] = Counter()
    shards = Shards(patterns)
    for index in range(len(shards)):
        record = shards[index]
        try:
            example = to_example(record)
            if opened and example.captions:
                read_picture(*example.media, key=record.key)
        except BadSample as error:
            broken[error.reason] += 1
            continue
        if not example.captions:
            continue
        about = json.loads(record.members.get("json", b"{}"))
        slots = Slots.from_json(about["slots"]) if "slots" in about else None
        [picture] = example.media
        samples.append(
            Sample(key=record.key, picture=picture, captions=example.captions, noun=about.get("noun"), slots=slots)
        )
        if len(samples) == most:
            break
    if broken:
        warnings.warn(f"{patterns}: {broken.total()} samples are left out: {dict(broken)}", stacklevel=2)
    if not samples:
        raise ValueError(f"{patterns} holds no captioned picture")
    return samples


def say(assistant: Assistant, samples: Sequence[Sample], *, batch: int = 64, max_new: int = 32) -> Said:
    """Greedy captions of each picture, of the picture of another sample, and of no picture."""
    images = [Image(sample.picture) for sample in samples]
    wrong = wrong_medium([sample.captions for sample in samples])
    [nothing] = assistant.batch([assistant.caption_prompt], raw=True, max_new=max_new)
    right = captions(assistant, images, batch=batch, max_new=max_new)
    # Greedy captions of a picture are the same whoever is asked about it: the wrong picture's are known already.
    return Said(right=right, wrong_medium=[right[i] for i in wrong], no_medium=[nothing] * len(samples))


def captions(assistant: Assistant, images: Sequence[Image], *, batch: int = 64, max_new: int = 32) -> list[str]:
    """Greedy captions of pictures, `batch` of them side by side."""
    return [
        caption
        for start in range(0, len(images), batch)
        for caption in assistant.caption(images[start : start + batch], max_new=max_new)
    ]


def likelihoods(assistant: Assistant, samples: Sequence[Sample], *, batch: int = 16) -> dict[str, list[float]]:
    """The true captions' log-probabilities: of their picture (""), of another sample's (wrong_medium), of none.

    In nats a token. A caption whose words were never learned can hardly be said, but it can be found likelier.
    """
    wrong = wrong_medium([sample.captions for sample in samples])
    shown = {
        "": [[Image(sample.picture)] for sample in samples],
        "wrong_medium": [[Image(samples[other].picture)] for other in wrong],
        "no_medium": [[] for _ in samples],
    }
    found: dict[str, list[float]] = {}
    for name, media in shown.items():
        found[name] = []
        for start in range(0, len(samples), batch):
            prompts = [[*one, assistant.caption_prompt] for one in media[start : start + batch]]
            captions = [sample.caption for sample in samples[start : start + batch]]
            found[name] += assistant.likelihoods(prompts, captions).tolist()
    return found


def nearest(
    assistant: Assistant, samples: Sequence[Sample], gallery: Sequence[tuple[bytes, str]], cache: FeatureCache
) -> list[str]:
    """The caption of the training picture whose pooled patches are nearest: what the features alone can do."""
    encoder = assistant.model.encoders["image"]
    assert isinstance(encoder, ImageEncoder)
    known = [
        (_patches(found.rows, encoder), caption)
        for picture, caption in gallery
        if (found := cache.find(picture)) is not None
    ]
    if not known:
        raise ValueError(
            f"the cache {cache.folder} holds none of the training pictures; train with it, or fill it first"
        )
    index = NearestNeighbour(pool([rows for rows, _ in known]), [caption for _, caption in known])
    return index.answers(pool([_patches(rows, encoder) for rows in _features(assistant, samples)]))


def _patches(rows: Float[Tensor, "M E"], encoder: ImageEncoder) -> Float[Tensor, "_ E"]:
    """The features of a picture's patches, without those of whole tiles."""
    return rows.unflatten(0, (-1, encoder.per_tile))[:, encoder.whole :].flatten(0, 1)


def _features(assistant: Assistant, samples: Sequence[Sample], batch: int = 64) -> list[Float[Tensor, "M E"]]:
    """Features as the training pictures' are stored: in bfloat16."""
    found: list[Tensor] = []
    for start in range(0, len(samples), batch):
        shown = [Image(sample.picture) for sample in samples[start : start + batch]]
        found += [_stored(picture.features) for picture in assistant.media.pictures(shown)]
    return found


def _stored(features: Tensor | None) -> Tensor:
    assert features is not None
    return features.to("cpu", torch.bfloat16).float()
