"""Pictures and their captions as people keep them: CSV, JSON lines, COCO JSON, or a .txt beside each picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimodal.data.sample import IMAGES, checked_text
from multimodal.data.tolerance import BadSample

_IMAGE_WORDS = ("image", "file", "file_name", "filename", "filepath", "path")
_CAPTION_WORDS = ("caption", "captions", "text", "title", "description")
SUFFIXES = (*IMAGES, "tif")


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """A picture's file and what is said of it, or why the entry cannot be used."""

    where: str
    """File and line or entry, for messages."""
    image: Path | None = None
    captions: tuple[str, ...] = ()
    bad: BadSample | None = None


def read_captions(file: Path, images: Path) -> Iterator[Captioned]:
    """The entries of a .csv, .tsv, .jsonl or COCO .json file, or of a folder of pictures with .txt files beside them.

    Picture names are taken relative to `images` and must stay in it. An entry that cannot be used comes with the
    reason; a file that cannot be used at all is a ValueError.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _coco}
    if not images.is_dir():
        raise ValueError(f"{images} is not a folder; give the folder that the picture names are relative to")
    if file.is_dir():
        yield from _sidecars(file)
        return
    if not file.is_file():
        raise ValueError(
            f"{file} is not there; give a caption file, or a folder of pictures with .txt files beside them"
        )
    if file.suffix.lower() not in readers:
        raise ValueError(f"{file} is no caption file that is known; expected one of {', '.join(readers)} or a folder")
    for where, entry in readers[file.suffix.lower()](file):
        try:
            yield _entry(where, entry, images)
        except BadSample as error:
            yield Captioned(where=where, bad=error)


def _entry(where: str, entry: Any, images: Path) -> Captioned:
    if isinstance(entry, BadSample):
        raise entry
    if not isinstance(entry, Mapping):
        raise BadSample("json", f"{where} holds {type(entry).__name__}, not an object")
    name = next((entry[word] for word in _IMAGE_WORDS if entry.get(word)), None)
    said = next((entry[word] for word in _CAPTION_WORDS if entry.get(word)), None)
    if name is None:
        raise BadSample("no_image", f"{where} has none of {_IMAGE_WORDS}")
    captions = [
        checked_text(one, f"the caption at {where}") for one in (said if isinstance(said, list) else [said or ""])
    ]
    captions = [caption for caption in captions if caption]
    if not captions:
        raise BadSample("no_caption", f"{where} has none of {_CAPTION_WORDS}")
    return Captioned(where=where, image=_inside(checked_text(name, where), images, where), captions=tuple(captions))


def _inside(name: str, images: Path, where: str) -> Path:
    """The picture's path, which must be a file in the folder of pictures: a caption file may come from anyone."""
    try:
        path = (images / name).resolve()
        inside, there = path.is_relative_to(images.resolve()), path.is_file()
    except (OSError, ValueError) as error:
        raise BadSample("missing_file", f"{where}: {error}") from error
    if not inside:
        raise BadSample("outside_folder", f"{where}: {name!r} lies outside {images}")
    if not there:
        raise BadSample("missing_file", f"{where}: {name!r} is not in {images}")
    return path


def _csv(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as lines:
        rows = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        names = [name.strip().lower() for name in rows.fieldnames or []]
        if not set(names) & set(_IMAGE_WORDS) or not set(names) & set(_CAPTION_WORDS):
            raise ValueError(
                f"{file} needs a header line with a column for pictures ({', '.join(_IMAGE_WORDS)}) "
                f"and one for captions ({', '.join(_CAPTION_WORDS)}); it has {names[:8]}"
            )
        rows.fieldnames = names
        try:
            for row in rows:
                yield f"{file.name}:{rows.line_num}", row
        except csv.Error as error:
            raise ValueError(f"{file.name}:{rows.line_num} cannot be read as CSV ({error}); repair the line") from error


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file.name}:{number}"
            if not line.strip():
                continue
            try:
                yield where, json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield where, BadSample("json", f"{where}: {error}")


def _coco(file: Path) -> Iterator[tuple[str, Any]]:
    """One entry a picture, with all captions that its annotations give it."""
    try:
        tree = json.loads(file.read_bytes())
        pictures = {picture["id"]: (picture["file_name"], []) for picture in tree["images"]}
        annotations = tree["annotations"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not COCO captions JSON ({type(error).__name__}: {error}); "
            "it needs 'images' with id and file_name, and 'annotations' with image_id and caption"
        ) from error
    for number, annotation in enumerate(annotations):
        known = isinstance(annotation, dict) and annotation.get("image_id") in pictures
        if not known or not isinstance(annotation.get("caption"), str):
            where = f"{file.name}, annotation {number}"
            yield where, BadSample("json", f"{where} names no picture of 'images', or has no caption")
        else:
            pictures[annotation["image_id"]][1].append(annotation["caption"])
    for identity, (name, captions) in pictures.items():
        yield f"{file.name}, picture {identity}", {"image": name, "captions": captions}


def _sidecars(folder: Path) -> Iterator[Captioned]:
    """Every picture below a folder, in the order of names, with the .txt of the same stem."""
    for image in sorted(folder.rglob("*")):
        if image.suffix.lower().removeprefix(".") not in SUFFIXES or not image.is_file():
            continue
        where = str(image.relative_to(folder))
        try:
            caption = checked_text(image.with_suffix(".txt").read_bytes().decode("utf-8-sig"), where)
        except OSError:
            yield Captioned(where=where, bad=BadSample("no_caption", f"{where}: no .txt beside it"))
        except (UnicodeDecodeError, BadSample) as error:
            yield Captioned(where=where, bad=BadSample("text", f"{where}: {error}"))
        else:
            empty = None if caption else BadSample("no_caption", f"{where}: its .txt is empty")
            yield Captioned(where=where, image=image.resolve(), captions=(caption,), bad=empty)
