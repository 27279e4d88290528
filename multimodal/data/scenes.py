"""Composed scenes: photographs of single things placed on a background, with a sentence that is exact by construction.

A scene shows one to three copies of a thing ("Two small bananas on a dark green background.") or two different things
in a relation ("A cow to the left of a teapot on a striped red background."). Scene number i of a split is a pure
function of the sprites, the seed and i: the same picture, pixel for pixel, whoever asks and in which order. Things
never overlap and never touch the edge.

What a split may show is settled by hashes of words, never by chance:

    train         nouns, backgrounds and combinations that no test below asks for
    combinations  trained nouns on trained backgrounds, with at least one combination that is not trained: a pair of
                  nouns, a noun with a background or a noun with a count
    backgrounds   trained nouns on a background that no trained scene has; its tone and its hue are trained apart
                  ("light blue" and "dark green" are, "light green" is not)
    sprites       at least one thing that no trained scene shows, so that its noun was never named

A shard's sample is `png` and `json` {"caption", "slots"}; a dialogue about two pictures is `0.png`, `1.png` and `json`
{"messages", "slots"} (slots of the first and of the second picture).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from PIL import Image, ImageDraw

from multimodal.data.sentences import COUNTS, RELATIONS, SIZES, Slots, sentence, singular
from multimodal.data.shards import write_shard

Split = Literal["train", "combinations", "backgrounds", "sprites"]
SPLITS: tuple[Split, ...] = ("train", "combinations", "backgrounds", "sprites")

HUES = {
    "blue": (70, 120, 225),
    "green": (75, 165, 75),
    "red": (215, 75, 75),
    "gray": (135, 135, 135),
    "yellow": (235, 205, 60),
    "purple": (150, 80, 200),
    "turquoise": (60, 190, 190),
}
TONES = ("light", "dark", "striped", "dotted")
HELD_OUT_BACKGROUNDS = ("light green", "dark red", "striped blue", "dotted yellow")
"""One of each tone, four different hues. The words of each are trained on backgrounds enough to come apart: with two
others of each hue, trained backgrounds are learned as names of one piece."""
BACKGROUNDS = tuple(f"{tone} {hue}" for hue in HUES for tone in TONES)
_ONE_IN = 10
_QUESTION = "Image caption:"
_SIDES = {"small": (0.26, 0.29), "large": (0.40, 0.43), "pair": (0.33, 0.41), None: (0.31, 0.36)}
"""Longest side of a thing as a share of the canvas, by the size word."""
_MARGIN = 0.02
_TRIES = 400


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture, the sentence that describes it, and the sentence's slots."""

    image: Image.Image
    caption: str
    slots: Slots


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Two pictures in one conversation: each turn of the user shows one, each answer is that picture's sentence."""

    scenes: tuple[Scene, Scene]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Interleaved turns; a picture is {"type": "image", "image": "0.png"}, the name of its member in the shard."""
        turns: list[dict[str, Any]] = []
        for number, scene in enumerate(self.scenes):
            shown = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": _QUESTION}]
            turns += [{"role": "user", "content": shown}, {"role": "assistant", "content": scene.caption}]
        return turns


class Scenes:
    """The endless sequence of a split's scenes: `scenes[i]`, i = 0, 1, 2, ..."""

    def __init__(
        self,
        sprites: Iterable[tuple[Image.Image, str]],
        *,
        split: str = "train",
        seed: int = 0,
        pixels: int = 224,
        flips: bool = True,
    ) -> None:
        """`sprites` are cut-outs (RGBA) with what they show: "A yellow lemon.", "a lemon" or "lemon".

        Only things with a place in `sentences.NOUNS` are taken, the rest is passed over; fewer than two nouns for the
        split are a ValueError. `flips` mirrors half of the things, left and right.
        """
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
        self.split, self.seed, self.pixels, self.flips = split, seed, pixels, flips
        self._sprites: dict[str, list[Image.Image]] = {}
        for image, phrase in sprites:
            noun = singular(phrase)
            if noun is not None:
                self._sprites.setdefault(noun, []).append(_cut_out(image, pixels))
        trained = [noun for noun in sorted(self._sprites) if not is_held_out(noun)]
        unseen = [noun for noun in sorted(self._sprites) if is_held_out(noun)]
        if len(trained) < 2 or (split == "sprites" and not unseen):
            raise ValueError(
                f"split {split!r} needs two trained nouns, 'sprites' a held-out one too; got {trained} and {unseen}"
            )
        self.trained, self.unseen = tuple(trained), tuple(unseen)

    def __getitem__(self, index: int) -> Scene:
        """Scene number `index` (from 0)."""
        if index < 0:
            raise IndexError(f"scenes are counted from 0, got {index}")
        random = Random(f"scene {self.seed} {self.split} {index}")
        slots = self._draw(random)
        return Scene(image=self._compose(slots, random), caption=sentence(slots), slots=slots)

    def dialogue(self, index: int) -> Dialogue:
        """Two different scenes in one conversation: numbers 2 * index and 2 * index + 1."""
        return Dialogue(scenes=(self[2 * index], self[2 * index + 1]))

    def _draw(self, random: Random) -> Slots:
        """Slots that the split may show."""
        while True:
            background = random.choice(BACKGROUNDS)
            first = random.choice(self.unseen if self.split == "sprites" else self.trained)
            if random.random() < 0.5:
                second = random.choice(self.trained)
                nouns = (first, second) if random.random() < 0.5 else (second, first)
                slots = Slots(nouns=nouns, relation=random.choice(RELATIONS), background=background)
            else:
                slots = Slots(
                    nouns=(first,), count=random.choice(COUNTS), size=random.choice(SIZES), background=background
                )
            if len(set(slots.nouns)) == len(slots.nouns) and split_of(slots) == self.split:
                return slots

    def _compose(self, slots: Slots, random: Random) -> Image.Image:
        canvas = _background(slots.background, self.pixels, random)
        things = [self._thing(noun, slots, random) for noun in slots.nouns]
        things *= slots.count or 1
        for thing, corner in zip(things, self._corners(things, slots, random), strict=True):
            canvas.alpha_composite(thing, corner)
        return canvas.convert("RGB")

    def _thing(self, noun: str, slots: Slots, random: Random) -> Image.Image:
        image = random.choice(self._sprites[noun])
        side = random.uniform(*_SIDES["pair" if slots.relation else slots.size]) * self.pixels
        scale = side / max(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
        flip = self.flips and random.random() < 0.5
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image

    def _corners(self, things: Sequence[Image.Image], slots: Slots, random: Random) -> list[tuple[int, int]]:
        """Upper left corners: apart from each other and from the edges; two things stand plainly in their relation."""
        margin = max(1, round(_MARGIN * self.pixels))
        while True:
            corners: list[tuple[int, int]] = []
            for thing in things:
                for _ in range(_TRIES):
                    corner = (
                        random.randint(margin, self.pixels - margin - thing.width),
                        random.randint(margin, self.pixels - margin - thing.height),
                    )
                    if all(
                        _apart(corner, thing, other, placed, margin)
                        for other, placed in zip(corners, things, strict=False)
                    ) and (
                        not corners
                        or slots.relation is None
                        or _related(corners[0], things[0], corner, thing, slots.relation)
                    ):
                        corners.append(corner)
                        break
                else:
                    # The first things left no room for this one: begin again.
                    break
            if len(corners) == len(things):
                return corners


def is_held_out(*words: object) -> bool:
    """Whether a noun, or a combination whose order does not count, is kept from training: one in ten, by its hash."""
    text = "|".join(sorted(str(word) for word in words))
    return int.from_bytes(hashlib.blake2b(f"scenes {text}".encode(), digest_size=8).digest(), "big") % _ONE_IN == 0


def split_of(slots: Slots) -> Split:
    """The one split that may show these slots."""
    if any(is_held_out(noun) for noun in slots.nouns):
        return "sprites"
    if slots.background in HELD_OUT_BACKGROUNDS:
        return "backgrounds"
    combinations = [(noun, slots.background) for noun in slots.nouns]
    combinations += [slots.nouns] if len(slots.nouns) == 2 else []
    counted = len(slots.nouns) == 1 and slots.count == held_out_count(slots.nouns[0])
    return "combinations" if counted or any(is_held_out(*combination) for combination in combinations) else "train"


def held_out_count(noun: str) -> int | None:
    """How many of a noun no trained scene shows: one of the counts for three nouns in ten, so that two are trained."""
    number = int.from_bytes(hashlib.blake2b(f"count {noun}".encode(), digest_size=8).digest(), "big")
    return COUNTS[number // _ONE_IN % len(COUNTS)] if number % _ONE_IN < len(COUNTS) else None


def write_scenes(folder: Path, scenes: Scenes, count: int, *, dialogues: int = 0, shard_size: int = 1000) -> list[Path]:
    """Writes the first `count` scenes, and `dialogues` of two pictures that follow them, as shards; their paths.

    The shards are `folder/<split>-00000.tar`, ..., with `shard_size` samples each.
    """
    samples = _samples(scenes, count, dialogues)
    paths = []
    for number in range(math.ceil((count + dialogues) / shard_size)):
        path = folder / f"{scenes.split}-{number:05d}.tar"
        written = write_shard(path, itertools.islice(samples, shard_size))
        assert written > 0
        paths.append(path)
    return paths


def _samples(scenes: Scenes, count: int, dialogues: int) -> Iterator[dict[str, bytes | str]]:
    for index in range(count):
        scene = scenes[index]
        record = {"caption": scene.caption, "slots": scene.slots.as_json()}
        yield {"__key__": f"{scenes.split}-{index:07d}", "png": _png(scene.image), "json": json.dumps(record).encode()}
    first = math.ceil(count / 2)
    for index in range(first, first + dialogues):
        dialogue = scenes.dialogue(index)
        record = {"messages": dialogue.messages, "slots": [scene.slots.as_json() for scene in dialogue.scenes]}
        pictures = {f"{number}.png": _png(scene.image) for number, scene in enumerate(dialogue.scenes)}
        yield {"__key__": f"{scenes.split}-dialogue-{index:07d}", **pictures, "json": json.dumps(record).encode()}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Level 1 costs a third of the time of the default for a tenth more bytes.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _cut_out(image: Image.Image, pixels: int) -> Image.Image:
    """The thing without the empty frame around it, not larger than a scene needs."""
    image = image.convert("RGBA")
    box = image.getchannel("A").point([0] * 25 + [255] * 231).getbbox()
    if box is None:
        raise ValueError("a sprite is wholly transparent; leave it out")
    image = image.crop(box)
    # A later resize to at most .43 of the canvas stays sharp, and is quick.
    image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    return image


def _background(name: str | None, pixels: int, random: Random) -> Image.Image:
    assert name is not None
    tone, hue = name.split()
    # Lighter or darker as a whole, and only a little of another hue: gray stays gray.
    shift = random.randint(-10, 10)
    base = [level + shift + random.randint(-3, 3) for level in HUES[hue]]
    if tone in ("striped", "dotted"):
        draw = _stripes if tone == "striped" else _dots
        return draw(_mixed(base, 255, 0.15), _mixed(base, 255, 0.6), pixels, random)
    color = _mixed(base, 255, 0.55) if tone == "light" else _mixed(base, 0, 0.5)
    return Image.new("RGBA", (pixels, pixels), (*color, 255))


def _stripes(color: tuple[int, int, int], between: tuple[int, int, int], pixels: int, random: Random) -> Image.Image:
    """Bars of two colours, turned by any angle, one sixteenth to one ninth of the canvas wide."""
    width = random.randint(pixels // 16, pixels // 9)
    # The bars are drawn on a square that still covers the canvas when it is turned.
    side = math.ceil(pixels * math.sqrt(2)) + 2
    row = Image.new("RGBA", (side, 1))
    row.putdata([(*(color if x // width % 2 else between), 255) for x in range(side)])
    turned = row.resize((side, side)).rotate(random.uniform(0, 180), Image.Resampling.BICUBIC)
    corner = (side - pixels) // 2
    return turned.crop((corner, corner, corner + pixels, corner + pixels))


def _dots(color: tuple[int, int, int], between: tuple[int, int, int], pixels: int, random: Random) -> Image.Image:
    """Discs in rows that stand in each other's gaps, at any offset, one fourteenth to one ninth of the canvas apart."""
    apart = random.randint(pixels // 14, pixels // 9)
    left, top = random.randrange(apart), random.randrange(apart)
    canvas = Image.new("RGBA", (pixels, pixels), (*between, 255))
    draw = ImageDraw.Draw(canvas)
    for row, y in enumerate(range(top - apart, pixels + apart, apart)):
        for x in range(left - apart + row % 2 * apart // 2, pixels + apart, apart):
            draw.ellipse((x - 0.3 * apart, y - 0.3 * apart, x + 0.3 * apart, y + 0.3 * apart), fill=(*color, 255))
    return canvas


def _mixed(color: Sequence[int], other: int, share: float) -> tuple[int, int, int]:
    """`color` with `share` of the gray level `other`."""
    red, green, blue = (round(level * (1 - share) + other * share) for level in color)
    return red, green, blue


def _apart(corner: tuple[int, int], thing: Image.Image, other: tuple[int, int], placed: Image.Image, gap: int) -> bool:
    return (
        corner[0] + thing.width + gap <= other[0]
        or other[0] + placed.width + gap <= corner[0]
        or corner[1] + thing.height + gap <= other[1]
        or other[1] + placed.height + gap <= corner[1]
    )


def _related(
    first: tuple[int, int], thing: Image.Image, second: tuple[int, int], other: Image.Image, relation: str
) -> bool:
    """Whether the first box lies wholly on its side of the second, and its centre far more that way than across."""
    across = (second[0] + other.width / 2) - (first[0] + thing.width / 2)
    down = (second[1] + other.height / 2) - (first[1] + thing.height / 2)
    along, aside, clear = {
        "to the left of": (across, down, first[0] + thing.width <= second[0]),
        "to the right of": (-across, down, second[0] + other.width <= first[0]),
        "above": (down, across, first[1] + thing.height <= second[1]),
        "below": (-down, across, second[1] + other.height <= first[1]),
    }[relation]
    return clear and abs(aside) <= 0.4 * along
