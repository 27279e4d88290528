"""Files and folders that appear whole or not at all, also when the process is killed or the disk fills up."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

MANIFEST = "manifest.json"
_PARTIAL = ".partial-"
_REPLACED = ".replaced-"


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes `tensors` to `path`, whole or not at all, readable to whom the umask allows; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The library writes through a temporary file of its own; in a hidden folder, `sweep` finds what a kill leaves.
    partial = path.parent / f"{_PARTIAL}{path.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file(_apart(tensors), partial / path.name)
        (partial / path.name).chmod(_mode(partial))
        _sync(partial / path.name)
        (partial / path.name).replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    partial = path.parent / f"{_PARTIAL}{path.name}"
    try:
        partial.write_text(text, encoding="utf-8")
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a hidden folder, adds a manifest with the sha256 of each file, and only then gives it its name.

    Everything is on the disk before the name is: files, then the folder, then the parent's entry. An existing `folder`
    of that name is replaced. On any error the hidden folder goes and what stood before stands.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f"{_PARTIAL}{folder.name}"
    replaced = folder.parent / f"{_REPLACED}{folder.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write(partial)
        files = sorted(file for file in partial.iterdir())
        manifest = {"files": {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files}}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        mode = (partial / MANIFEST).stat().st_mode
        for file in (*files, partial / MANIFEST):
            file.chmod(mode)
            _sync(file)
        _sync(partial)
        if folder.exists():
            # A folder cannot be renamed onto a full one. After a kill between the two, `sweep` brings the old one back.
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        partial.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def fault(folder: Path) -> str | None:
    """Why the published `folder` cannot be trusted, in words; None where every file is what the manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            size = file.stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} does not have the sha256 of the manifest"
    except OSError as error:
        return f"{error.strerror or error}: {Path(error.filename or folder).name}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def sweep(parent: Path) -> None:
    """Removes what a killed process left half-written in `parent`; no other process may be writing there."""
    if not parent.is_dir():
        return
    for replaced in parent.glob(f"{_REPLACED}*"):
        original = parent / replaced.name.removeprefix(_REPLACED)
        if original.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(original)
    for partial in parent.glob(f"{_PARTIAL}*"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU; what shares memory (tied weights) as copies, for the format knows no sharing."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in taken else tensor
        taken.add(memory)
    return apart


def _mode(folder: Path) -> int:
    """The permissions that the umask gives a new file; safetensors writes files for their owner alone."""
    probe = folder / "mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    return mode


def _sync(path: Path) -> None:
    """Waits until a file's bytes or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
