"""Sentences about composed scenes: their slots, the words that fill them, from slots to text and back, and scores.

The reader is lenient, so that a model is scored by what it said and not by how well it keeps to the form; a thing that
is no noun of ours stays in its slot as it was said, and is wrong.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

COUNTS = (1, 2, 3)
SIZES = ("small", "large")
RELATIONS = ("to the left of", "to the right of", "above", "below")
OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
SLOT_NAMES = ("noun", "count", "relation", "size", "background")
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
_NUMBER_WORDS = {1: "A", 2: "Two", 3: "Three"}

_REGULAR = (
    "crow", "duck", "penguin", "owl", "pelican", "pigeon", "seagull", "toucan", "turkey", "vulture", "chicken",
    "frog", "hornet", "grasshopper", "seahorse", "iguana", "chimpanzee", "gorilla", "dolphin", "orca", "otter",
    "whale", "badger", "bear", "bull", "cow", "goat", "ram", "yak", "camel", "lion", "tiger", "dog", "elephant",
    "donkey", "horse", "zebra", "ferret", "giraffe", "pig", "beaver", "squirrel", "koala", "wombat", "apricot",
    "banana", "lemon", "mango", "orange", "pear", "pineapple", "pomegranate", "almond", "walnut", "carrot",
    "eggplant", "mushroom", "onion", "pumpkin", "lightbulb", "camera", "trumpet", "cello", "violin", "mug",
    "teapot", "kettle", "key", "hammer", "saw", "toolbox", "wrench", "syringe", "daffodil", "rose", "pinecone",
    "candle", "basketball", "football", "mailbox", "airplane", "tricycle", "kangaroo", "flamingo", "gravestone",
    "wreath", "pitcher", "soccer ball", "tennis ball", "tennis racket", "traffic cone", "sports car", "race car",
    "pickup truck", "fire truck", "garbage truck", "garbage can", "hot air balloon", "rubber duck",
    "cement mixer", "drum kit", "electric guitar", "classical guitar", "palm tree", "tractor wheel",
    "chile pepper", "gas cylinder", "pepper grinder", "trophy cup",
)  # fmt: skip
NOUNS = {
    **{noun: f"{noun}s" for noun in _REGULAR},
    "sheep": "sheep", "deer": "deer", "bison": "bison", "fireman": "firemen", "fox": "foxes",
    "ostrich": "ostriches", "mouse": "mice", "hippopotamus": "hippopotamuses", "strawberry": "strawberries",
    "potato": "potatoes", "tomato": "tomatoes", "paintbrush": "paintbrushes", "iris": "irises", "bus": "buses",
}  # fmt: skip
"""What a scene may show, with its plural."""

_NAMES = {
    **{noun: noun for noun in NOUNS},
    "yellow lemon": "lemon", "yellow pear": "pear", "brown potato": "potato", "ripe, red tomato": "tomato",
    "lit candle": "candle", "very small pumpkin": "pumpkin", "very small pitcher": "pitcher",
    "silver garbage can": "garbage can", "green bus": "bus", "electric kettle": "kettle",
    "large paintbrush": "paintbrush", "american football": "football", "pink tricycle": "tricycle",
    "red kangaroo": "kangaroo", "pink flamingo": "flamingo", "pine wreath": "wreath", "plumber's wrench": "wrench",
}  # fmt: skip
"""How captions of cut-outs call them."""
_SINGULAR = {plural: noun for noun, plural in NOUNS.items()}
_ARTICLE = re.compile(r"^(?:an?|one|two|three)\s+")


@dataclass(frozen=True, kw_only=True)
class Slots:
    """What a sentence says: copies of one noun have a count and a size, two nouns have a relation (first to second)."""

    nouns: tuple[str, ...]
    count: int | None = None
    relation: str | None = None
    size: str | None = None
    background: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "nouns": list(self.nouns)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Slots:
        return cls(**{**record, "nouns": tuple(record["nouns"])})


def singular(phrase: str) -> str | None:
    """The noun of ours that a caption like "A yellow lemon." is; None where it is none."""
    return _NAMES.get(_ARTICLE.sub("", phrase.strip().rstrip(".!").lower().replace("\u2019", "'")))


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def sentence(slots: Slots) -> str:
    """The one sentence for these slots: "Two small bananas on a dark green background."."""
    if slots.relation is not None:
        first, second = slots.nouns
        subject = f"{with_article(first)} {slots.relation} {with_article(second)}"
    else:
        [noun], count = slots.nouns, slots.count or 1
        words = " ".join(word for word in (slots.size, noun if count == 1 else NOUNS[noun]) if word)
        subject = with_article(words) if count == 1 else f"{_NUMBER_WORDS[count]} {words}"
    return f"{subject[0].upper()}{subject[1:]} on {with_article(slots.background or 'plain')} background."


def read_slots(text: str) -> Slots:
    """The slots that free text fills; what it does not say is None, and text that says nothing has no noun."""
    text = " ".join(text.lower().replace(".", " ").split())
    found = re.search(r"\bon an? (.+?) background\b", text)
    background = found[1] if found else None
    text = text[: found.start()] if found else text.split(" on a ")[0]
    for relation in RELATIONS:
        first, word, second = text.partition(f" {relation} ")
        if word:
            return Slots(nouns=(_thing(first)[2], _thing(second)[2]), relation=relation, background=background)
    count, size, noun = _thing(text)
    return Slots(nouns=(noun,) if noun else (), count=count, size=size, background=background)


def score_slots(said: Slots, true: Slots) -> dict[str, float]:
    """The share right, 0 to 1, of each slot that the true sentence has; other slots are left out.

    "A to the left of B" and "B to the right of A" are one statement: where the order of the nouns is turned, the
    relation is too. Guessing gets a third of counts, half of sizes, a quarter of relations right.
    """
    scores = {"noun": sum(noun in said.nouns for noun in true.nouns) / len(true.nouns)}
    if true.relation is None:
        scores["count"] = float(said.count == true.count)
        scores["size"] = float(said.size == true.size)
    else:
        first, second = true.nouns
        turned = said.relation is not None and (said.nouns[0] == second or said.nouns[-1] == first)
        scores["relation"] = float((OPPOSITE.get(said.relation or "") if turned else said.relation) == true.relation)
    scores["background"] = float(said.background == true.background)
    return scores


def _thing(words: str) -> tuple[int | None, str | None, str]:
    """Count, size and noun of "two small bananas"."""
    words = words.strip()
    number, _, rest = words.partition(" ")
    count = _NUMBERS.get(number)
    words = rest if count is not None else words
    size, _, rest = words.partition(" ")
    words = rest if size in SIZES else words
    return count, size if size in SIZES else None, _SINGULAR.get(words, words)
