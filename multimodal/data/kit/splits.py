"""Which picture goes where: by hashes of words and concepts, so that it never depends on order or chance.

    train                 all of Noto, the trained stamps, OpenMoji's drawings of half the concepts that Noto has
    train-two-styles      the same without OpenMoji: the harder way to the same tests
    openmoji-unseen-half  OpenMoji's drawings of the other half: concepts trained through Noto, drawings never seen
    tuxpaint-unseen       stamps whose noun no training caption names, in whole or in part

Where Noto is missing, one half of OpenMoji is trained and the other half shows concepts that were never named. No
picture of a test is in training, and no caption, but for `openmoji-unseen-half`, whose concepts are trained by design.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from multimodal.data.kit.picture import KitPicture, head_of, plain_words, singular_word
from multimodal.data.kit.stamps import to_learn
from multimodal.data.scenes import is_held_out
from multimodal.data.sentences import singular

TRAIN, TWO_STYLES = "train", "train-two-styles"
DRAWINGS, UNSEEN = "openmoji-unseen-half", "tuxpaint-unseen"
SPLITS = (TRAIN, TWO_STYLES, DRAWINGS, UNSEEN)
_ONE_IN = 2
"""Share of the nouns that emoji do not name: about an eighth of the stamps."""
_SHORTEST = 4
"""Letters from which a word inside another one counts as its name: "rhino" in "rhinoceros"."""
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
    named = _words(picture.caption for picture in [*sources.noto, *shared])
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
    parts = {TRAIN: [*two_styles, *drawn], TWO_STYLES: two_styles, DRAWINGS: tested, UNSEEN: unseen}
    return {name: sorted(parts[name], key=lambda one: (one.source, one.key)) for name in SPLITS}


def in_test_half(concept: str) -> bool:
    """Whether OpenMoji's drawing of an emoji is kept for the test."""
    return _hash(f"half {concept}") % 2 == 1


def stands_in_held_out_scenes(picture: KitPicture) -> bool:
    """Whether the thing is one that composed scenes hold out altogether: then its photograph is no training picture."""
    noun = singular(picture.caption)
    return noun is not None and is_held_out(noun)


def _is_unseen(picture: KitPicture, named: set[str]) -> bool:
    head = head_of(picture.caption)
    if not picture.caption.startswith(("A ", "An ")) or len(head) < 3 or head in _CONTAINERS:
        return False
    if any(_names(word, head) for word in named):
        return False
    return stands_in_held_out_scenes(picture) or _hash(f"stamp {head}") % _ONE_IN == 0


def _names(word: str, head: str) -> bool:
    """Whether a word gives a noun away: it is the noun, holds it, or is held by it."""
    short, long = sorted((word, head), key=len)
    return word == head or (len(short) >= _SHORTEST and short in long)


def _words(captions: Iterable[str]) -> set[str]:
    return {singular_word(word) for caption in captions for word in plain_words(caption).split()}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
