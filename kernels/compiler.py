"""C++ sources of ops, compiled once on first use with the system's compiler and kept for the user."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp")
"""Nothing that depends on the machine: a source picks its instruction set at run time, by function attributes."""


class CompilerError(RuntimeError):
    """There is no C++ compiler, or it did not take the source; the message says which."""


@functools.cache
def load(source: Path) -> ctypes.CDLL:
    """The shared library of a C++ source with a plain C ABI; it may include headers (*.h) that lie beside it or
    in the folder above.

    The library lies in the user's cache folder (`SCION_CACHE`, else `XDG_CACHE_HOME`, else `~/.cache`) under a key of
    source, compiler, flags and machine, so that a change of any compiles anew. It is written aside and renamed: two
    processes that compile at once both end up with a whole file. Raises CompilerError.
    """
    command = compiler()
    key = hashlib.sha256()
    headers = [header for folder in (source.parent, source.parent.parent) for header in sorted(folder.glob("*.h"))]
    files = [path.read_bytes() for path in (source, *headers)]
    about = _version(command), " ".join((command, *FLAGS)), platform.platform()
    for part in (*files, *(words.encode() for words in about)):
        key.update(hashlib.sha256(part).digest())
    name = f"{source.parent.name}-{source.stem}-{key.hexdigest()[:24]}.so"
    folder = cache_folder()
    path = folder / name
    if not path.exists():
        build(command, source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        # A file that another program has cut short: once more from the source.
        build(command, source, path)
        return ctypes.CDLL(str(path))


@functools.cache
def why_not(source: Path) -> str | None:
    """Why the library of a source cannot be had; None when it is there (it is compiled if need be).

    Asked once a process: a source that does not compile is not tried again at every call.
    """
    try:
        load(source)
    except CompilerError as error:
        return str(error)
    return None


def compiler() -> str:
    """The C++ compiler: $CXX, else the first of c++, g++, clang++ on the path; CompilerError without one."""
    named = os.environ.get("CXX")
    for name in (named,) if named else ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return found
    raise CompilerError(f"{named or 'c++, g++ or clang++'} is not on the path; install a C++ compiler, or set CXX")


def build(command: str, source: Path, path: Path) -> None:
    """Compile `source` into `path`, which appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        made = Path(aside) / path.name
        done = subprocess.run([command, *FLAGS, str(source), "-o", str(made)], capture_output=True, text=True)
        if done.returncode:
            raise CompilerError(f"{command} did not compile {source.name}:\n{done.stderr[-2000:]}")
        made.replace(path)


def cache_folder() -> Path:
    """The user's folder for compiled sources, made if need be and closed to others: what lies in it is run."""
    if own := os.environ.get("SCION_CACHE"):
        folder = Path(own)
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scion"
    folder = folder / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CompilerError(
            f"{folder} cannot be made ({error.strerror}); set SCION_CACHE to a folder that can"
        ) from error
    about = folder.stat()
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o022):
        raise CompilerError(f"{folder} can be written by others; set SCION_CACHE to a folder that is yours alone")
    return folder


@functools.cache
def _version(command: str) -> str:
    try:
        return subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompilerError(f"{command} does not run: {error}") from error
