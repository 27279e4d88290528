"""A text model, an encoder and an adapter small enough for a test, and a tokenizer of single characters."""

from collections.abc import Sequence

from text_backbone import Slot
from text_backbone.tokenizer import Tokenizer


class Letters(Tokenizer):
    """One token a character; `<s>` begins, `<e>` ends a turn, `<u>` and `<a>` open a turn of user and assistant."""

    controls = {"<s>": 0, "<e>": 1, "<u>": 2, "<a>": 3}
    begin, stops, pad = 0, (1,), 1
    _first = 4
    size = 100

    def encode(self, text: str) -> list[int]:
        return [self._first + (ord(char) - 32) % (self.size - self._first) for char in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(32 + token - self._first) for token in ids if self._first <= token < self.size)

    def dialog(self, messages, *, reply: bool = True) -> list[int | Slot]:
        ids: list[int | Slot] = [0]
        for message in messages:
            ids.append(3 if message["role"] == "assistant" else 2)
            content = message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                ids.extend(self.encode(part["text"]) if part["type"] == "text" else [Slot(part["type"])])
            ids.append(1)
        return [*ids, 3] if reply else ids
