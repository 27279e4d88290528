"""Text as it is spoken: words without case and signs, which nobody hears."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def spoken(text: str) -> str:
    """Lower-case words with one space between them; apostrophes stay inside of a word."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFC", text).replace("\u2019", "'").lower()))
