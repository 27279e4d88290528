"""WebDataset shards read at random through offset indices: exact counts, no silent loss, no code from a file."""

from __future__ import annotations

import glob
import itertools
import os
import re
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from multimodal.data.files import atomic
from multimodal.data.tar_index import BadShard, TarIndex, index_path, open_index, scan, store_index
from multimodal.data.tolerance import BadSample

OnBadShard = Literal["stop", "skip"]
CODE = ("pyd", "pkl", "pickle", "pth", "pt", "dill", "joblib")
"""Members that other readers would unpickle; a sample that has one is refused."""
_OPEN_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample as it lies in its shard: the bytes of each member by extension ("png", "txt", "0.png")."""

    key: str
    shard: str
    members: Mapping[str, bytes]


class Shards:
    """The samples of many shards as one sequence of Records, read in any order.

    Safe to fork and to pickle: files are opened where they are read.
    """

    def __init__(self, patterns: str | Path | Sequence[str | Path], *, on_bad_shard: OnBadShard = "stop") -> None:
        """`patterns` are paths, folders, globs or brace patterns (`shard-{000..009}.tar`).

        A shard that is missing, damaged or not what its index says raises BadShard; with on_bad_shard="skip" it is left
        out whole and its reason kept in `bad`.
        """
        self.bad: dict[str, str] = {}
        self._skips = on_bad_shard == "skip"
        self._indices: list[TarIndex] = []
        for path in expand(patterns):
            try:
                self._indices.append(open_index(path))
            except BadShard as error:
                if not self._skips:
                    raise
                self.bad[str(path)] = str(error)
        if not self._indices:
            raise BadShard(f"none of {len(self.bad)} shards can be read; the first: {next(iter(self.bad.values()))}")
        self._ends = list(itertools.accumulate(len(index) for index in self._indices))
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of samples in each readable shard."""
        return tuple(len(index) for index in self._indices)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(index.path for index in self._indices)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, sample: int) -> Record:
        """Sample number `sample`, counted through all shards.

        A member that no longer is what the index says raises BadShard, or BadSample("damaged_shard") where bad shards
        are skipped; a sample that has a pickle in it raises BadSample("unsafe_member").
        """
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        shard = bisect_right(self._ends, sample)
        index = self._indices[shard]
        local = sample - self._ends[shard] + len(index)
        members: dict[str, bytes] = {}
        for extension, offset, size, check in index.members(local):
            if extension.rsplit(".", 1)[-1] in CODE:
                raise BadSample("unsafe_member", f"{index.path.name}: {index.key(local)}.{extension}")
            data = os.pread(self._file(shard).fileno(), size, offset)
            if len(data) != size or zlib.crc32(data) != check:
                name = f"{index.path}: {index.key(local)}.{extension}"
                what = f"{name} is not what the index says ({len(data)} of {size} bytes, CRC {zlib.crc32(data):08x})"
                if self._skips:
                    raise BadSample("damaged_shard", what)
                raise BadShard(f"{what}; the shard was damaged after it was indexed; fetch or write it again")
            members[extension] = data
        return Record(key=index.key(local), shard=index.path.name, members=members)

    def bytes_of(self, kinds: Sequence[str]) -> list[int]:
        """For each sample the bytes of its members of these kinds ("mp3"), as the indices tell them."""
        return [
            sum(size for extension, _, size, _ in index.members(local) if extension.rsplit(".", 1)[-1] in kinds)
            for index in self._indices
            for local in range(len(index))
        ]

    def _file(self, shard: int) -> BinaryIO:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        try:
            self._files[shard] = self._indices[shard].path.open("rb")
        except OSError as error:
            raise BadShard(f"{self._indices[shard].path} cannot be read any more ({error.strerror})") from error
        return self._files[shard]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": OrderedDict()}


def expand(patterns: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders, globs and brace patterns name, in order; what names nothing is a ValueError."""
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str | Path) else patterns:
        text = str(pattern)
        if text.startswith("pipe:") or re.match(r"[a-zA-Z][\w+.-]*://", text):
            raise ValueError(
                f"{text!r} is not a path: shards are read from disk only, and no command is ever run; fetch it first"
            )
        for plain in _braces(text):
            if Path(plain).is_dir():
                matches = sorted(Path(plain).glob("*.tar"))
            elif glob.has_magic(plain) and not Path(plain).exists():
                matches = sorted(Path(match) for match in glob.glob(plain))  # noqa: PTH207 (the pattern may be absolute)
            else:
                matches = [Path(plain)]
            if not matches:
                raise ValueError(f"{plain!r} names no shard; it stands in {text!r}")
            found.extend(matches)
    if not found:
        raise ValueError("no shards were named; give a path, a folder, a glob or a pattern like shard-{000..009}.tar")
    twice = [path for path, count in _counts(found).items() if count > 1]
    if twice:
        raise ValueError(
            f"{twice[0]} is named {_counts(found)[twice[0]]} times; name each shard once (weights say how often)"
        )
    return found


def write_shard(path: Path, samples: Iterable[Mapping[str, bytes | str]], **extra: object) -> int:
    """Writes {"__key__": key, "png": bytes, "txt": ...} samples as a shard with its index; how many there were.

    The same samples give the same bytes, and the file is there whole or not at all. `extra` values go into the index.
    """
    # webdataset takes seconds to import, and only writers need it.
    from webdataset.writer import TarWriter

    count = 0
    with atomic(path) as partial:
        with partial.open("wb") as file, TarWriter(file, encoder=False, mtime=0.0) as tar:
            for sample in samples:
                tar.write({name: _bytes(name, value) for name, value in sample.items()})
                count += 1
        # Read back before it gets its name: what readers would refuse is never published.
        members = scan(partial)
        # An index of the file that is replaced would be taken for a promise about the new one.
        index_path(path).unlink(missing_ok=True)
    store_index(path, members, extra)
    return count


def _bytes(name: str, value: bytes | str) -> bytes | str:
    return value.encode() if isinstance(value, str) and not name.startswith("__") else value


def _braces(pattern: str) -> list[str]:
    """`a{00..02}b{x,y}` -> a00bx, a00by, a01bx, ..."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    body = found[1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if numbers:
        first, last = numbers.groups()
        if int(last) < int(first) or int(last) - int(first) > 10**6:
            raise ValueError(f"{{{body}}} in {pattern!r} must count upwards, by a million at most")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    elif "," in body:
        choices = body.split(",")
    else:
        raise ValueError(f"{{{body}}} in {pattern!r} is neither a range like 000..009 nor a list like a,b")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [head + choice + rest for choice in choices for rest in _braces(tail)]


def _counts(paths: Sequence[Path]) -> dict[Path, int]:
    counts: dict[Path, int] = {}
    for path in paths:
        counts[path] = counts.get(path, 0) + 1
    return counts
