"""multimodal/data/sentences.py: slots to a sentence and back, and what counts as right."""

from __future__ import annotations

import itertools

import pytest

from multimodal.data.sentences import (
    COUNTS,
    NOUNS,
    RELATIONS,
    SIZES,
    Slots,
    read_slots,
    score_slots,
    sentence,
    singular,
)


def test_every_sentence_reads_back_as_its_slots():
    for noun, count, size in itertools.product(NOUNS, COUNTS, SIZES):
        slots = Slots(nouns=(noun,), count=count, size=size, background="light blue")
        assert read_slots(sentence(slots)) == slots
    for (first, second), relation in itertools.product(zip(NOUNS, reversed(list(NOUNS)), strict=True), RELATIONS):
        slots = Slots(nouns=(first, second), relation=relation, background="striped red")
        assert read_slots(sentence(slots)) == slots


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        (
            Slots(nouns=("banana",), count=2, size="small", background="dark gray"),
            "Two small bananas on a dark gray background.",
        ),
        (
            Slots(nouns=("fox",), count=3, size="large", background="light red"),
            "Three large foxes on a light red background.",
        ),
        (
            Slots(nouns=("sheep",), count=1, size="small", background="light red"),
            "A small sheep on a light red background.",
        ),
        (
            Slots(nouns=("otter", "cow"), relation="to the left of", background="striped blue"),
            "An otter to the left of a cow on a striped blue background.",
        ),
    ],
)
def test_sentences_are_english(slots, text):
    assert sentence(slots) == text


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("A yellow lemon.", "lemon"),
        ("An otter.", "otter"),
        ("A ripe, red tomato!", "tomato"),
        ("A hippopotamus", "hippopotamus"),
        ("A happy snail!", None),
    ],
)
def test_captions_of_cut_outs_name_nouns(caption, noun):
    assert singular(caption) == noun


def test_slots_go_through_json():
    slots = Slots(nouns=("cow", "teapot"), relation="above", background="dark blue")
    assert Slots.from_json(slots.as_json()) == slots


def test_free_text_fills_what_it_says_and_no_more():
    assert read_slots("two cows") == Slots(nouns=("cow",), count=2)
    assert read_slots("A spaceship on a dark blue background") == Slots(
        nouns=("spaceship",), count=1, background="dark blue"
    )
    assert read_slots("") == Slots(nouns=())
    assert read_slots("above") == Slots(nouns=("above",))
    assert read_slots("A cow above a cow above a cow").nouns[0] == "cow"


def test_the_other_way_round_is_the_same_statement():
    true = read_slots("A cow to the left of a teapot on a dark blue background.")
    same = read_slots("A teapot to the right of a cow on a dark blue background.")
    wrong = read_slots("A teapot to the left of a cow on a dark blue background.")
    assert score_slots(same, true) == {"noun": 1.0, "relation": 1.0, "background": 1.0}
    assert score_slots(wrong, true)["relation"] == 0.0
    # One noun wrong: the right one tells which way round it was meant.
    assert score_slots(read_slots("A kettle to the right of a cow"), true) == {
        "noun": 0.5,
        "relation": 1.0,
        "background": 0.0,
    }


def test_copies_and_pairs_are_not_taken_for_each_other():
    true = read_slots("Two small bananas on a light blue background.")
    said = read_slots("A banana above a banana on a light blue background.")
    assert score_slots(said, true) == {"noun": 1.0, "count": 0.0, "size": 0.0, "background": 1.0}
    assert score_slots(true, said)["relation"] == 0.0
    assert score_slots(Slots(nouns=()), true) == {"noun": 0.0, "count": 0.0, "size": 0.0, "background": 0.0}
