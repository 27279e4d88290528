"""A captioned picture of the kit, and how it comes onto a square."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

_ARTICLE = re.compile(r"^(?:an?|the|some)\s+", re.IGNORECASE)
# What follows these words describes the thing and does not name it: "a bowl of soup", "a girl with a ball".
_BEHIND = re.compile(
    r"\s+(?:of|with|in|on|at|from|for|to|and|that|which|who|by|made|used|under|holding|resembles|is|are|has|have)\s+|[,.;:!?()]"
)


@dataclass(frozen=True, kw_only=True)
class KitPicture:
    """What a picture shows and where it comes from; it is drawn when `draw` is called."""

    key: str
    """Unique within its source: a file's path or a code point."""
    caption: str
    concept: str
    """What pictures of one thing share: an emoji's code points, or the words of the caption."""
    category: str
    source: str
    licence: str
    draw: Callable[[], PIL.Image.Image]
    """The picture in RGBA; ValueError where its file cannot be drawn."""

    @property
    def words(self) -> str:
        return plain_words(self.caption)

    @property
    def noun(self) -> str:
        return noun_of(self.caption)


def plain_words(text: str) -> str:
    """Lower case words without signs: two captions with the same words count as one."""
    text = text.lower().replace("\u2019", "").replace("'", "")
    return " ".join(re.findall(r"\w+", text))


def noun_of(caption: str) -> str:
    """What the caption's first phrase names, without its article: "A green bus on a road." -> "green bus"."""
    phrase = _ARTICLE.sub("", caption.strip())
    heads = [part for part in _BEHIND.split(phrase) if plain_words(part)]
    return plain_words(heads[0]) if heads else plain_words(phrase)


def head_of(caption: str) -> str:
    """The last word of the noun, as a singular where the ending is plain: "Two red apples." -> "apple"."""
    return singular_word(noun_of(caption).split()[-1]) if noun_of(caption) else ""


def singular_word(word: str) -> str:
    """A word without a plain plural ending; it need not be a word, it only has to be the same for both numbers."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses", "oes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def read_picture_file(path: Path, pixels: int) -> PIL.Image.Image:
    """A PNG as it is, an SVG drawn `pixels` wide, in RGBA."""
    if path.suffix.lower() == ".svg":
        return draw_svg(path.read_text(encoding="utf-8"), pixels, path.name)
    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGBA")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path.name} is no picture that can be read ({error})") from error


def draw_svg(text: str, pixels: int, name: str) -> PIL.Image.Image:
    """An SVG as RGBA, `pixels` wide; ValueError for one that cannot be drawn."""
    # Brings its own renderer, no library of the system; fonts of the system would make pictures differ by machine.
    import resvg_py

    try:
        data = resvg_py.svg_to_bytes(svg_string=text, width=pixels, dpi=96, skip_system_fonts=True)
        return PIL.Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} cannot be drawn ({error})") from error


def on_white(image: PIL.Image.Image, pixels: int, *, margin: float = 8 / 224) -> PIL.Image.Image:
    """The picture in RGB on a white square: cut to what is drawn, its longer side all of `pixels` but a margin.

    What is far smaller in its frame than other pictures are looks like another thing to a vision model.
    """
    image = image.convert("RGBA")
    box = image.getchannel("A").point([0] * 25 + [255] * 231).getbbox()
    image = image.crop(box) if box is not None else image
    scale = pixels * (1 - 2 * margin) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Colours are weighted by their opacity, or what lies hidden under transparent pixels bleeds into the edges.
    image = image.convert("RGBa").resize(size, PIL.Image.Resampling.BICUBIC).convert("RGBA")
    canvas = PIL.Image.new("RGBA", (pixels, pixels), (255, 255, 255, 255))
    canvas.alpha_composite(image, ((pixels - image.width) // 2, (pixels - image.height) // 2))
    return canvas.convert("RGB")
