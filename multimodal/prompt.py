"""From ["text", Image(...), Audio(...), ...] to tokens, media, and what sees what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from multimodal.modality import PLACEHOLDERS, Audio, Image, Part, as_part
from text_backbone import Slot, Tokenizer

Prompt = Part | Sequence[Part]
Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sequence: tokens with placeholders, the media they stand for, and which tokens are to be learned.

    A picture has one placeholder. A recording has one until its length is known, then (`heard`) as many as it has rows.
    """

    tokens: tuple[int, ...]
    images: tuple[Image, ...] = ()
    slots: tuple[int, ...] = ()
    """Position of each picture's placeholder."""
    sounds: tuple[Audio, ...] = ()
    ears: tuple[int, ...] = ()
    """Position of each recording's (first) placeholder."""
    learned: tuple[tuple[int, int], ...] = ()
    """Spans [start, stop) of tokens that the loss is taken on."""

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.slots)
        assert len(self.sounds) == len(self.ears)

    def heard(self, counts: Sequence[int]) -> Row:
        """The row with `counts[i]` placeholders where recording i stood with one."""
        assert len(counts) == len(self.ears)
        if not counts:
            return self
        tokens: list[int] = []
        moved: list[int] = []
        """Where each old position went; one more than there are tokens."""
        wanted = dict(zip(self.ears, counts, strict=True))
        for position, token in enumerate(self.tokens):
            moved.append(len(tokens))
            tokens.extend([token] * wanted.get(position, 1))
        moved.append(len(tokens))
        return replace(
            self,
            tokens=tuple(tokens),
            slots=tuple(moved[slot] for slot in self.slots),
            ears=tuple(moved[ear] for ear in self.ears),
            learned=tuple((moved[start], moved[stop]) for start, stop in self.learned),
        )

    @property
    def spans(self) -> list[tuple[int, int]]:
        """For each picture the tokens [start, stop) that see it."""
        return visible(self.slots, len(self.tokens))


def visible(slots: Sequence[int], length: int) -> list[tuple[int, int]]:
    """The tokens [start, stop) that see each picture (Llama 3.2, `convert_sparse_cross_attention_mask_to_dense`).

    A picture is seen from its placeholder up to the next picture, the last one to the end; pictures whose placeholders
    stand side by side share the end of their run:

        tokens   a  I0 b  c  I1 I2 d
        I0       .  x  x  x  .  .  .
        I1       .  .  .  .  x  x  x
        I2       .  .  .  .  .  x  x
    """
    spans: list[tuple[int, int]] = []
    stop, following = length, length
    for slot in reversed(slots):
        if slot + 1 != following:
            stop = following
        spans.append((slot, stop))
        following = slot
    return spans[::-1]


def parts_of(prompt: Prompt) -> list[Part]:
    """The prompt as a list of parts; empty prompts are a ValueError."""
    parts = [prompt] if isinstance(prompt, Part) else [as_part(part) for part in prompt]
    if not parts:
        raise ValueError("the prompt is empty; give text, an Image, an Audio, or a list of them")
    return parts


@dataclass(frozen=True, kw_only=True)
class PromptReader:
    """Makes rows of prompts and conversations for one text model."""

    tokenizer: Tokenizer
    vocabulary: int
    """The text model's, above which the placeholders' ids begin."""

    def raw(self, prompt: Prompt, answer: str | None = None) -> Row:
        """Begin-of-text, the prompt as it stands, and, where given, the answer to learn with an end-of-text after
        it.
        """
        tokens = [] if self.tokenizer.begin is None else [self.tokenizer.begin]
        images, slots, sounds, ears = [], [], [], []
        for part in parts_of(prompt):
            if isinstance(part, Image):
                slots.append(len(tokens))
                images.append(part)
                tokens.append(self.placeholder)
            elif isinstance(part, Audio):
                ears.append(len(tokens))
                sounds.append(part)
                tokens.append(self.ear)
            else:
                tokens.extend(self.tokenizer.encode(part))
        learned: tuple[tuple[int, int], ...] = ()
        if answer is not None:
            start = len(tokens)
            tokens.extend([*self.tokenizer.encode(answer), self.tokenizer.stops[0]])
            # The first token of all follows nothing.
            learned = ((max(start, 1), len(tokens)),)
        return Row(
            tokens=tuple(tokens),
            images=tuple(images),
            slots=tuple(slots),
            sounds=tuple(sounds),
            ears=tuple(ears),
            learned=learned,
        )

    def dialog(self, messages: Sequence[Message], *, learn: bool = False) -> Row:
        """A conversation in the model's own chat form; content is text or a list of text, Image and Audio parts.

        To be answered: ends with the header of the assistant's turn. With `learn`: ends with the assistant's last
        answer, and the loss is taken on every assistant answer up to and with its stop token.
        """
        media = [part for message in messages for part in _content(message) if not isinstance(part, str)]
        plain = [{**message, "content": [_described(part) for part in _content(message)]} for message in messages]
        ids = self.tokenizer.dialog(plain, reply=not learn)
        learned: list[tuple[int, int]] = []
        if learn:
            answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
            if not answers:
                raise ValueError("nothing to learn: the conversation has no assistant message")
            learned = [self._answer_span(ids, plain[:turn]) for turn in answers]
            ids = ids[: learned[-1][1]]
        at = [position for position, token in enumerate(ids) if isinstance(token, Slot)]
        assert len(at) == len(media)
        tokens = list(ids)
        for position, medium in zip(at, media, strict=True):
            tokens[position] = self.placeholder if isinstance(medium, Image) else self.ear
        images = [(medium, position) for medium, position in zip(media, at, strict=True) if isinstance(medium, Image)]
        sounds = [(medium, position) for medium, position in zip(media, at, strict=True) if isinstance(medium, Audio)]
        return Row(
            tokens=tuple(token for token in tokens if isinstance(token, int)),
            images=tuple(image for image, _ in images),
            slots=tuple(position for _, position in images),
            sounds=tuple(sound for sound, _ in sounds),
            ears=tuple(position for _, position in sounds),
            learned=tuple(learned),
        )

    @property
    def placeholder(self) -> int:
        return self.vocabulary + PLACEHOLDERS["image"]

    @property
    def ear(self) -> int:
        """What stands for every row of a recording."""
        return self.vocabulary + PLACEHOLDERS["speech"]

    def _answer_span(self, ids: Sequence[int | Slot], before: Sequence[Message]) -> tuple[int, int]:
        """Where an answer stands: behind the conversation before it, up to and with the first stop token."""
        start = len(self.tokenizer.dialog(before, reply=True))
        for position in range(start, len(ids)):
            if ids[position] in self.tokenizer.stops:
                return start, position + 1
        raise ValueError("the chat template closes no assistant message with a stop token; it cannot be learned from")


def _content(message: Message) -> list[Part]:
    content = message["content"]
    return [content] if isinstance(content, str) else [as_part(part) for part in content]


def _described(part: Part) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image" if isinstance(part, Image) else "audio"}
