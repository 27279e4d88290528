"""A captioning test's samples: what shards hold that can be asked about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multimodal.evaluation.pictures import read_samples
from tests.multimodal.data.shard_making import picture, tar


def test_every_caption_and_every_kind_of_picture_is_read(tmp_path: Path) -> None:
    several = json.dumps({"captions": ["a taxi", "a yellow cab"], "noun": "taxi"}).encode()
    shard = tar(
        tmp_path / "test.tar",
        [("a.png", picture(0)), ("a.json", several), ("b.gif", picture(1, kind="GIF")), ("b.txt", b"noise")],
    )
    samples = read_samples(shard)
    assert [sample.captions for sample in samples] == [("a taxi", "a yellow cab"), ("noise",)]
    assert [sample.noun for sample in samples] == ["taxi", None]
    assert len(read_samples(shard, most=1)) == 1


def test_what_is_no_sample_is_left_out_and_counted(tmp_path: Path) -> None:
    talk = json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}).encode()
    members = [("a.png", picture(0)), ("a.txt", b"noise"), ("b.png", b"not a picture"), ("b.txt", b"broken")]
    members += [("c.txt", b"no picture"), ("d.json", talk)]
    shard = tar(tmp_path / "test.tar", members)
    with pytest.warns(UserWarning, match="2 samples are left out: {'image_decode': 1, 'no_image': 1}"):
        samples = read_samples(shard)
    assert [sample.key for sample in samples] == ["a"]


def test_shards_without_captioned_pictures_are_refused(tmp_path: Path) -> None:
    shard = tar(tmp_path / "test.tar", [("c.txt", b"no picture")])
    with pytest.warns(UserWarning, match="no_image"), pytest.raises(ValueError, match="holds no captioned picture"):
        read_samples(shard)
