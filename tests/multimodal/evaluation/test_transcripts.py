import pytest

from multimodal.evaluation.transcripts import by_group, length_group, score_transcripts


def values(said: list[str], true: list[str], **more) -> dict[str, float]:
    return {name: round(measure.value, 4) for name, measure in score_transcripts(said, true, **more).items()}


# Counted by hand.
PAIRS = [
    ("the cat sat", "the cat sat", 0.0, (0, 0, 0)),
    ("the cat", "the cat sat on", 0.5, (0, 2, 0)),
    ("the cat sat on top", "the cat sat on", 0.25, (1, 0, 0)),
    ("a dog sat on", "the cat sat on", 0.5, (0, 0, 2)),
    ("", "four words are missing", 1.0, (0, 4, 0)),
    ("red green blue white", "red", 3.0, (3, 0, 0)),
    # Whisper's normalizer: case, signs, spelling and contractions are no errors.
    ("I'm, Sorry! The COLOUR.", "I am sorry the color", 0.0, (0, 0, 0)),
]


@pytest.mark.parametrize(("said", "true", "wer", "kinds"), PAIRS)
def test_errors_are_counted_as_by_hand(said: str, true: str, wer: float, kinds: tuple[int, int, int]) -> None:
    found = values([said], [true])
    assert found["wer"] == wer
    words = len(true.split())
    assert [round(found[name] * words) for name in ("insertions", "deletions", "substitutions")] == list(kinds)


def test_a_set_is_scored_by_its_words_not_by_its_recordings() -> None:
    assert values(["x", "red green blue"], ["y", "red green blue"])["wer"] == 0.25


def test_one_frequent_line_for_everything_scores_badly() -> None:
    true = ["hello there", "what is it", "hello there", "come with me now", "who are you"]
    assert values(["hello there"] * 5, true)["wer"] > 0.6


def test_languages_without_spaces_are_scored_by_characters() -> None:
    found = values(["\u4f60\u597d"], ["\u4f60\u4e0d\u597d"], language="Chinese")
    assert found.keys() == {"cer"}
    assert 0 < found["cer"] < 0.5
    assert values(["Dob\u0159e!"], ["dob\u0159e"], language="Czech")["wer"] == 0.0


def test_groups_are_scored_apart_and_small_ones_left_out() -> None:
    measure = score_transcripts(["a", "x", "b", "c"], ["a", "b", "b", "c"])["wer"]
    assert by_group(measure, ["joe", "joe", "ann", "joe"], least=2) == {"joe": {"score": 0.3333, "n": 3}}
    assert [length_group(one) for one in (0.5, 1.0, 3.9, 8.0)] == ["0 to 1 s", "1 to 2 s", "2 to 4 s", "8 s and more"]


def test_what_cannot_be_scored_says_why() -> None:
    with pytest.raises(ValueError, match="1 transcripts for 2 references"):
        score_transcripts(["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"reference 1, '\[noise\]', has no word once normalized"):
        score_transcripts(["a", "b"], ["a", "[noise]"])
