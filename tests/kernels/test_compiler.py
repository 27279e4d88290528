"""C++ sources are compiled once, kept, and survive damage and races."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import compiler

SOURCE = 'extern "C" int answer() { return 41 + 1; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCION_CACHE", str(tmp_path / "cache"))
    compiler.load.cache_clear()
    compiler.why_not.cache_clear()
    path = tmp_path / "op" / "cpu.cpp"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def _made(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "kernels").glob("*.so"))


def test_a_source_is_compiled_once(source: Path, tmp_path: Path) -> None:
    assert compiler.load(source).answer() == 42
    (path,) = _made(tmp_path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    written = path.stat().st_mtime_ns
    compiler.load.cache_clear()
    assert compiler.load(source).answer() == 42
    assert _made(tmp_path) == [path]
    assert path.stat().st_mtime_ns == written


def test_another_source_is_another_library(source: Path, tmp_path: Path) -> None:
    assert compiler.load(source).answer() == 42
    source.write_text(SOURCE.replace("41", "6"))
    compiler.load.cache_clear()
    assert compiler.load(source).answer() == 7
    assert len(_made(tmp_path)) == 2


@pytest.mark.parametrize("folder", [".", ".."])
def test_another_header_beside_the_source_or_above_it_is_another_library(
    source: Path, tmp_path: Path, folder: str
) -> None:
    header = source.parent / folder / "number.h"
    header.write_text("#define NUMBER 41\n")
    source.write_text(f'#include "{folder}/number.h"\n' + SOURCE.replace("41", "NUMBER"))
    assert compiler.load(source).answer() == 42
    header.write_text("#define NUMBER 6\n")
    compiler.load.cache_clear()
    assert compiler.load(source).answer() == 7
    assert len(_made(tmp_path)) == 2


def test_a_library_that_was_cut_short_is_made_again(source: Path, tmp_path: Path) -> None:
    # In another process: this one must not have the library open while it is being cut.
    call = "import sys, pathlib; from kernels import compiler; print(compiler.load(pathlib.Path(sys.argv[1])).answer())"
    run = [sys.executable, "-c", call, str(source)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "42\n"
    (path,) = _made(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "42\n"


def test_processes_that_compile_at_once_all_get_the_library(source: Path, tmp_path: Path) -> None:
    call = "import sys, pathlib; from kernels import compiler; print(compiler.load(pathlib.Path(sys.argv[1])).answer())"
    running = [
        subprocess.Popen([sys.executable, "-c", call, str(source)], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [process.communicate()[0] for process in running] == ["42\n"] * 4
    assert len(_made(tmp_path)) == 1
    assert list((tmp_path / "cache" / "kernels").iterdir()) == _made(tmp_path)  # nothing is left aside


def test_without_a_compiler_the_reason_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler is not on the path" in str(compiler.why_not(source))
    with pytest.raises(compiler.CompilerError, match="set CXX"):
        compiler.load(source)


def test_what_the_compiler_refuses_is_told_in_its_words(source: Path) -> None:
    source.write_text("int broken(\n")
    with pytest.raises(compiler.CompilerError, match="did not compile"):
        compiler.load(source)


def test_a_folder_that_others_can_write_is_not_used(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(compiler.CompilerError, match="can be written by others"):
        compiler.load(source)
