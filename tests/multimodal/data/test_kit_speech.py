from __future__ import annotations

import json
from pathlib import Path

import pytest

from multimodal.data.kit.fetch import CannotFetchError
from multimodal.data.kit.speech import QUEEN, SPLITS, TINY, Spoken, prepare_speech, split_of, write_recordings
from multimodal.data.kit.speech_packages import SPEECH_PACKAGES
from multimodal.data.recordings import ShardRecordings
from tests.multimodal import hearing
from tests.multimodal.data.kit_making import Client


def recording(number: int, text: str, *, seconds: float = 0.5, sound: bytes = b"", group: str = "") -> Spoken:
    return Spoken(
        key=f"k.{number}",
        sound=sound or hearing.wav(number, seconds),
        kind="wav",
        text=text,
        language="English",
        speaker="ann",
        source="test",
        licence="MIT",
        group=group or text,
    )


def test_no_words_are_in_two_splits(tmp_path: Path) -> None:
    said = [f"sentence number {'abcdefghijklmnopqrst'[i % 20]}{'xyz'[i % 3]}!" for i in range(150)]
    counts, _ = write_recordings("t", [recording(i, text) for i, text in enumerate(said)], tmp_path)
    assert sum(one["clips"] for one in counts.values()) == 150
    found = {}
    for split in SPLITS:
        if (tmp_path / f"t-{split}").is_dir():
            source = ShardRecordings(tmp_path / f"t-{split}")
            found[split] = {source[i].text for i in range(len(source))}
    assert len(found) >= 2
    parts = list(found.values())
    assert all(not (one & other) for i, one in enumerate(parts) for other in parts[:i])


def test_the_split_is_of_what_is_said_not_of_how_it_is_written() -> None:
    assert split_of("Don't  do THAT!") == split_of("don\u2019t do that")
    shares = [split_of(f"line {i}") for i in range(4000)]
    assert 0.03 < shares.count("test") / 4000 < 0.07
    assert 0.03 < shares.count("val") / 4000 < 0.07


def test_what_cannot_be_learned_from_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        recording(0, "good"),
        recording(1, "short", seconds=0.2),
        recording(2, "..."),
        recording(3, "broken", sound=b"no sound"),
    ]
    counts, left_out = write_recordings("t", rows, tmp_path)
    assert sum(one["clips"] for one in counts.values()) == 1
    assert left_out == {"too short": 1, "no word": 1, "cannot be decoded": 1}


def test_a_shard_tells_where_its_recordings_come_from(tmp_path: Path) -> None:
    counts, _ = write_recordings("t", [recording(0, "good")], tmp_path)
    source = ShardRecordings(tmp_path / next(iter(counts)))
    about = json.loads(source.shards[0].members["json"])
    assert (about["source"], about["licence"], about["speaker"], about["seconds"]) == ("test", "MIT", "ann", 0.5)
    assert source[0].key == "t-k_0"


def test_without_encoder_or_speech_the_kit_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CannotFetchError, match="too little to learn hearing with") as error:
        prepare_speech(tmp_path, say=lambda _: None, client=Client({}))
    assert TINY in str(error.value)
    assert QUEEN in str(error.value)


def test_every_package_is_pinned_and_tells_its_licence() -> None:
    assert all(len(one.sha256) == 64 and one.licence and one.least for one in SPEECH_PACKAGES)
