import os
import stat
from pathlib import Path

import pytest

from multimodal.data.files import atomic, write_atomically


def test_a_file_appears_whole_and_readable_as_the_umask_says(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with atomic(tmp_path / "new/a.bin") as partial:
            partial.touch(mode=0o600)
            assert not (tmp_path / "new/a.bin").exists()
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new/a.bin").stat().st_mode) == 0o640


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.bin", b"old")

    def fail() -> None:
        with atomic(tmp_path / "a.bin") as partial:
            partial.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
