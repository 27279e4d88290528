import pytest

from multimodal.data.sentences import Slots, sentence
from multimodal.evaluation.slots import score_scenes

SCENES = [
    Slots(nouns=("banana",), count=2, size="small", background="dark green"),
    Slots(nouns=("cow", "teapot"), relation="above", background="light blue"),
]


def test_true_sentences_have_every_slot_right():
    measures = score_scenes([sentence(slots) for slots in SCENES], SCENES)
    assert {name: measure.value for name, measure in measures.items()} == dict.fromkeys(
        ("slots", "slot_noun", "slot_count", "slot_relation", "slot_size", "slot_background"), 1.0
    )


def test_a_slot_is_scored_only_where_it_is_asked_for():
    measures = score_scenes(["Three small bananas on a dark green background.", "I do not know."], SCENES)
    assert measures["slot_count"].value == 0
    assert measures["slot_size"].value == 1
    assert measures["slot_noun"].value == measures["slot_background"].value == 0.5
    # Right: size, noun, background of the first scene; asked: four of the first, three of the second.
    assert measures["slots"].value == pytest.approx(3 / 7)


def test_scenes_without_relations_have_no_relation_score():
    assert "slot_relation" not in score_scenes(["A cow."], SCENES[:1])


def test_a_scene_without_an_answer_is_an_error():
    with pytest.raises(ValueError, match="1 predictions for 2 scenes"):
        score_scenes(["A cow."], SCENES)
