import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multimodal.training.publication import MANIFEST, fault, publish, sweep, write_safetensors, write_text


def two_files(folder: Path) -> None:
    (folder / "a.txt").write_text("first")
    (folder / "b.txt").write_text("second")


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_published_folder_verifies(tmp_path: Path) -> None:
    publish(tmp_path / "states" / "one", two_files)
    assert fault(tmp_path / "states" / "one") is None
    assert entries(tmp_path / "states" / "one") == ["a.txt", "b.txt", MANIFEST]
    assert entries(tmp_path / "states") == ["one"]


def test_a_later_one_of_the_same_name_replaces_it(tmp_path: Path) -> None:
    publish(tmp_path / "one", two_files)
    publish(tmp_path / "one", lambda folder: (folder / "c.txt").write_text("third") and None)
    assert fault(tmp_path / "one") is None
    assert entries(tmp_path / "one") == ["c.txt", MANIFEST]
    assert entries(tmp_path) == ["one"]


def flip_a_bit(folder: Path) -> None:
    (folder / "a.txt").write_text("fisst")


def cut_short(folder: Path) -> None:
    (folder / "a.txt").write_text("fir")


def remove_a_file(folder: Path) -> None:
    (folder / "b.txt").unlink()


def empty_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("")


def put_something_else_there(folder: Path) -> None:
    (folder / MANIFEST).write_text('["not", "a manifest"]')


def remove_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit, "a.txt does not have the sha256"),
        (cut_short, "a.txt has 3 bytes instead of 5"),
        (remove_a_file, "b.txt is missing"),
        (empty_the_manifest, "manifest.json is damaged"),
        (put_something_else_there, "manifest.json is damaged"),
        (remove_the_manifest, "No such file or directory: manifest.json"),
    ],
)
def test_any_damage_is_found_and_named(tmp_path: Path, damage, words: str) -> None:
    publish(tmp_path / "one", two_files)
    damage(tmp_path / "one")
    assert words in str(fault(tmp_path / "one"))


def test_an_error_while_writing_leaves_what_stood_before_and_nothing_else(tmp_path: Path) -> None:
    publish(tmp_path / "one", two_files)

    def fails(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        publish(tmp_path / "one", fails)
    assert fault(tmp_path / "one") is None
    assert entries(tmp_path) == ["one"]


def test_sweep_removes_what_a_kill_left_and_brings_back_what_was_being_replaced(tmp_path: Path) -> None:
    publish(tmp_path / "kept", two_files)
    publish(tmp_path / "one", two_files)
    (tmp_path / "one").rename(tmp_path / ".replaced-one")
    (tmp_path / ".partial-one").mkdir()
    (tmp_path / ".partial-one" / "a.txt").write_text("half")
    (tmp_path / ".partial-report.html").write_text("half")
    sweep(tmp_path)
    assert entries(tmp_path) == ["kept", "one"]
    assert fault(tmp_path / "one") is None
    sweep(tmp_path / "nothing here")


def test_files_have_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_safetensors(tmp_path / "run" / "adapter.safetensors", {"w": torch.ones(3)})
        publish(tmp_path / "one", lambda folder: write_safetensors(folder / "w.safetensors", {"w": torch.ones(3)}))
    finally:
        os.umask(before)
    assert (tmp_path / "run" / "adapter.safetensors").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "one" / "w.safetensors").stat().st_mode & 0o777 == 0o644


def test_tied_weights_and_views_are_written_under_each_name(tmp_path: Path) -> None:
    table = torch.randn(4, 3)
    write_safetensors(
        tmp_path / "w.safetensors", {"embed": table, "head": table, "part": table[1:3], "turned": table.T}
    )
    read = load_file(tmp_path / "w.safetensors")
    assert torch.equal(read["head"], table)
    assert torch.equal(read["part"], table[1:3])
    assert torch.equal(read["turned"], table.T)


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", {"w": torch.ones(3)})
    write_text(tmp_path / "t.txt", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(Exception, match="too large"):
            write_safetensors(tmp_path / "w.safetensors", {"w": torch.ones(30_000)})
        with pytest.raises(OSError, match="too large"):
            write_text(tmp_path / "t.txt", "new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert torch.equal(load_file(tmp_path / "w.safetensors")["w"], torch.ones(3))
    assert (tmp_path / "t.txt").read_text() == "old"
    assert entries(tmp_path) == ["t.txt", "w.safetensors"]
