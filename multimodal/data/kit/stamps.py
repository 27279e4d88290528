"""Tux Paint's stamps: cut-out photographs and a few drawings, each with a short English caption."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import PIL.Image

from multimodal.data.kit.picture import KitPicture, plain_words, read_picture_file

SOURCE, LICENCE = "tuxpaint-stamps", "GPL-2"
STAMPS = Path("usr/share/tuxpaint/stamps")
LONGEST = 12
"""Words of a caption; longer ones tell what cannot be seen (the rules of a game)."""
_NO_SPRITES = frozenset({"seasonal/easter/daffodil.png"})


def stamps(package: Path, *, pixels: int = 256) -> Iterator[KitPicture]:
    """Every captioned stamp of the unpacked package, in the order of paths; ValueError where there is none."""
    root = package / STAMPS
    texts = sorted(root.rglob("*.txt"))
    if not texts:
        raise ValueError(f"{package} holds no {STAMPS}/**/*.txt; delete it, and the next call fetches it again")
    for text in texts:
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        caption = lines[0].strip() if lines else ""
        image = next((path for end in (".png", ".svg") if (path := text.with_suffix(end)).is_file()), None)
        if image is None or not plain_words(caption):
            continue
        name = image.relative_to(root)
        yield KitPicture(
            key=name.as_posix(),
            caption=caption,
            concept=plain_words(caption),
            category=name.parts[0],
            source=SOURCE,
            licence=LICENCE,
            draw=partial(read_picture_file, image, pixels),
        )


def to_learn(picture: KitPicture) -> bool:
    """Whether a stamp's caption says what can be seen: no letters and signs, no long explanations."""
    return picture.category != "symbols" and len(picture.words.split()) <= LONGEST


def cut_outs(package: Path) -> Iterator[tuple[PIL.Image.Image, KitPicture]]:
    """Stamps that can stand in a scene: one thing ("A ..."), photographed, with nothing around it."""
    for picture in stamps(package):
        if picture.category == "symbols" or "cartoon" in picture.key or picture.key in _NO_SPRITES:
            continue
        if not picture.key.endswith(".png") or not picture.caption.startswith(("A ", "An ")):
            continue
        image = picture.draw()
        if image.getchannel("A").getextrema()[0] == 0:
            yield image, picture
