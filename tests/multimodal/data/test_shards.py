import os
import pickle
from pathlib import Path

import pytest
import webdataset

from multimodal.data.shards import BadShard, Shards, expand, write_shard
from multimodal.data.tolerance import BadSample
from tests.multimodal.data.shard_making import captioned, picture, tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, count in enumerate([3, 1, 4]):
        tar(tmp_path / f"shard-{number:03d}.tar", captioned(count, start=10 * number))
    return tmp_path


def test_many_shards_read_as_one_sequence_in_any_order(folder: Path) -> None:
    shards = Shards(f"{folder}/shard-{{000..002}}.tar")
    assert shards.sizes == (3, 1, 4)
    assert len(shards) == 8
    keys = [shards[i].key for i in (7, 0, 3, 4, 2, 1, 6, 5)]
    assert keys == ["0023", "0000", "0010", "0020", "0002", "0001", "0022", "0021"]
    assert shards[3].members == {"png": picture(10), "txt": b"picture 10"}
    with pytest.raises(IndexError, match="sample 8 of 8"):
        shards[8]


def test_a_copy_sent_to_a_worker_reads_the_same(folder: Path) -> None:
    shards = Shards(folder)
    shards[0]
    copy = pickle.loads(pickle.dumps(shards))
    assert [copy[i].key for i in range(8)] == [shards[i].key for i in range(8)]


def test_paths_folders_globs_and_braces_name_shards(folder: Path) -> None:
    everything = [folder / f"shard-{number:03d}.tar" for number in range(3)]
    assert expand(folder) == everything
    assert expand(f"{folder}/*.tar") == everything
    assert expand([everything[0], str(everything[2])]) == [everything[0], everything[2]]
    assert expand(f"{folder}/shard-{{000,002}}.tar") == [everything[0], everything[2]]
    assert [path.name for path in expand("s{8..10}-{a,b}.tar")] == [f"s{n}-{x}.tar" for n in (8, 9, 10) for x in "ab"]
    assert [path.name for path in expand("s{08..10}.tar")] == ["s08.tar", "s09.tar", "s10.tar"]


@pytest.mark.parametrize(
    "pattern",
    ["pipe:touch fired", "pipe: cat x.tar", "http://host/x.tar", "s3://bucket/x.tar", "file:///x.tar"],
)
def test_commands_and_addresses_are_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is not a path"):
        Shards(pattern)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pattern", ["{3..1}.tar", "{a..c}.tar", "{}.tar", "none-*.tar", []])
def test_a_pattern_that_names_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str | list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"must count upwards|neither a range|names no shard|no shards were named"):
        expand(pattern)


def test_a_shard_named_twice_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="is named 2 times"):
        Shards([folder, folder / "shard-001.tar"])


def test_a_missing_shard_of_a_pattern_stops_or_is_left_out_by_name(folder: Path) -> None:
    pattern = f"{folder}/shard-{{000..003}}.tar"
    with pytest.raises(BadShard, match=r"shard-003\.tar cannot be read"):
        Shards(pattern)
    shards = Shards(pattern, on_bad_shard="skip")
    assert len(shards) == 8
    assert list(shards.bad) == [f"{folder}/shard-003.tar"]


def test_a_damaged_shard_stops_or_is_left_out_whole(folder: Path) -> None:
    damaged = folder / "shard-002.tar"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    with pytest.raises(BadShard, match=r"shard-002\.tar is damaged"):
        Shards(folder)
    shards = Shards(folder, on_bad_shard="skip")
    assert shards.sizes == (3, 1)
    assert "2 members and 0 samples are whole" in shards.bad[str(damaged)]


def test_no_shard_left_is_an_error_also_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(BadShard, match="none of 1 shards can be read"):
        Shards(tmp_path, on_bad_shard="skip")


def test_damage_under_way_is_found_by_the_checksum(folder: Path) -> None:
    strict, lenient = Shards(folder), Shards(folder, on_bad_shard="skip")
    offset = next(lenient._indices[1].members(0))[1]
    with (folder / "shard-001.tar").open("r+b") as file:
        file.seek(offset + 30)
        file.write(b"\xaa\xaa")
    with pytest.raises(BadShard, match="is not what the index says"):
        strict[3]
    with pytest.raises(BadSample, match="damaged_shard"):
        lenient[3]
    os.truncate(folder / "shard-001.tar", 600)
    with pytest.raises(BadShard, match="is not what the index says"):
        strict[3]


class Payload:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("fired",)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "x.pyd"])
def test_a_pickle_in_a_shard_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str) -> None:
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "s.tar", [("a.png", picture()), (f"a.{extension}", pickle.dumps(Payload()))])
    with pytest.raises(BadSample, match="unsafe_member"):
        Shards(tmp_path / "s.tar")[0]
    assert not (tmp_path / "fired").exists()


def test_what_is_written_is_read_by_us_and_by_webdataset(tmp_path: Path) -> None:
    samples = [{"__key__": f"{i:03d}", "png": picture(i), "txt": f"nr {i}"} for i in range(4)]
    assert write_shard(tmp_path / "s.tar", samples, made_from="x") == 4
    assert [Shards(tmp_path / "s.tar")[i].members["txt"] for i in range(4)] == [f"nr {i}".encode() for i in range(4)]
    theirs = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False))
    assert [sample["png"] for sample in theirs] == [picture(i) for i in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tar", "s.tar.index.json"]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    samples = [{"__key__": "a", "txt": "x"}]
    write_shard(tmp_path / "a.tar", samples)
    write_shard(tmp_path / "b.tar", samples)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_shard_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def failing():
        yield {"__key__": "a", "txt": "x"}
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_shard(tmp_path / "s.tar", failing())
    with pytest.raises(BadShard, match="is there twice"):
        write_shard(tmp_path / "s.tar", [{"__key__": "a", "txt": "x"}] * 2)
    assert not list(tmp_path.iterdir())


def test_a_shard_written_anew_gets_its_new_index(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [{"__key__": "a", "txt": "x"}])
    write_shard(tmp_path / "s.tar", [{"__key__": "b", "txt": "y"}, {"__key__": "c", "txt": "z"}])
    assert len(Shards(tmp_path / "s.tar")) == 2
