"""Recordings with what is said in them, as they lie in shards.

A sample is `key.mp3` (or wav, flac, ogg) with `key.txt`, the transcript, or with `key.json`:

    {"text": "Ahoj.", "language": "Czech", "speaker": "small fish", "translations": {"English": "Hi."}, "reply": ""}

of which only `text` is needed; `reply` is what an assistant answers to the recording, for spoken dialogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multimodal.data.sample import SOUNDS, checked_text, decode
from multimodal.data.shards import OnBadShard, Record, Shards
from multimodal.data.tolerance import BadSample


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording and what is known of it."""

    key: str
    sound: bytes
    text: str
    language: str = "English"
    """Its English name, as prompts say it."""
    speaker: str = ""
    translations: Mapping[str, str] = field(default_factory=dict)
    reply: str = ""


class ShardRecordings:
    """The recordings of WebDataset shards, read in any order (see Shards); a sample that is none raises BadSample."""

    def __init__(self, patterns: str | Path | Sequence[str | Path], *, on_bad_shard: OnBadShard = "stop") -> None:
        self.shards = Shards(patterns, on_bad_shard=on_bad_shard)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.shards.sizes

    @property
    def lengths(self) -> list[int]:
        """Bytes of each recording: about proportional to its length, and known without opening it."""
        return self.shards.bytes_of(SOUNDS)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Recording:
        return to_recording(self.shards[index])

    def get(self, index: int) -> Recording | None:
        """The recording, or nothing where the sample is bad: it is counted where it is learned from."""
        try:
            return self[index]
        except BadSample:
            return None


def to_recording(record: Record) -> Recording:
    """The recording that a record holds; BadSample (no_sound, sound_count, no_text, json, text) otherwise."""
    members = decode(record.members)
    sounds = [data for name, data in members.items() if name.rsplit(".", 1)[-1] in SOUNDS]
    if len(sounds) != 1:
        reason = "sound_count" if sounds else "no_sound"
        raise BadSample(reason, f"{record.key}: {len(sounds)} recordings among {sorted(members)}, expected one")
    about = members.get("json", {})
    if not isinstance(about, dict):
        raise BadSample("json", f"{record.key}.json holds {type(about).__name__}, not an object")
    text = checked_text(members.get("txt", about.get("text", "")), f"the transcript of {record.key}")
    if not text:
        raise BadSample("no_text", f"{record.key} has no transcript; members {sorted(members)}")
    translations = about.get("translations", {})
    if not isinstance(translations, dict):
        raise BadSample("json", f"{record.key}: translations must be an object of language and text")
    return Recording(
        key=record.key,
        sound=sounds[0],
        text=text,
        language=_word(about, "language", record.key) or "English",
        speaker=_word(about, "speaker", record.key),
        translations={
            name: checked_text(said, f"{record.key} in {name}") for name, said in translations.items() if said
        },
        reply=_word(about, "reply", record.key),
    )


def _word(about: Mapping[str, Any], name: str, key: str) -> str:
    return checked_text(about.get(name, ""), f"{name} of {key}")
