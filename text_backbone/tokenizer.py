"""Text to tokens and back: Hugging Face tokenizer folders and Llama 3's tiktoken file."""

from __future__ import annotations

import base64
import binascii
import json
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from text_backbone import dialog
from text_backbone.dialog import Message, Slot
from text_backbone.hub import find_folder


class Tokenizer(ABC):
    """Text is data: control tokens are put in by `dialog` or by their id, never by what somebody typed."""

    begin: int | None
    """The token that every text of this model starts with; None for models that start without one."""

    stops: tuple[int, ...]
    """The tokens that end a reply."""

    pad: int
    size: int
    """Number of tokens, control tokens included."""

    controls: dict[str, int]
    """The control tokens by name."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of a plain text: none added, and control tokens in it read as text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens; control tokens and media placeholders are left out."""

    @abstractmethod
    def dialog(self, messages: Sequence[Message], *, reply: bool = True) -> list[int | Slot]:
        """The messages in the model's own chat form, media as slots in their places, at most one begin-of-text.

        `reply` opens the assistant's turn at the end. ValueError for messages that the model's form does not take.
        """

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of tokens that are still coming, cut where characters are whole; joined it is `decode` of all."""
        waiting: list[int] = []
        # Decoding starts at the piece before, because some tokenizers drop the first space of what they decode.
        last: list[int] = []
        shown = ""
        for token in ids:
            waiting.append(token)
            text = self.decode(last + waiting)
            if text.endswith("\ufffd") and len(waiting) < 8:
                continue
            yield text[len(shown) :]
            last, waiting = waiting, []
            shown = self.decode(last)
        if waiting:
            yield self.decode(last + waiting)[len(shown) :]


def load_tokenizer(path_or_hub_id: str | Path) -> Tokenizer:
    """The tokenizer of a folder (or hub id), of whichever kind its files are."""
    folder = find_folder(path_or_hub_id)
    file = folder / "tokenizer.model"
    if not (folder / "tokenizer.json").exists() and file.exists() and _is_tiktoken(file):
        return Llama3Tokenizer(file)
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise ValueError(f"{folder} holds no tokenizer: no tokenizer.json, tokenizer.model or tokenizer_config.json")
    return HuggingFaceTokenizer(folder)


class Llama3Tokenizer(Tokenizer):
    """Llama 3's tiktoken file, with Meta's 256 control tokens after its vocabulary and Meta's chat form."""

    # Runs longer than this make tiktoken's regex engine slow or fall over.
    _LONGEST_RUN = 25_000
    _LONGEST = 400_000
    _SPLIT = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    _NAMES = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|step_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|image|>",
    )

    def __init__(self, file: Path) -> None:
        import tiktoken

        try:
            ranks = {
                base64.b64decode(word, validate=True): int(rank)
                for word, rank in (line.split() for line in file.read_bytes().splitlines() if line)
            }
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{file} is no tiktoken file: {error}") from error
        reserved = (f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(self._NAMES)))
        self.controls = {name: len(ranks) + i for i, name in enumerate((*self._NAMES, *reserved))}
        # No control tokens are handed over: what the encoder does not know, it can not read from a text.
        self._text = tiktoken.Encoding(file.name, pat_str=self._SPLIT, mergeable_ranks=ranks, special_tokens={})
        self._plain = len(ranks)
        self.size = len(ranks) + len(self.controls)
        self.begin = self.controls["<|begin_of_text|>"]
        self.pad = self.controls["<|finetune_right_pad_id|>"]
        self.stops = tuple(self.controls[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))

    def encode(self, text: str) -> list[int]:
        # Lone surrogates can not be encoded; what reads UTF-8 elsewhere makes U+FFFD of them too.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return [token for run in self._runs(text) for token in self._text.encode_ordinary(run)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._text.decode([token for token in ids if 0 <= token < self._plain], errors="replace")

    def dialog(self, messages: Sequence[Message], *, reply: bool = True) -> list[int | Slot]:
        return dialog.llama3(messages, self.controls, self.encode, reply=reply)

    def _runs(self, text: str) -> Iterator[str]:
        """The text, cut as Meta's tokenizer cuts it: every 400k characters, and within overlong runs."""
        for start in range(0, len(text), self._LONGEST):
            block = text[start : start + self._LONGEST]
            begin = run = 0
            for i, char in enumerate(block):
                run = run + 1 if i and char.isspace() == block[i - 1].isspace() else 1
                if run > self._LONGEST_RUN:
                    yield block[begin:i]
                    begin, run = i, 1
            yield block[begin:]


class HuggingFaceTokenizer(Tokenizer):
    """Any tokenizer folder that transformers reads into its Rust tokenizers, with its own chat template."""

    # Tokens that end a turn in one chat form or another, where the folder's settings forget to say so.
    _TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "</s>")

    def __init__(self, folder: Path) -> None:
        # Imported here: it takes seconds, and Llama 3's own file does not need it.
        import tokenizers
        from transformers import AutoTokenizer

        self.folder = folder
        found: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if not getattr(found, "is_fast", False):
            raise ValueError(
                f"the tokenizer in {folder} has no fast form ({type(found).__name__}); add a tokenizer.json"
            )
        self._template: Any = found
        self._full: tokenizers.Tokenizer = found.backend_tokenizer
        self._full.no_padding()
        self._full.no_truncation()
        template = found.chat_template if isinstance(found.chat_template, str) else ""
        added = found.added_tokens_decoder
        self.controls = {
            token.content: number
            for number, token in added.items()
            if token.special or (token.content in template and not token.content.isspace())
        }
        self._pattern = dialog.controls_pattern(tuple(self.controls))
        self._control_ids = frozenset(self.controls.values()) - {found.unk_token_id}
        # A twin that does not know the control tokens by their names, for what users type. Those that are not in the
        # model's own vocabulary are renamed to what nobody can type, because the ids of later ones depend on them.
        spec = json.loads(self._full.to_str())
        own = self._full.get_vocab(with_added_tokens=False)
        kept = [
            token
            for token in spec["added_tokens"]
            if not (token["content"] in self.controls and token["content"] in own)
        ]
        for token in kept:
            if token["content"] in self.controls:
                token["content"] = uuid.uuid4().hex
        spec["added_tokens"] = kept
        spec["post_processor"] = None
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(spec))
        self._native = frozenset({"image"} if "<|image|>" in self.controls and "<|image|>" in template else ())

        bos = found.bos_token_id
        self.begin = bos if bos is not None and self._full.encode("a").ids[:1] == [bos] else None
        told = [found.eos_token_id]
        if (folder / "generation_config.json").exists():
            eos = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id")
            told += eos if isinstance(eos, list) else [eos]
        told += [self.controls.get(name) for name in self._TURN_ENDS]
        self.stops = tuple(dict.fromkeys(token for token in told if token is not None))
        pads = (found.pad_token_id, self.controls.get("<|finetune_right_pad_id|>"), *self.stops, 0)
        self.pad = next(token for token in pads if token is not None)
        self.size = self._full.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self._read_plain(text, True)

    def decode(self, ids: Sequence[int]) -> str:
        known = [token for token in ids if 0 <= token < self.size and token not in self._control_ids]
        return self._full.decode(known, skip_special_tokens=False)

    def dialog(self, messages: Sequence[Message], *, reply: bool = True) -> list[int | Slot]:
        # Imported here for the same reason as transformers above.
        from jinja2 import TemplateError

        if not self._template.chat_template:
            raise ValueError(f"the tokenizer in {self.folder} has no chat template; write the prompt as plain text")
        safe = dialog.marked(messages, self._pattern, self._native)
        try:
            rendered = self._template.apply_chat_template(safe, tokenize=False, add_generation_prompt=reply)
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses these messages: {error}") from error
        found = dialog.tokens(rendered, self._read, self._read_plain)
        if self._native:
            image = self.controls["<|image|>"]
            found = [Slot("image") if token == image else token for token in found]
        wanted = [part for message in messages for part in dialog.parts(message) if isinstance(part, Slot)]
        if [token for token in found if isinstance(token, Slot)] != wanted:
            raise ValueError(f"the chat template of {self.folder} drops or moves media: {len(wanted)} were given")
        if self.begin is None:
            return found
        while found and found[0] == self.begin:
            found = found[1:]
        return [self.begin, *found]

    def _read(self, text: str, first: bool) -> list[int]:
        ids = self._encode(self._full, text, first)
        written = len(self._pattern.findall(text))
        if sum(token in self._control_ids for token in ids) > written:
            raise ValueError("a message turns into control tokens when the tokenizer normalises it; refused")
        return ids

    def _read_plain(self, text: str, first: bool) -> list[int]:
        ids = self._encode(self._plain, text, first)
        typed = {self.controls[name] for name in self._pattern.findall(text)} & self._control_ids
        if typed & set(ids):
            raise ValueError("the tokenizer makes a control token of plain text; refused")
        return ids

    @staticmethod
    def _encode(tokenizer: Any, text: str, first: bool) -> list[int]:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if not first:
            # Some tokenizers put a space before the first word; behind a newline they do not.
            newline = tokenizer.encode("\n", add_special_tokens=False).ids
            ids = tokenizer.encode("\n" + text, add_special_tokens=False).ids
            if ids[: len(newline)] == newline:
                return ids[len(newline) :]
        return tokenizer.encode(text, add_special_tokens=False).ids


def _is_tiktoken(file: Path) -> bool:
    with file.open("rb") as stream:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\s*", stream.readline(200)) is not None
