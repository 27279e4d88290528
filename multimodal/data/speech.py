"""Recordings on their way into training: shards, tasks, the features' cache, batches of about equal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.functional import resample

from adapters import SpeechAdapter
from encoders import SpeechEncoder
from encoders.sound import RATE, read_sound
from multimodal.batch import Batch, Item, Sound, collate
from multimodal.data.buckets import Buckets
from multimodal.data.feature_cache import FeatureCache, Features, Filled, View, fill_cache
from multimodal.data.loader import Loader, LoaderConfig
from multimodal.data.order import Mixture, Turns
from multimodal.data.recordings import Recording, ShardRecordings
from multimodal.data.spoken import spoken
from multimodal.data.tolerance import BadSample
from multimodal.fingerprint import fingerprint
from multimodal.modality import Audio
from multimodal.prompt import PromptReader, Row

Task = Literal["transcribe", "translate", "dialogue"]


@dataclass(frozen=True, kw_only=True)
class SpeechData:
    """Which recordings a run learns from, and how they are read."""

    train: tuple[str, ...]
    """WebDataset shards: paths, folders, globs or `shard-{000..009}.tar`, one entry a source."""
    weights: tuple[float, ...] = ()
    """Share of each source in a batch; none: all sources are one."""
    tasks: tuple[tuple[Task, float], ...] = (("transcribe", 1.0), ("translate", 1.0), ("dialogue", 1.0))
    """How often each task is drawn among those that a recording has the answers to."""
    into: tuple[str, ...] = ("English",)
    """Languages that are translated into."""
    batch: int = 32
    """Rows of one optimizer step, over all processes."""
    bucket: int = 16
    """Batches among which samples are sorted by length; 1: none."""
    cache: str = ""
    """Folder for the frozen encoder's features; empty: recordings are encoded every time they come."""
    speeds: tuple[float, ...] = ()
    """Other speeds at which each recording is learned from (0.9, 1.1), drawn as often as its own."""
    masks: float = 0.0
    """SpecAugment: in training, two spans of up to half this share of a recording are silenced."""
    bands: int = 0
    """SpecAugment: up to so many neighbouring mel bands are silenced; only where features are not cached."""
    longest: float = 30.0
    """Seconds; longer recordings are bad samples."""
    prompt: str = "Repeat after me in {language}:"
    """Ahead of a recording whose transcript is the answer."""
    translation_prompt: str = "Translate the following sentence into {language}:"
    """Ahead of a recording whose translation is the answer; the prompt names the language of the answer only."""
    written: bool = False
    """Whether transcripts are learned as they are written, with capitals and signs, or as words alone."""
    seed: int = 0
    """Of the data's order."""
    reading: LoaderConfig = field(default_factory=LoaderConfig)

    def __post_init__(self) -> None:
        if any(not 0.5 <= speed <= 2 for speed in self.speeds):
            raise ValueError(f"speeds must lie between 0.5 and 2, got {self.speeds}")
        if not 0 <= self.masks < 1:
            raise ValueError(f"masks is a share of a recording, from 0 to below 1, got {self.masks}")


def speech_sources(data: SpeechData) -> list[ShardRecordings]:
    """The training shards of each source; ValueError for none, BadShard for one that is missing or damaged."""
    if not data.train:
        raise ValueError(
            "no training shards are named; give --data.train a path to shards of recordings (docs/data.md says how)"
        )
    return [ShardRecordings(pattern) for pattern in data.train]


def speech_loader(
    data: SpeechData,
    recordings: Sequence[ShardRecordings],
    reader: PromptReader,
    encoder: SpeechEncoder,
    adapter: SpeechAdapter,
    *,
    pad: int,
    accumulate: int = 1,
    rank: int = 0,
    ranks: int = 1,
    scripted: bool = False,
) -> Loader[Item, Batch]:
    """Batches of this process, in an order that depends on `data` alone; with `scripted`, the transcripts as rows of
    their own come along, for a teacher.
    """
    prepare = PrepareSpeech(
        reader=reader,
        data=data,
        encoder=encoder,
        adapter=adapter,
        cache=open_speech_cache(data, encoder) if data.cache else None,
        scripted=scripted,
    )
    sizes = tuple(tuple(one.sizes) for one in recordings)
    mixture = Mixture(sources=sizes, seed=data.seed, weights=data.weights or None)
    ordered = Buckets(mixture, [one.lengths for one in recordings], rows=data.batch, batches=data.bucket)
    turns = Turns(rows=data.batch, rank=rank, ranks=ranks, micro=accumulate)
    return Loader(
        list(recordings), ordered, turns, prepare=prepare, collate=partial(collate, pad=pad), config=data.reading
    )


def open_speech_cache(data: SpeechData, encoder: SpeechEncoder) -> FeatureCache:
    """The features that this encoder makes of recordings prepared as it wants them."""
    return FeatureCache(data.cache, encoder=fingerprint(encoder), preprocessing=_preprocessing(data, encoder))


def fill_speech(
    data: SpeechData, recordings: Sequence[ShardRecordings], encoder: SpeechEncoder, *, rank: int = 0, ranks: int = 1
) -> Iterator[Filled]:
    """Computes the features that the cache lacks; ValueError for an encoder that learns, whose features would grow
    old.
    """
    if any(weight.requires_grad for weight in encoder.parameters()):
        raise ValueError("the speech encoder learns, so its features cannot be cached; leave --data.cache empty")
    device = next(encoder.parameters()).device

    def prepare(view: View) -> Float[Tensor, "n c"]:
        return encoder.prepare(at_speed(opened(view.data, data.longest), (1.0, *data.speeds)[view.number]))

    @torch.no_grad()
    def encode(heard: Sequence[Float[Tensor, "_ c"]]) -> list[Features]:
        sizes = torch.tensor([len(one) for one in heard], device=device)
        features, counts = encoder(torch.cat(list(heard)).to(device), sizes)
        return [Features(rows=rows, grid=(len(rows), 1)) for rows in features.split(counts.tolist())]

    yield from fill_cache(
        data.cache,
        _sounds(recordings),
        encoder=fingerprint(encoder),
        preprocessing=_preprocessing(data, encoder),
        prepare=prepare,
        encode=encode,
        views=1 + len(data.speeds),
        batch=8,
        rank=rank,
        ranks=ranks,
        max_bad_share=data.reading.max_bad_share,
    )


@dataclass(frozen=True, kw_only=True)
class PrepareSpeech:
    """Makes items; everything that is chance (task, speed, masks) comes from the generator it is given."""

    reader: PromptReader
    data: SpeechData
    encoder: SpeechEncoder
    adapter: SpeechAdapter
    cache: FeatureCache | None
    scripted: bool

    def __call__(self, recording: Recording, random: torch.Generator) -> Item:
        audio = Audio(recording.sound)
        task = self._task(recording, random)
        row = self._row(recording, audio, task)
        script = self._row(recording, f" {self._said(recording.text)}", task) if self.scripted else None
        sound = self._sound(recording, random)
        return Item(row=row, sounds=(sound,), key=recording.key, script=script)

    def _task(self, recording: Recording, random: torch.Generator) -> Task:
        has: dict[Task, object] = {
            "transcribe": recording.text,
            "translate": any(recording.translations.get(language) for language in self.data.into),
            "dialogue": recording.reply,
        }
        open_tasks: list[tuple[Task, float]] = [
            (task, weight) for task, weight in self.data.tasks if has[task] and weight > 0
        ]
        if not open_tasks:
            raise BadSample(
                "no_task", f"{recording.key} has no answer to any of {[task for task, _ in self.data.tasks]}"
            )
        task, _ = open_tasks[drawn([weight for _, weight in open_tasks], random)]
        return task

    def _row(self, recording: Recording, audio: Audio | str, task: Task) -> Row:
        if task == "dialogue":
            said = [{"role": "user", "content": [audio]}, {"role": "assistant", "content": recording.reply}]
            return self.reader.dialog(said, learn=True)
        if task == "transcribe":
            prompt, language, answer = self.data.prompt, recording.language, recording.text
        else:
            language = next(name for name in self.data.into if recording.translations.get(name))
            prompt, answer = self.data.translation_prompt, recording.translations[language]
        answer = self._said(answer)
        if not answer:
            raise BadSample("no_text", f"{recording.key} has a transcript without a word: {recording.text!r}")
        return self.reader.raw([prompt.format(language=language), audio], answer=f" {answer}")

    def _said(self, text: str) -> str:
        return text if self.data.written else spoken(text)

    def _sound(self, recording: Recording, random: torch.Generator) -> Sound:
        view = drawn([1.0] * (1 + len(self.data.speeds)), random)
        if self.cache is not None:
            found = self.cache.find(recording.sound, view)
            if found is None:
                raise BadSample("not_cached", f"{recording.key}: its features were not computed (is it broken?)")
            features = masked(found.rows, self.data.masks, random)
            return Sound(rows=self.adapter.rows(len(features)), features=features)
        sound = at_speed(opened(recording.sound, self.data.longest, recording.key), (1.0, *self.data.speeds)[view])
        heard = masked(self.encoder.prepare(sound), self.data.masks, random, bands=self.data.bands)
        return Sound(rows=self.adapter.rows(self.encoder.frames(len(heard))), heard=heard)


def opened(data: bytes, longest: float, key: str = "") -> Float[Tensor, "samples"]:
    """The recording's samples; BadSample with the reason too_long or sound_decode otherwise."""
    try:
        return read_sound(data, longest=longest)
    except ValueError as error:
        reason = "too_long" if "too long" in str(error) else "sound_decode"
        raise BadSample(reason, f"{key}: {error}" if key else str(error)) from error


def at_speed(sound: Float[Tensor, "samples"], speed: float) -> Float[Tensor, "_"]:
    """The same said faster (above 1) or slower, and accordingly higher or lower."""
    return sound if speed == 1.0 else resample(sound, round(RATE * speed), RATE)


def masked(
    frames: Float[Tensor, "n c"], share: float, random: torch.Generator, *, bands: int = 0
) -> Float[Tensor, "n c"]:
    """Frames with two spans of up to half of `share` of them, and up to `bands` columns, at their mean."""
    if not share and not bands:
        return frames
    frames = frames.clone()
    mean = frames.mean()
    for _ in range(2 if share else 0):
        start, stop = _span(len(frames), int(len(frames) * share / 2), random)
        frames[start:stop] = mean
    if bands:
        start, stop = _span(frames.shape[1], min(bands, frames.shape[1]), random)
        frames[:, start:stop] = mean
    return frames


def drawn(weights: Sequence[float], random: torch.Generator) -> int:
    """One of several, by their weights; nothing is drawn where there is no choice."""
    if len(weights) == 1:
        return 0
    height = float(torch.rand((), generator=random)) * sum(weights)
    return next((i for i, top in enumerate(accumulate(weights)) if height < top), len(weights) - 1)


def _span(length: int, most: int, random: torch.Generator) -> tuple[int, int]:
    size = int(torch.randint(most + 1, (), generator=random))
    start = int(torch.randint(length - size + 1, (), generator=random))
    return start, start + size


def _preprocessing(data: SpeechData, encoder: SpeechEncoder) -> str:
    """What the stored features depend on besides the encoder: a view's number stands for a speed."""
    return f"{encoder.preprocessing} {data.speeds}" if data.speeds else encoder.preprocessing


def _sounds(recordings: Sequence[ShardRecordings]) -> Iterator[bytes]:
    """All recordings, shortest first: those that are encoded together are about equally long."""
    found = [
        (length, source, index) for source, one in enumerate(recordings) for index, length in enumerate(one.lengths)
    ]
    for _, source, index in sorted(found):
        recording = recordings[source].get(index)
        if recording is not None:
            yield recording.sound
