import pytest

from multimodal.modality import Image, as_part
from multimodal.prompt import PromptReader, visible
from tests.multimodal.tiny import Letters

READER = PromptReader(tokenizer=Letters(), vocabulary=128)
CAT, DOG = Image("cat.png"), Image("dog.png")


def test_a_picture_is_seen_from_its_place_to_the_next_picture_and_the_last_one_to_the_end() -> None:
    assert visible([1, 4], 7) == [(1, 4), (4, 7)]


def test_pictures_side_by_side_share_the_end_of_their_run() -> None:
    assert visible([1, 2, 5], 8) == [(1, 5), (2, 5), (5, 8)]
    assert visible([0, 3, 4], 6) == [(0, 3), (3, 6), (4, 6)]
    assert visible([5], 6) == [(5, 6)]
    assert visible([], 6) == []


def test_a_raw_row_is_begin_of_text_and_the_prompt_as_it_stands() -> None:
    row = READER.raw([CAT, "ab"])
    assert row.tokens == (0, 128, *Letters().encode("ab"))
    assert row.images == (CAT,)
    assert row.slots == (1,)
    assert row.learned == ()


def test_an_answer_is_learned_with_the_end_of_text_behind_it() -> None:
    row = READER.raw([CAT, "ab"], answer="xy")
    start, stop = row.learned[0]
    assert row.tokens[start:stop] == (*Letters().encode("xy"), 1)
    assert stop == len(row.tokens)


def test_only_the_assistant_is_learned_and_nothing_follows_its_last_answer() -> None:
    messages = [
        {"role": "user", "content": [CAT, "q"]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [DOG, "r"]},
        {"role": "assistant", "content": "two"},
    ]
    row = READER.dialog(messages, learn=True)
    assert [Letters().decode(row.tokens[start:stop]) for start, stop in row.learned] == ["one", "two"]
    assert all(row.tokens[stop - 1] == 1 for _, stop in row.learned)
    assert row.learned[-1][1] == len(row.tokens)
    assert row.images == (CAT, DOG)
    assert [row.tokens[slot] for slot in row.slots] == [128, 128]


def test_a_conversation_to_be_answered_ends_with_the_opened_turn_of_the_assistant() -> None:
    assert READER.dialog([{"role": "user", "content": "hi"}]).tokens[-1] == 3


def test_a_conversation_without_an_assistant_cannot_be_learned_from() -> None:
    with pytest.raises(ValueError, match="no assistant message"):
        READER.dialog([{"role": "user", "content": "hi"}], learn=True)


def test_what_is_no_prompt_is_an_error_that_says_what_to_write() -> None:
    with pytest.raises(ValueError, match="empty"):
        READER.raw([])
    with pytest.raises(ValueError, match=r"write Image\(\.\.\.\)"):
        as_part(3)
