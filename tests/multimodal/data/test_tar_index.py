import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal.data.tar_index import BadShard, index_path, open_index, scan, split_name
from tests.multimodal.data.shard_making import captioned, tar


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return tar(tmp_path / "s.tar", captioned(5))


def corrupt(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_the_index_counts_every_sample_and_is_kept_beside_the_shard(shard: Path) -> None:
    index = open_index(shard)
    assert len(index) == 5
    assert [index.key(i) for i in range(5)] == ["0000", "0001", "0002", "0003", "0004"]
    stored = json.loads(index_path(shard).read_text())
    assert (stored["samples"], len(stored["members"])) == (5, 10)
    assert [extension for extension, *_ in index.members(0)] == ["png", "txt"]


def test_the_stored_index_is_taken_when_size_and_time_agree(shard: Path) -> None:
    open_index(shard)
    state = shard.stat()
    corrupt(shard, 0, b"\xff" * 600)
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(open_index(shard)) == 5


def test_a_copied_shard_with_a_new_time_still_fits_its_index(shard: Path) -> None:
    open_index(shard)
    os.utime(shard, ns=(1, 1))
    assert len(open_index(shard)) == 5


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "other"}', "[" * 5000, '{"format": "scion-shard-index-1"}']
)
def test_an_index_that_cannot_be_read_is_made_anew(shard: Path, text: str) -> None:
    index_path(shard).write_text(text)
    assert len(open_index(shard)) == 5
    assert json.loads(index_path(shard).read_text())["samples"] == 5


def test_an_index_with_a_flipped_digit_is_not_believed(shard: Path) -> None:
    open_index(shard)
    text = index_path(shard).read_text()
    index_path(shard).write_text(text.replace(", 512, ", ", 513, ", 1))
    assert next(offset for _, offset, _, _ in open_index(shard).members(0)) == 512


def test_a_folder_that_cannot_be_written_to_gets_no_index(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multimodal.data.tar_index.os.access", lambda *_: False)
    assert len(open_index(shard)) == 5
    assert not index_path(shard).exists()


def test_a_cut_shard_names_the_file_and_both_counts(shard: Path) -> None:
    open_index(shard)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:3000])
    with pytest.raises(
        BadShard, match=r"s\.tar is damaged or cut short .* samples are whole .*its index counts 5 samples"
    ):
        open_index(shard)


def test_a_shard_cut_anywhere_is_an_error_also_without_an_index(shard: Path) -> None:
    """tarfile and webdataset read such a shard to the cut and call it the end."""
    whole = shard.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in (*range(1, end, 487), end, end + 512):
        shard.write_bytes(whole[:length])
        with pytest.raises(BadShard, match=r"s\.tar"):
            scan(shard)


def test_a_flipped_bit_in_any_header_is_an_error(shard: Path) -> None:
    whole = shard.read_bytes()
    headers = [offset - 512 for _, offset, _, _ in scan(shard)]
    for header in headers:
        for byte in (0, 100, 124, 150, 156, 257):
            damaged = bytearray(whole)
            damaged[header + byte] ^= 0x04
            shard.write_bytes(damaged)
            with pytest.raises(BadShard, match="damaged or cut short"):
                scan(shard)


def test_a_flipped_bit_in_the_data_after_indexing_is_an_error_that_says_so(shard: Path) -> None:
    index = open_index(shard)
    offset = next(index.members(3))[1]
    corrupt(shard, offset + 20, b"\x01")
    os.utime(shard, ns=(1, 1))
    with pytest.raises(
        BadShard, match=r"is not what it was: its index counts 5 samples .* the file has 5 .* 1 members differ"
    ):
        open_index(shard)


def test_a_shard_written_anew_without_its_index_is_refused_until_the_index_is_deleted(shard: Path) -> None:
    open_index(shard)
    tar(shard, captioned(3, start=7))
    with pytest.raises(BadShard, match=r"delete s\.tar\.index\.json if the change was meant"):
        open_index(shard)
    index_path(shard).unlink()
    assert len(open_index(shard)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "damaged or cut short at byte 0"),
        (os.urandom(4096), "damaged or cut short at byte 0"),
        (b"\x1f\x8b" + bytes(2000), "is compressed"),
        (bytes(1024), "holds no samples"),
        (bytes(512), "one zero block where two"),
    ],
    ids=["empty", "html", "garbage", "gzip", "no members", "half an end"],
)
def test_what_is_no_tar_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(BadShard, match=message):
        open_index(tmp_path / "s.tar")


def test_a_missing_shard_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadShard, match="cannot be read"):
        open_index(tmp_path / "no.tar")
    with pytest.raises(BadShard, match="is not a file"):
        open_index(tmp_path)


def test_two_tars_joined_by_cat_do_not_lose_the_second(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes() + shard.read_bytes())
    with pytest.raises(BadShard, match="behind the closing zero blocks"):
        open_index(shard)


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "x/../a.png", "a\\b.png", "x//a.png", "a\n.png"])
def test_names_that_would_be_dangerous_as_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadShard, match="is not accepted"):
        open_index(tar(tmp_path / "s.tar", [(name, b"x")]))


@pytest.mark.parametrize("name", ["README", ".hidden", "a/.png"])
def test_a_member_without_a_key_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadShard, match=r"has no `key.extension` form"):
        open_index(tar(tmp_path / "s.tar", [(name, b"x")]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as file:
        header = tarfile.TarInfo("a.png")
        header.type, header.linkname = kind, "/etc/passwd"
        file.addfile(header)
    with pytest.raises(BadShard, match=r"member 'a\.png' is"):
        open_index(tmp_path / "s.tar")


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadShard, match=r"'a\.png' is there twice"):
        open_index(tar(tmp_path / "s.tar", [("a.png", b"x"), ("a.png", b"y")]))
    with pytest.raises(BadShard, match=r"'a\.PNG' is there twice"):
        open_index(tar(tmp_path / "t.tar", [("a.png", b"x"), ("a.PNG", b"y")]))


def test_a_sample_torn_apart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadShard, match="sample 'a' is torn apart"):
        open_index(tar(tmp_path / "s.tar", [("a.png", b"x"), ("b.png", b"y"), ("a.txt", b"z")]))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_tars_of_all_tools_are_read(tmp_path: Path, kind: int) -> None:
    long = "folder/" + "n" * 90 if kind == tarfile.USTAR_FORMAT else "folder/" + "long" * 60
    members = [(f"{long}.png", b"x" * 700), (f"{long}.seg.txt", b"y"), ("./b.png", b""), ("\u00e9.png", b"z" * 512)]
    with tarfile.open(tmp_path / "s.tar", "w", format=kind) as file:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            file.addfile(header, io.BytesIO(data))
    index = open_index(tmp_path / "s.tar")
    assert [index.key(i) for i in range(len(index))] == [long, "b", "\u00e9"]
    whole = (tmp_path / "s.tar").read_bytes()
    read = [whole[offset : offset + size] for i in range(3) for _, offset, size, _ in index.members(i)]
    assert read == [data for _, data in members]


def test_keys_end_at_the_first_dot_as_in_webdataset() -> None:
    assert split_name("a/b.c/0001.seg.PNG") == ("a/b.c/0001", "seg.png")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_damage_gives_anything_but_the_same_samples_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    shard = tar(folder / "s.tar", captioned(2), kind=data.draw(st.sampled_from([0, 1, 2])))
    whole = bytearray(shard.read_bytes())
    end = len(whole.rstrip(b"\0")) + 1024
    for at in data.draw(st.lists(st.integers(0, end), min_size=1, max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    shard.write_bytes(whole[: data.draw(st.integers(0, end + 2048))])
    try:
        names = [name for name, *_ in scan(shard)]
    except BadShard:
        return
    assert names == [name for name, _ in captioned(2)]
