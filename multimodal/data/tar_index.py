"""Where every member of a tar shard lies, read once to its very end: a damaged shard never passes for a short one.

tarfile and webdataset stop at the first header they cannot read and call that the end: samples are lost without an
error. Here a shard counts as whole only if every header's checksum holds and two zero blocks close it. The index is
kept beside the shard as `<shard>.index.json` and carries a CRC of every member, so that later damage is found too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from multimodal.data.files import write_atomically

FORMAT = "scion-shard-index-1"
_BLOCK = 512
_CHUNK = 1 << 20
_LONGEST_NAME = 4096
# The key is all up to the first dot of the last path component, as webdataset has it.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


class BadShard(ValueError):  # noqa: N818 (said as it is)
    """A shard that is not what it should be; the message names the file, what was found and the next move."""


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """The members of one shard in file order, and which of them make up each sample."""

    path: Path
    names: np.ndarray
    """Member names as UTF-8 bytes, dtype S."""
    spans: np.ndarray
    """int64 [members, 3]: offset of the data, its size, its CRC-32."""
    starts: np.ndarray
    """int64 [samples + 1]: sample i has members starts[i] to starts[i + 1]."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def key(self, sample: int) -> str:
        return split_name(bytes(self.names[self.starts[sample]]).decode())[0]

    def members(self, sample: int) -> Iterator[tuple[str, int, int, int]]:
        """(extension, offset, size, CRC) of each member of a sample."""
        for member in range(self.starts[sample], self.starts[sample + 1]):
            offset, size, check = self.spans[member].tolist()
            yield split_name(bytes(self.names[member]).decode())[1], offset, size, check


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member: "dir/0001.seg.png" -> ("dir/0001", "seg.png"); ValueError for other names."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"member {name!r} has no `key.extension` form")
    return found[1], found[2].lower()


def open_index(path: Path) -> TarIndex:
    """The index of the shard at `path`: the stored one if it fits the file, else one made by reading the whole shard.

    A stored index fits without more ado when size and modification time agree. When they do not, the shard is read
    and must be what the index says, member for member: a shard that was cut or changed since is a BadShard. An index
    that is missing or itself unreadable is made anew, and stored where the folder can be written to.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise BadShard(f"{path} cannot be read ({error.strerror}); check the pattern it came from") from error
    if not path.is_file():
        raise BadShard(f"{path} is not a file; a shard is one .tar file")
    stored = _stored(path)
    if stored is None:
        members = scan(path)
    elif (stored["bytes"], stored["modified"]) == (status.st_size, status.st_mtime_ns):
        return _build(path, stored["members"])
    else:
        members = _rescan(path, stored)
    index = _build(path, members)
    store_index(path, members)
    return index


def index_path(path: Path) -> Path:
    return path.with_name(path.name + ".index.json")


def store_index(path: Path, members: list[list], extra: Mapping[str, object] | None = None) -> None:
    """Writes the index beside its shard; a folder that cannot be written to is left without one."""
    status = path.stat()
    values = {
        "format": FORMAT,
        **(extra or {}),
        "bytes": status.st_size,
        "modified": status.st_mtime_ns,
        "samples": len(_build(path, members)),
        "digest": _digest(members),
        "members": members,
    }
    if os.access(path.parent, os.W_OK):
        write_atomically(index_path(path), json.dumps(values, ensure_ascii=True).encode())


def stored_extra(path: Path, name: str) -> object:
    """A value that `store_index` was given as extra, None where there is none or the shard has changed since."""
    stored = _stored(path)
    if stored is None or not path.is_file():
        return None
    status = path.stat()
    return stored.get(name) if (stored["bytes"], stored["modified"]) == (status.st_size, status.st_mtime_ns) else None


def scan(path: Path) -> list[list]:
    """[name, offset, size, CRC] of every member of the shard, which must be whole; BadShard otherwise."""
    members: list[list] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        if size == 0:
            raise BadShard(f"{path} is empty (0 bytes); a tar without members is 1024 bytes at least")
        if file.read(2) == b"\x1f\x8b":
            raise BadShard(f"{path} is compressed; samples are read at random, so unpack it: gunzip, and name it .tar")
        file.seek(0)
        try:
            for name, offset, length in _headers(file, size):
                members.append([name, offset, length, _checksum(file, offset, length)])
        except _DamageError as error:
            try:
                whole = max(0, len(_build(path, members)) - 1) if members else 0
            except BadShard:
                whole = 0
            raise BadShard(
                f"{path} is damaged or cut short at byte {error.offset} of {size}: {error.what}; "
                f"{len(members)} members and {whole} samples are whole before it; fetch or write it again"
            ) from error
    if not members:
        raise BadShard(f"{path} holds no samples")
    _build(path, members)
    return members


def _rescan(path: Path, stored: dict) -> list[list]:
    """The members of a shard whose size or time changed since it was indexed; they must be the same all the same."""
    promised = f"its index counts {stored['samples']} samples in {stored['bytes']} bytes"
    try:
        members = scan(path)
    except BadShard as error:
        raise BadShard(f"{error} ({promised})") from error
    if members != stored["members"]:
        found = f"the file has {len(_build(path, members))} in {path.stat().st_size}"
        raise BadShard(
            f"{path} is not what it was: {promised}, {found}, {_differing(members, stored['members'])} members differ; "
            f"restore the shard, or delete {index_path(path).name} if the change was meant"
        )
    return members


class _DamageError(Exception):
    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset, self.what = offset, what


def _headers(file: BinaryIO, size: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data, size) of each regular file up to the closing zero blocks, which must be there."""
    at = 0
    long_name: str | None = None
    long_size: int | None = None
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise _DamageError(at, "the file ends without the two zero blocks that close a tar")
        if not any(block):
            if long_name is not None or long_size is not None:
                raise _DamageError(at, "an extended header without its member")
            _check_end(file, at)
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as error:
            raise _DamageError(at, f"no valid header ({error})") from error
        length = header.size if long_size is None or header.type in _EXTENDED else long_size
        data = at + _BLOCK
        if length < 0 or data + length > size:
            raise _DamageError(at, f"member {header.name!r} of {length} bytes, but only {size - data} follow")
        at = data + -(-length // _BLOCK) * _BLOCK
        if header.type in _EXTENDED:
            if length > _CHUNK:
                raise _DamageError(data, f"an extended header of {length} bytes")
            file.seek(data)
            long_name, long_size = _extended(header.type, file.read(length), data, long_name, long_size)
            continue
        name = header.name if long_name is None else long_name
        long_name = long_size = None
        if header.type == tarfile.DIRTYPE:
            continue
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}.get(
                header.type, "no regular file"
            )
            raise BadShard(f"{file.name}: member {name!r} is {kind}; a shard holds plain files only")
        yield _checked_name(file.name, name), data, length


_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)


def _extended(
    kind: bytes, data: bytes, offset: int, name: str | None, size: int | None
) -> tuple[str | None, int | None]:
    """Name and size for the next member out of a PAX or GNU long-name header."""
    try:
        if kind == tarfile.GNUTYPE_LONGNAME:
            return data.rstrip(b"\0").decode(), size
        while data.strip(b"\0"):
            length = int(data.split(b" ", 1)[0])
            record = data[:length]
            word, value = record.split(b" ", 1)[1].removesuffix(b"\n").split(b"=", 1)
            if not 0 < length <= len(data):
                raise ValueError("a record longer than its header")
            data = data[length:]
            if word.startswith(b"GNU.sparse"):
                raise ValueError("a sparse member")
            # A global header speaks for all members: a name or size there would be nonsense, and is not taken.
            if kind == tarfile.XHDTYPE and word == b"path":
                name = value.decode()
            elif kind == tarfile.XHDTYPE and word == b"size":
                size = int(value)
    except (ValueError, IndexError) as error:
        raise _DamageError(offset, f"an extended header that cannot be read ({error})") from error
    return name, size


def _check_end(file: BinaryIO, at: int) -> None:
    """Behind the first zero block only zeros may follow, and at least one more block of them."""
    file.seek(at)
    seen = 0
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise _DamageError(at + seen, "data behind the closing zero blocks (two tars joined by `cat`, or a hole)")
        seen += len(chunk)
    if seen < 2 * _BLOCK:
        raise _DamageError(at, "one zero block where two close a tar")


def _checked_name(shard: str, name: str) -> str:
    """Names are keys and never paths; those that would be dangerous as paths are refused all the same."""
    parts = name.removeprefix("./").split("/")
    if name.startswith("/") or "\\" in name or ".." in parts or "" in parts or not name.isprintable():
        raise BadShard(f"{shard}: member name {name!r} is not accepted (absolute, '..', '\\' or unprintable)")
    if len(name) > _LONGEST_NAME:
        raise BadShard(f"{shard}: a member name of {len(name)} characters (limit {_LONGEST_NAME})")
    return name.removeprefix("./")


def _checksum(file: BinaryIO, offset: int, size: int) -> int:
    file.seek(offset)
    check = 0
    while size:
        chunk = file.read(min(size, _CHUNK))
        check = zlib.crc32(chunk, check)
        size -= len(chunk)
    return check


def _build(path: Path, members: list[list]) -> TarIndex:
    """Groups members into samples; names given twice and samples torn apart are a BadShard."""
    starts: list[int] = []
    seen: set[str] = set()
    names: set[tuple[str, str]] = set()
    last = None
    for number, (name, *_) in enumerate(members):
        try:
            key, extension = split_name(name)
        except ValueError as error:
            raise BadShard(f"{path}: {error}; name members like 0001.png and 0001.txt") from error
        if (key, extension) in names:
            raise BadShard(f"{path}: member {name!r} is there twice")
        names.add((key, extension))
        if key != last:
            if key in seen:
                raise BadShard(
                    f"{path}: sample {key!r} is torn apart, member {name!r} comes after those of other samples"
                )
            seen.add(key)
            starts.append(number)
            last = key
    return TarIndex(
        path=path,
        names=np.array([name.encode() for name, *_ in members], dtype=np.bytes_),
        spans=np.array([span for _, *span in members], dtype=np.int64).reshape(-1, 3),
        starts=np.array([*starts, len(members)], dtype=np.int64),
    )


def _stored(path: Path) -> dict | None:
    """The stored index's values, None where there is none or it is not what this version writes."""
    try:
        values = json.loads(index_path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(values, dict) and values.get("format") == FORMAT and isinstance(values.get("members"), list)
    return values if known and values.get("digest") == _digest(values["members"]) else None


def _digest(members: list[list]) -> str:
    return hashlib.sha256(json.dumps(members, ensure_ascii=True).encode()).hexdigest()


def _differing(one: list[list], other: list[list]) -> int:
    def as_set(members: Iterable[list]) -> set[tuple]:
        return {tuple(member) for member in members}

    return max(len(as_set(one) - as_set(other)), len(as_set(other) - as_set(one)))
