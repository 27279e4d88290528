"""Which picture goes where: by hashes of words and concepts, so that it never depends on order or chance.

    train                 all of Noto, the trained stamps, OpenMoji's drawings of half the concepts that Noto has
    train-two-styles      the same without OpenMoji: the harder way to the same tests
    train-cartoons        every picture of train once more in another style, made by `cartoon`
    train-two-styles-cartoons
    openmoji-unseen-half  OpenMoji's drawings of the other half: concepts trained through Noto, drawings never seen
    tuxpaint-unseen       stamps whose noun no training caption and no trained scene names, in whole or part

Where Noto is missing, one half of OpenMoji is trained and the other half shows concepts that were never named. No
picture of a test is in training, and no caption, but for `openmoji-unseen-half`, whose concepts are trained by design.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import PIL.Image

from multimodal.data.kit.cartoon import cartoon
from multimodal.data.kit.picture import KitPicture, head_of, plain_words, singular_word
from multimodal.data.kit.stamps import to_learn
from multimodal.data.scenes import is_held_out
from multimodal.data.sentences import NOUNS, singular

TRAIN, TWO_STYLES = "train", "train-two-styles"
CARTOONS, TWO_STYLES_CARTOONS = "train-cartoons", "train-two-styles-cartoons"
DRAWINGS, UNSEEN = "openmoji-unseen-half", "tuxpaint-unseen"
SPLITS = (TRAIN, TWO_STYLES, CARTOONS, TWO_STYLES_CARTOONS, DRAWINGS, UNSEEN)
_HELD_OUT = 8
"""Tenths of the nouns that neither emoji nor trained scenes name: about a tenth of the stamps."""
_SHORTEST = (3, 4)
"""Letters from which a held-out noun inside a trained word counts as named ("bee" in "honeybee"), and vice versa."""
_LONGEST = 3
"""Words of a held-out noun; behind longer ones there mostly is no plain noun."""
_CONTAINERS = frozenset(
    ("pair", "slice", "bunch", "cluster", "string", "piece", "plate", "bowl", "basket", "pile", "set", "group", "kind")
)
"""Words that stand before the thing itself: "a pair of shoes"."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The kit's pictures by where they come from; a source that could not be fetched is empty."""

    stamps: Sequence[KitPicture] = ()
    noto: Sequence[KitPicture] = ()
    openmoji: Sequence[KitPicture] = ()


def split(sources: Sources) -> dict[str, list[KitPicture]]:
    """Split -> its pictures, sorted by source and key; splits whose sources are missing are empty."""
    stamps = [picture for picture in sources.stamps if to_learn(picture)]
    trained = {picture.concept for picture in sources.noto}
    tested = [one for one in sources.openmoji if in_test_half(one.concept) and (one.concept in trained or not trained)]
    shared = [one for one in sources.openmoji if one.concept in trained or not trained]
    drawn = [one for one in shared if not in_test_half(one.concept)]
    if not stamps:
        # Scenes are composed of drawings then: what trained scenes show is no test, what they hold out is not trained.
        tested = [one for one in tested if singular(one.caption) is None]
        drawn = [one for one in drawn if not stands_in_held_out_scenes(one)]
    # Scenes are trained in the same run: what they name counts as named, whether or not this kit composes them.
    in_scenes = [noun for noun in NOUNS if not is_held_out(noun)]
    named = _words([*(picture.caption for picture in [*sources.noto, *shared]), *in_scenes])
    unseen = [picture for picture in stamps if _is_unseen(picture, named)]
    unseen_heads = {head_of(picture.caption) for picture in unseen}
    unseen_words = {picture.words for picture in unseen}
    learned = [
        picture
        for picture in stamps
        if picture.words not in unseen_words
        and not any(_names(word, head) for word in _words([picture.caption]) for head in unseen_heads)
        and not stands_in_held_out_scenes(picture)
    ]
    two_styles = [*sources.noto, *learned]
    train = [*two_styles, *drawn]
    parts = {
        TRAIN: train,
        TWO_STYLES: two_styles,
        CARTOONS: [_as_cartoon(one) for one in train],
        TWO_STYLES_CARTOONS: [_as_cartoon(one) for one in two_styles],
        DRAWINGS: tested,
        UNSEEN: unseen,
    }
    return {name: sorted(parts[name], key=lambda one: (one.source, one.key)) for name in SPLITS}


def _as_cartoon(picture: KitPicture) -> KitPicture:
    key = f"{picture.key} (cartoon)"
    return replace(picture, key=key, draw=partial(_drawn_as_cartoon, picture, key))


def _drawn_as_cartoon(picture: KitPicture, key: str) -> PIL.Image.Image:
    return cartoon(picture.draw().convert("RGBA"), Random(f"{picture.source} {key}"))


def in_test_half(concept: str) -> bool:
    """Whether OpenMoji's drawing of an emoji is kept for the test."""
    return _hash(f"half {concept}") % 2 == 1


def stands_in_held_out_scenes(picture: KitPicture) -> bool:
    """Whether the thing is one that composed scenes hold out altogether: then its photograph is no training picture."""
    noun = singular(picture.caption)
    return noun is not None and is_held_out(noun)


def _is_unseen(picture: KitPicture, named: set[str]) -> bool:
    head, plain = head_of(picture.caption), len(picture.noun.split()) <= _LONGEST and "," not in picture.caption
    if not plain or not picture.caption.startswith(("A ", "An ")) or len(head) < 3 or head in _CONTAINERS:
        return False
    if any(_names(word, head) for word in named):
        return False
    return stands_in_held_out_scenes(picture) or _hash(f"stamp {head}") % 10 < _HELD_OUT


def _names(word: str, head: str) -> bool:
    """Whether a trained word gives a held-out noun away: it is the noun, holds it, or is held by it."""
    whole, part = _SHORTEST
    return word == head or (len(head) >= whole and head in word) or (len(word) >= part and word in head)


def _words(captions: Iterable[str]) -> set[str]:
    return {singular_word(word) for caption in captions for word in plain_words(caption).split()}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
