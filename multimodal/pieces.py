"""A small vocabulary of a text model's own tokens, each common enough to be learned from little speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from multimodal.data.spoken import spoken
from text_backbone import Tokenizer

_LONGEST = 14
"""Characters of a piece."""
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Tokens whose texts spoken text is put together of: whole words where they are common, letters where nothing else
    is left.

    A token that the tokenizer would use but that stands in the training text a handful of times cannot be learned from
    sound; the word falls into shorter ones that stand in other words too.
    """

    texts: tuple[tuple[str, int], ...]
    """Text (with its leading space) and token, in the order of tokens."""

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for _, token in self.texts)

    @cached_property
    def _table(self) -> dict[str, int]:
        return {text: column for column, (text, _) in enumerate(self.texts)}

    @cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        return {}

    def of(self, text: str) -> list[int]:
        """The pieces (numbers within `tokens`) of a text as it is spoken; characters that no piece has are left out."""
        return [piece for word in spoken(text).split() for piece in self._word(word)]

    def text(self, pieces: Iterable[int]) -> str:
        return "".join(self.texts[piece][0] for piece in pieces).strip()

    def _word(self, word: str) -> tuple[int, ...]:
        """The fewest pieces; of equally few, those that come with the longest last."""
        if word in self._known:
            return self._known[word]
        # A word begins with its space; a letter that is not known at all costs a step and gives nothing.
        whole = f" {word}"
        best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
        for end in range(1, len(whole) + 1):
            choices = [(best[end - 1][0] + 10, best[end - 1][1])]
            for start in range(max(0, end - _LONGEST), end):
                piece = self._table.get(whole[start:end])
                if piece is not None:
                    choices.append((best[start][0] + 1, (*best[start][1], piece)))
            best.append(min(choices, key=lambda one: one[0]))
        self._known[word] = best[-1][1]
        return best[-1][1]


def choose_pieces(tokenizer: Tokenizer, texts: Iterable[str], *, least: int = 8) -> Pieces:
    """The tokens that stand at least `least` times in `texts` as they are spoken, and all single letters of them."""
    words = Counter(word for text in texts for word in spoken(text).split())
    if not words:
        raise ValueError("pieces are chosen from text, and there is none")
    letters = _letters(tokenizer, set("".join(words)))
    counts: Counter[int] = Counter()
    for word, number in words.items():
        for token in tokenizer.encode(f" {word}"):
            counts[token] += number
    kept = {token for token, number in counts.items() if number >= least} | letters
    pieces = _pieces(tokenizer, kept)
    # Rare tokens that are gone give their words to others, which grow more common; some of those drop out in turn.
    for _ in range(_ROUNDS):
        counts.clear()
        for word, number in words.items():
            for piece in pieces.of(word):
                counts[pieces.tokens[piece]] += number
        pieces = _pieces(tokenizer, {token for token in pieces.tokens if counts[token] >= least} | letters)
    return pieces


def _letters(tokenizer: Tokenizer, letters: set[str]) -> set[int]:
    """Letters inside of words and at their beginning; the space alone where a tokenizer has none of the latter.

    Few tokenizers have digits behind a space, and numbers are mostly written as words: they alone are no reason.
    """
    inside = {token for letter in letters for token in _single(tokenizer, letter)}
    first = {letter: _single(tokenizer, f" {letter}") for letter in letters}
    space = [] if all(tokens for letter, tokens in first.items() if letter.isalpha()) else _single(tokenizer, " ")
    return inside | {token for tokens in first.values() for token in tokens} | set(space)


def _single(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens = tokenizer.encode(text)
    return tokens if len(tokens) == 1 else []


def _pieces(tokenizer: Tokenizer, tokens: set[int]) -> Pieces:
    texts = ((tokenizer.decode([token]), token) for token in sorted(tokens))
    # A token that is half a character of another script has no text of its own.
    return Pieces(texts=tuple((text, token) for text, token in texts if text and "\ufffd" not in text))
