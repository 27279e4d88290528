import json
from pathlib import Path

import pytest

from multimodal.data.recordings import ShardRecordings
from multimodal.data.shards import write_shard
from multimodal.data.tolerance import BadSample


def shard(folder: Path, *samples: dict) -> ShardRecordings:
    path = folder / "a.tar"
    write_shard(path, [{"__key__": f"s{i}", **sample} for i, sample in enumerate(samples)])
    return ShardRecordings(path)


def about(**values) -> str:
    return json.dumps(values)


def test_a_recording_comes_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    full = about(text="Ahoj.", language="Czech", speaker="fish", translations={"English": "Hi."}, reply="Hello!")
    source = shard(tmp_path, {"ogg": b"123", "json": full}, {"wav": b"1", "txt": "plain words"})
    one, other = source[0], source[1]
    assert (one.sound, one.text, one.language, one.speaker) == (b"123", "Ahoj.", "Czech", "fish")
    assert (one.translations, one.reply) == ({"English": "Hi."}, "Hello!")
    assert (other.text, other.language, other.speaker, other.translations) == ("plain words", "English", "", {})
    assert source.lengths == [3, 1]


def test_what_is_no_recording_is_a_bad_sample_with_its_reason(tmp_path: Path) -> None:
    source = shard(
        tmp_path,
        {"json": about(text="no sound")},
        {"wav": b"1", "ogg": b"2", "txt": "two"},
        {"wav": b"1", "json": about(language="English")},
        {"wav": b"1", "json": "[1]"},
        {"wav": b"1", "json": about(text="x", translations=["y"])},
        {"wav": b"1", "json": about(text=7)},
    )
    reasons = ["no_sound", "sound_count", "no_text", "json", "json", "text"]
    for index, reason in enumerate(reasons):
        with pytest.raises(BadSample) as error:
            source[index]
        assert error.value.reason == reason
        assert source.get(index) is None
