"""Frozen features stored once: bfloat16, memory-mapped, found by the content of the picture they are of.

A cache is a folder of parts under one root, named by what made the features: the encoder's fingerprint and its
preprocessing. A part is one safetensors file with the features of some pictures one behind the other and an index of
them; it appears whole or not at all, so a killed run loses the part it was working on. A picture may have several
views: view 0 is the picture as it is, view v an augmentation whose chance depends on the picture and v alone.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import BFloat16, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multimodal.data.files import atomic
from multimodal.data.tolerance import BadSample, Tolerance

FORMAT = "scion-features-1"
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, kw_only=True)
class Features:
    """What an encoder makes of one picture."""

    rows: Float[Tensor, "m E"]
    grid: tuple[int, int]
    """Tiles in rows and columns: with it, ImageEncoder.places gives the place of each row."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of a picture, to be prepared for the encoder."""

    data: bytes
    """The encoded picture."""
    number: int
    """0: the picture as it is; others: an augmentation of it."""

    def random(self) -> torch.Generator:
        """The chance of this view: the same for the same picture and number, everywhere."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def seed(self) -> int:
        return int.from_bytes(hashlib.sha256(_identity(self.data, self.number)).digest()[:8], "little") >> 1


@dataclass(frozen=True, kw_only=True)
class Filled:
    """How far the filling of a cache has come."""

    stored: int
    """Views computed and stored by this call."""
    found: int
    """Views that were there already."""
    skipped: Counter[str]
    """Views that could not be made, by reason."""


@dataclass(frozen=True)
class _Opened:
    parts: list[BFloat16[Tensor, "_ E"]]
    """Each part's features, mapped."""
    ids: np.ndarray
    """Every identity, sorted, dtype S32."""
    spans: np.ndarray
    """int64 [views, 6]: part, first row, rows, the grid's two, CRC."""


class FeatureCache:
    """Stored features, read-only. Cheap to pickle (its path goes to the workers, nothing else) and safe to fork."""

    def __init__(self, root: str | Path, *, encoder: str, preprocessing: str) -> None:
        """The features under `root` of the encoder with this fingerprint after this preprocessing (any text for it)."""
        self.folder = cache_folder(root, encoder=encoder, preprocessing=preprocessing)
        self.identity = {"format": FORMAT, "encoder": encoder, "preprocessing": preprocessing}
        self._opened: _Opened | None = None

    def find(self, data: bytes, view: int = 0) -> Features | None:
        """The features of a view of the picture with these bytes, copied, in bfloat16; None where there are none."""
        opened = self._open()
        row = _row(opened, _identity(data, view))
        if row is None:
            return None
        part, start, size, tall, wide, check = opened.spans[row].tolist()
        rows = opened.parts[part][start : start + size].clone()
        if _checksum(rows) != check:
            raise ValueError(f"stored features in {self.folder} are damaged; delete the folder to have them made anew")
        return Features(rows=rows, grid=(tall, wide))

    def __contains__(self, view: View) -> bool:
        return _row(self._open(), _identity(view.data, view.number)) is not None

    def __len__(self) -> int:
        """Stored views."""
        return len(self._open().ids)

    @property
    def width(self) -> int | None:
        """E; None while nothing is stored."""
        parts = self._open().parts
        return parts[0].shape[1] if parts else None

    def _open(self) -> _Opened:
        """Maps the parts and reads their indices, on first use in each process."""
        if self._opened is None:
            files = sorted(self.folder.glob("part-*.safetensors"))
            opened = [_open_part(file, self.identity) for file in files]
            widths = {rows.shape[1] for rows, _, _ in opened}
            if len(widths) > 1:
                raise ValueError(
                    f"the parts in {self.folder} hold features of different widths {sorted(widths)}; delete it"
                )
            ids = np.concatenate([np.empty(0, dtype="S32"), *(names for _, names, _ in opened)])
            numbers = np.repeat(np.arange(len(opened)), [len(names) for _, names, _ in opened])
            spans = np.concatenate([np.empty((0, 5), dtype=np.int64), *(where for _, _, where in opened)])
            order = np.argsort(ids, kind="stable")
            spans = np.concatenate([numbers[:, None], spans], axis=1)[order]
            self._opened = _Opened([rows for rows, _, _ in opened], ids[order], spans)
        return self._opened

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}


def _row(opened: _Opened, identity: bytes) -> int | None:
    row = int(np.searchsorted(opened.ids, np.bytes_(identity)))
    # numpy drops zero bytes at the end of an S value; every identity has 32 bytes, so none is mistaken.
    return row if row < len(opened.ids) and opened.ids[row].ljust(32, b"\0") == identity else None


def cache_folder(root: str | Path, *, encoder: str, preprocessing: str) -> Path:
    """Where under `root` the features lie that this encoder makes after this preprocessing."""
    name = hashlib.sha256(json.dumps([FORMAT, encoder, preprocessing]).encode()).hexdigest()[:16]
    return Path(root) / name


def fill_cache(
    root: str | Path,
    pictures: Iterable[bytes],
    *,
    encoder: str,
    preprocessing: str,
    prepare: Callable[[View], ItemT],
    encode: Callable[[Sequence[ItemT]], Sequence[Features]],
    views: int = 1,
    batch: int = 16,
    part: int = 512,
    rank: int = 0,
    ranks: int = 1,
    max_bad_share: float = 0.05,
) -> Iterator[Filled]:
    """Computes what is missing of `views` views of each picture; iterate over it, it yields after every stored part.

    `prepare(view)` makes the encoder's input (BadSample leaves the view out), `encode` the features of a list of them.
    A picture that comes several times is encoded once. Of `ranks` processes each calls this with its `rank` and does
    its share; none waits for another. After a kill the same call goes on behind the last stored part, with the same
    batches, so the features are the same bits as without the kill.
    """
    if views < 1 or batch < 1 or part < 1 or not 0 <= rank < ranks:
        raise ValueError(
            f"views, batch and part must be at least 1, rank below ranks: {views, batch, part, rank, ranks}"
        )
    cache = FeatureCache(root, encoder=encoder, preprocessing=preprocessing)
    tolerance = Tolerance(max_bad_share=max_bad_share)
    met: set[bytes] = set()
    waiting: list[View] = []
    stored = found = 0
    for data in pictures:
        identity = _identity(data, 0)
        if identity in met:
            continue
        met.add(identity)
        if int.from_bytes(identity[:8], "little") % ranks != rank:
            continue
        for number in range(views):
            view = View(data=data, number=number)
            if view in cache:
                found += 1
                continue
            waiting.append(view)
            if len(waiting) == part:
                stored += _store(cache, waiting, prepare, encode, batch, tolerance)
                waiting.clear()
                yield Filled(stored=stored, found=found, skipped=tolerance.skipped.copy())
    stored += _store(cache, waiting, prepare, encode, batch, tolerance)
    yield Filled(stored=stored, found=found, skipped=tolerance.skipped.copy())


def _store(
    cache: FeatureCache,
    views: Sequence[View],
    prepare: Callable[[View], Any],
    encode: Callable[[Sequence[Any]], Sequence[Features]],
    batch: int,
    tolerance: Tolerance,
) -> int:
    """Encodes views and writes them as one part; how many there were."""
    ids: list[bytes] = []
    made: list[Features] = []
    for start in range(0, len(views), batch):
        items: list[Any] = []
        for view in views[start : start + batch]:
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(view.seed)
                    items.append(prepare(view))
            except BadSample as error:
                tolerance.count(error.reason, error.detail)
            else:
                tolerance.count(None)
                ids.append(_identity(view.data, view.number))
        made.extend(encode(items) if items else ())
    assert len(made) == len(ids), f"encode gave {len(made)} features for {len(ids)} pictures"
    if not made:
        return 0
    _write_part(cache, ids, made)
    return len(made)


def _write_part(cache: FeatureCache, ids: Sequence[bytes], made: Sequence[Features]) -> None:
    rows = [features.rows.detach().to("cpu", torch.bfloat16).contiguous() for features in made]
    for one in rows:
        if not torch.isfinite(one).all():
            raise ValueError("the encoder gave features that are not finite; check its weights and dtype")
    starts = np.cumsum([0, *(len(one) for one in rows)])
    spans = [
        (start, len(one), *features.grid, _checksum(one))
        for start, one, features in zip(starts.tolist(), rows, made, strict=False)
    ]
    tensors = {
        "features": torch.cat(rows),
        "ids": torch.from_numpy(np.frombuffer(b"".join(ids), dtype=np.uint8).reshape(-1, 32).copy()),
        "spans": torch.tensor(spans, dtype=torch.int64),
    }
    name = hashlib.sha256(b"".join(ids)).hexdigest()[:16]
    with atomic(cache.folder / f"part-{name}.safetensors") as partial:
        save_file(tensors, partial, metadata=cache.identity)


def _open_part(file: Path, identity: dict[str, str]) -> tuple[BFloat16[Tensor, "n E"], np.ndarray, np.ndarray]:
    """A part's features, mapped and not read; the identities; start, size, grid and CRC of each."""
    try:
        with safe_open(file, framework="pt") as opened:
            if opened.metadata() != identity:
                raise ValueError(f"{file} was made by {opened.metadata()}, not by {identity}; it does not belong here")
            rows = opened.get_tensor("features")
            ids, spans = opened.get_tensor("ids").numpy(), opened.get_tensor("spans").numpy()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}); delete it, and it will be made anew") from error
    assert rows.dtype == torch.bfloat16
    assert len(ids) == len(spans)
    return rows, np.ascontiguousarray(ids).view("S32").reshape(-1), spans


def _identity(data: bytes, view: int) -> bytes:
    """32 bytes that name a view of a picture: the beginning of the SHA-256 of its bytes, and the view's number."""
    return hashlib.sha256(data).digest()[:28] + view.to_bytes(4, "big")


def _checksum(rows: Tensor) -> int:
    return zlib.crc32(rows.view(torch.uint8).numpy().tobytes())
