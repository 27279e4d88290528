import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal.evaluation.controls import wrong_medium


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40))
def test_everyone_gets_the_medium_of_another_reference_and_every_medium_is_used_once(references: list[str]):
    if 2 * max(references.count(one) for one in references) > len(references):
        with pytest.raises(ValueError, match="one and the same reference"):
            wrong_medium(references)
        return
    wrong = wrong_medium(references)
    assert sorted(wrong) == list(range(len(references)))
    assert all(references[i] != references[other] for i, other in enumerate(wrong))


def test_references_that_differ_only_in_articles_are_the_same():
    assert wrong_medium(["A cat.", "the cat", "a dog", "Dog"])[0] in (2, 3)


def test_it_is_fixed():
    references = [f"thing {i}" for i in range(20)]
    assert wrong_medium(references) == wrong_medium(references)
