"""What is said in recordings of any length: windows that overlap, each transcribed, joined where they agree."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from jaxtyping import Float
from torch import Tensor

from encoders.sound import RATE

WINDOW, OVERLAP = 28.0, 4.0
"""Seconds of a window (below the 30 that Whisper hears at once), and of what it shares with its neighbour."""


def windows(
    sound: Float[Tensor, "samples"], *, window: float = WINDOW, overlap: float = OVERLAP
) -> list[Float[Tensor, "_"]]:
    """The recording whole where it fits into a window, else windows of which each begins `overlap` before the last
    ends.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"the overlap ({overlap}) must be at least 0 and below the window ({window}), in seconds")
    size, step = int(window * RATE), int((window - overlap) * RATE)
    if len(sound) <= size:
        return [sound]
    starts = range(0, len(sound) - size + step, step)
    return [sound[start : start + size] for start in starts if start < len(sound)]


def joined(texts: Sequence[str], *, shared: int = 16) -> str:
    """One text of those of overlapping windows.

    Of the `shared` words around each seam the longest run that both sides have is said once; what the one has behind it
    and the other before it are the words that a window's edge cut off. Without two words in common (one, where a text
    has no more) the texts follow one another.
    """
    words: list[str] = []
    for text in texts:
        following = text.split()
        tail, head = words[-shared:], following[:shared]
        # Signs and capitals at a seam differ with what the window saw of the sentence.
        match = SequenceMatcher(None, [_plain(w) for w in tail], [_plain(w) for w in head], autojunk=False)
        run = match.find_longest_match()
        if run.size >= min(2, len(tail), len(head)) and run.size:
            words = words[: len(words) - len(tail) + run.a] + following[run.b :]
        else:
            words += following
    return " ".join(words)


def most_tokens(seconds: float) -> int:
    """Tokens that an answer to so much sound may have: nobody says more than eight a second."""
    return 8 + int(8 * seconds)


def _plain(word: str) -> str:
    return "".join(character for character in word.lower() if character.isalnum())
