import pytest

from multimodal.data.spoken import spoken
from multimodal.pieces import choose_pieces
from tests.multimodal.tiny import Letters


class Words(Letters):
    """Whole words where it knows them, else letters: as tokenizers do."""

    known = (" the", " cat", " sat", " zebra", "s")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            match = max((word for word in self.known if text.startswith(word)), key=len, default="")
            ids.append(1000 + self.known.index(match) if len(match) > 1 else super().encode(text[0])[0])
            text = text[max(1, len(match)) :]
        return ids

    def decode(self, ids) -> str:
        return "".join(self.known[i - 1000] if i >= 1000 else super(Words, self).decode([i]) for i in ids)


TEXTS = ["The cat sat.", "the CAT!", "the cats sat", "a zebra"]


def test_spoken_text_is_words_without_case_and_signs() -> None:
    assert spoken("You WANTED it -- don\u2019t you?!  (2)") == "you wanted it don't you 2"
    assert spoken("Dob\u0159e, \u010dl\u016fn.") == "dob\u0159e \u010dl\u016fn"
    assert spoken("...") == ""


def test_common_words_are_pieces_and_rare_ones_fall_into_letters() -> None:
    pieces = choose_pieces(Words(), TEXTS, least=2)
    texts = [text for text, _ in pieces.texts]
    assert {" the", " cat", " sat"} <= set(texts)
    assert " zebra" not in texts
    assert [texts[i] for i in pieces.of("the cats")] == [" the", " cat", "s"]
    assert [texts[i] for i in pieces.of("zebra")] == [" ", "z", "e", "b", "r", "a"]


def test_pieces_put_together_are_the_text() -> None:
    pieces = choose_pieces(Words(), TEXTS, least=2)
    for text in [*TEXTS, "zebras at the brass bar"]:
        assert pieces.text(pieces.of(text)) == spoken(text)


def test_pieces_are_the_text_models_own_tokens() -> None:
    pieces = choose_pieces(Words(), TEXTS, least=1)
    assert all(Words().decode([token]) == text for text, token in pieces.texts)
    assert list(pieces.tokens) == sorted(set(pieces.tokens))


def test_a_character_that_no_piece_has_is_left_out() -> None:
    pieces = choose_pieces(Words(), TEXTS, least=2)
    assert pieces.text(pieces.of("the qat")) == "the at"


def test_no_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="pieces are chosen from text, and there is none"):
        choose_pieces(Words(), ["...", ""])
