import json
from pathlib import Path

import pytest

from multimodal.data import ShardExamples, TooManyBadSamples, read_picture
from recipes.prepare_shards import Config, main
from tests.multimodal.data.shard_making import picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(picture(number))
    return folder


def jsonl(folder: Path, entries: list) -> Path:
    file = folder.parent / "captions.jsonl"
    file.write_text("\n".join(json.dumps(entry) for entry in entries))
    return file


@pytest.fixture
def captions(images: Path) -> Path:
    return jsonl(images, [{"image": f"{number}.png", "caption": f"nr {number}"} for number in range(5)])


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".tar"}


def test_pictures_and_captions_become_shards_that_are_read_back(tmp_path: Path, images: Path, captions: Path) -> None:
    total = main(Config(captions=captions, images=images, out=tmp_path / "out", per_shard=2))
    assert total == {"samples": 5}
    examples = ShardExamples(tmp_path / "out/shard-{00000..00002}.tar")
    assert examples.sizes == (2, 2, 1)
    assert [(examples[i].captions, examples[i].media) for i in range(5)] == [
        ((f"nr {i}",), (picture(i),)) for i in range(5)
    ]
    assert json.loads((tmp_path / "out/summary.json").read_text()) == {"samples": 5}


def test_the_same_input_gives_the_same_bytes_and_is_not_made_twice(
    tmp_path: Path, images: Path, captions: Path
) -> None:
    main(Config(captions=captions, images=images, out=tmp_path / "a", per_shard=2))
    main(Config(captions=captions, images=images, out=tmp_path / "b", per_shard=2))
    first = written(tmp_path / "a")
    assert first == written(tmp_path / "b")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.tar")}
    main(Config(captions=captions, images=images, out=tmp_path / "a", per_shard=2))
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.tar")}


def test_a_killed_run_goes_on_where_it_stopped(
    tmp_path: Path, images: Path, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(captions=captions, images=images, out=tmp_path / "out", per_shard=2)
    main(config)
    whole = written(tmp_path / "out")
    (tmp_path / "out/shard-00001.tar").unlink()
    (tmp_path / "out/shard-00002.tar.index.json").unlink()
    read: list[str] = []
    monkeypatch.setattr(
        "recipes.prepare_shards.read_picture", lambda data, key: read.append(key) or read_picture(data, key)
    )
    main(config)
    assert written(tmp_path / "out") == whole
    assert read == ["2.png", "3.png", "4.png"]


def test_a_changed_picture_changes_its_shard_alone(tmp_path: Path, images: Path, captions: Path) -> None:
    config = Config(captions=captions, images=images, out=tmp_path / "out", per_shard=2)
    main(config)
    before = written(tmp_path / "out")
    (images / "4.png").write_bytes(picture(40))
    main(config)
    changed = [name for name, data in written(tmp_path / "out").items() if data != before[name]]
    assert changed == ["shard-00002.tar"]
    assert ShardExamples(tmp_path / "out")[4].media == (picture(40),)


def test_what_is_left_out_is_counted_by_reason_and_said(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "page.jpg").write_text("<html>404</html>")
    file = jsonl(
        images,
        [
            {"image": "0.png", "caption": "fine"},
            {"image": "page.jpg", "caption": "a web page"},
            {"image": "none.png", "caption": "not there"},
            {"image": "1.png", "caption": ""},
        ],
    )
    total = main(Config(captions=file, images=images, out=tmp_path / "out", max_bad_share=1.0))
    assert total == {"samples": 1, "image_decode": 1, "missing_file": 1, "no_caption": 1}
    assert "captions.jsonl:3: 'none.png' is not in" in capsys.readouterr().out


def test_large_pictures_are_reduced_and_small_ones_left_as_they_are(tmp_path: Path, images: Path) -> None:
    (images / "large.jpg").write_bytes(picture(9, (64, 32), "JPEG"))
    file = jsonl(images, [{"image": name, "caption": name} for name in ("large.jpg", "0.png")])
    main(Config(captions=file, images=images, out=tmp_path / "out", max_side=16))
    examples = ShardExamples(tmp_path / "out")
    assert read_picture(examples[0].media[0]).size == (16, 8)
    assert examples[1].media == (picture(0),)


def test_several_captions_of_a_picture_stay_together(tmp_path: Path, images: Path) -> None:
    file = jsonl(images, [{"image": "0.png", "captions": ["one", "two"]}])
    main(Config(captions=file, images=images, out=tmp_path / "out"))
    assert ShardExamples(tmp_path / "out")[0].captions == ("one", "two")


def test_a_wrong_folder_is_an_error_and_not_a_thousand_skips(tmp_path: Path, captions: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="gave no sample: missing_file 5"):
        main(Config(captions=captions, images=tmp_path / "empty", out=tmp_path / "out"))
    many = jsonl(tmp_path / "empty", [{"image": "x.png", "caption": "x"}] * 150)
    with pytest.raises(TooManyBadSamples, match="100 bad samples one behind the other"):
        main(Config(captions=many, images=tmp_path / "empty", out=tmp_path / "out"))


def test_a_shard_of_an_earlier_longer_run_is_not_left_beside_the_new_ones(
    tmp_path: Path, images: Path, captions: Path
) -> None:
    main(Config(captions=captions, images=images, out=tmp_path / "out", per_shard=1))
    with pytest.raises(ValueError, match=r"shard-00003\.tar is of an earlier run with more entries"):
        main(Config(captions=captions, images=images, out=tmp_path / "out", per_shard=2))
