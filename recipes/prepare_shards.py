"""Makes WebDataset shards from a folder of pictures and their captions.

    python recipes/prepare_shards.py --captions photos.csv --images photos --out shards      # columns: image, caption
    python recipes/prepare_shards.py --captions captions_train2017.json --images train2017 --out shards --max-side 640
    python recipes/prepare_shards.py --captions photos --images photos --out shards          # cat.jpg beside cat.txt

Each shard is a pure function of its entries: the same input gives the same bytes, a killed run goes on where it
stopped, and shards that are there already are not made again. Train on them with `--data.train 'shards/shard-*.tar'`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import tyro

from multimodal.data.captions import Captioned, read_captions
from multimodal.data.files import write_atomically
from multimodal.data.sample import read_picture
from multimodal.data.shards import write_shard
from multimodal.data.tar_index import index_path, stored_extra
from multimodal.data.tolerance import BadSample, Tolerance

EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pictures and captions to shards."""

    captions: Path
    """A .csv, .tsv, .jsonl or COCO .json file, or a folder of pictures with .txt files beside them."""
    images: Path
    """The folder that picture names are relative to."""
    out: Path
    """Where the shards go: shard-00000.tar and so on, each with its index, and summary.json."""
    per_shard: int = 1000
    """Entries of a shard."""
    max_side: int | None = None
    """Longer side in pixels to which larger pictures are reduced; without it their files go in as they are."""
    max_bad_share: float = 0.5
    """Entries that cannot be used are left out and counted; more than this share of them stops the run."""

    def __post_init__(self) -> None:
        if self.per_shard < 1 or (self.max_side is not None and self.max_side < 1):
            raise ValueError(f"per_shard ({self.per_shard}) and max_side ({self.max_side}) must be at least 1")


def main(c: Config) -> Counter[str]:
    """Writes what is missing; how many samples there are, and what was left out by reason."""
    total: Counter[str] = Counter()
    tolerance = Tolerance(max_bad_share=c.max_bad_share)
    number = -1
    for number, entries in enumerate(_groups(read_captions(c.captions, c.images), c.per_shard)):
        path = c.out / f"shard-{number:05d}.tar"
        source = _digest(entries, c)
        made = stored_extra(path, "made_from")
        if isinstance(made, dict) and made.get("entries") == source:
            skipped = Counter(made["skipped"])
        else:
            samples, skipped = _samples(entries, number * c.per_shard, c.max_side)
            if samples:
                write_shard(path, samples, made_from={"entries": source, "skipped": skipped})
            else:
                path.unlink(missing_ok=True)
                index_path(path).unlink(missing_ok=True)
        for reason in skipped.elements():
            tolerance.count(reason, f"in {path.name}")
        for _ in range(len(entries) - skipped.total()):
            tolerance.count(None)
        total += skipped + Counter({"samples": len(entries) - skipped.total()})
        print(f"{path.name}: {_told(total)}", flush=True)
    if not total["samples"]:
        raise ValueError(f"{c.captions} gave no sample: {_told(total) or 'it has no entries'}")
    for stale in sorted(c.out.glob("shard-*.tar")):
        if int(stale.stem.removeprefix("shard-")) > number:
            raise ValueError(f"{stale} is of an earlier run with more entries; delete it, or write to another folder")
    write_atomically(c.out / "summary.json", json.dumps(dict(sorted(total.items())), indent=2).encode())
    return total


def _groups(entries: Iterator[Captioned], size: int) -> Iterator[list[Captioned]]:
    group: list[Captioned] = []
    for entry in entries:
        group.append(entry)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _samples(entries: Sequence[Captioned], first: int, max_side: int | None) -> tuple[list[dict], Counter[str]]:
    """The samples of one shard in the order of the entries, keyed by the entry's number."""
    samples: list[dict] = []
    skipped: Counter[str] = Counter()
    for number, entry in enumerate(entries, start=first):
        try:
            if entry.bad is not None:
                raise entry.bad
            assert entry.image is not None
            extension, data = _picture(entry.image, max_side)
        except BadSample as error:
            skipped[error.reason] += 1
            print(f"left out: {error}", flush=True)
            continue
        text = {"txt": entry.captions[0]} if len(entry.captions) == 1 else {"json": _json({"captions": entry.captions})}
        samples.append({"__key__": f"{number:09d}", extension: data, **text})
    return samples, skipped


def _picture(path: Path, max_side: int | None) -> tuple[str, bytes]:
    """The extension by what the file really holds, and its bytes, reduced where that is asked for."""
    data = path.read_bytes()
    image = read_picture(data, path.name)
    kind = PIL.Image.open(io.BytesIO(data), formats=list(EXTENSIONS)).format or ""
    if max_side is None or max(image.size) <= max_side:
        return EXTENSIONS[kind], data
    image.thumbnail((max_side, max_side), PIL.Image.Resampling.LANCZOS)
    reduced = io.BytesIO()
    image.save(reduced, "JPEG" if kind == "JPEG" else "PNG", quality=92)
    return ("jpg" if kind == "JPEG" else "png"), reduced.getvalue()


def _digest(entries: Sequence[Captioned], c: Config) -> str:
    """What a shard is made of: its entries, the size and time of their pictures, and how they are treated."""
    rows = []
    for entry in entries:
        status = entry.image.stat() if entry.image else None
        file = [str(entry.image), status.st_size, status.st_mtime_ns] if status else None
        rows.append([entry.where, entry.captions, file, str(entry.bad)])
    return hashlib.sha256(_json([rows, c.max_side]).encode()).hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True)


def _told(total: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in total.items())


if __name__ == "__main__":
    print(_told(main(tyro.cli(Config))))
