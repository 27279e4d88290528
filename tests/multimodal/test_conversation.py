from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from multimodal import conversation
from multimodal.assistant import Chat
from multimodal.conversation import converse
from multimodal.modality import Image
from tests.multimodal.tiny import photo

Typed = Callable[..., None]


class Listener(Chat):
    """A chat that remembers what it was asked, and refuses to hear "bad"."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def stream(self, prompt, **settings) -> Iterator[str]:
        self.asked.append([str(part.source) if isinstance(part, Image) else part for part in prompt])
        if "bad" in prompt:
            raise ValueError("the prompt is too long; shorten it")
        yield from ("I ", "see")


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Listener:
    listener = Listener()
    monkeypatch.setattr(conversation, "load", lambda source: SimpleNamespace(chat=lambda: listener))
    return listener


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Lines that a person types."""

    def put(*lines: str) -> None:
        waiting = list(lines)

        def read(prompt: str) -> str:
            if not waiting:
                raise EOFError
            return waiting.pop(0)

        monkeypatch.setattr("builtins.input", read)

    return put


@pytest.fixture
def cat(tmp_path: Path) -> str:
    photo(1).save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


def test_pictures_that_are_shown_belong_to_the_next_question_alone(chat: Listener, typed: Typed, cat: str, capsys):
    typed(f"/image {cat}", "", f"/image {cat}", "what", "and")
    assert converse("a run", [cat]) == 0
    assert chat.asked == [[cat, cat, cat, "what"], ["and"]]
    assert capsys.readouterr().out.splitlines()[1:] == ["I see", "I see", ""]


def test_a_picture_that_cannot_be_read_is_told_and_the_conversation_goes_on(chat: Listener, typed: Typed, capsys):
    typed("/image nowhere.png", "what")
    assert converse("a run", ["neither.png"]) == 0
    told = capsys.readouterr().err
    assert "neither.png cannot be read" in told
    assert "nowhere.png cannot be read" in told
    assert chat.asked == [["what"]]


def test_a_question_that_cannot_be_answered_is_told_and_the_conversation_goes_on(chat: Listener, typed: Typed, capsys):
    typed("bad", "good")
    assert converse("a run", []) == 0
    said = capsys.readouterr()
    assert "shorten it" in said.err
    assert "I see" in said.out
    assert chat.asked == [["bad"], ["good"]]


def test_what_cannot_be_loaded_ends_the_conversation_with_the_reason(tmp_path: Path, capsys):
    assert converse(str(tmp_path), []) == 1
    assert str(tmp_path) in capsys.readouterr().err
