import math
import sys

import pytest

from multimodal.evaluation.captioning import is_exact, names, score_captions, word_f1, words


def test_the_plain_tokenizer_keeps_words_and_drops_the_stops_around_them():
    assert words("A hot-air balloon, at 3.5 km; isn't it?") == [
        "a",
        "hot-air",
        "balloon",
        "at",
        "3.5",
        "km",
        "isn't",
        "it",
    ]


def test_exact_ignores_case_articles_and_the_final_stop_and_nothing_else():
    assert is_exact("the Lemon.", "A lemon")
    assert not is_exact("A yellow lemon.", "A lemon.")
    assert not is_exact("", "A lemon.")


def test_a_noun_is_named_only_as_the_end_of_the_subject():
    assert names("A small red apple on a table.", "apple")
    assert names("man in manual wheelchair", "man in manual wheelchair")
    assert not names("An apple tree.", "apple")
    assert not names("A table with an apple.", "apple")
    assert not names("", "apple")


def test_word_f1_by_hand():
    # Three of four words said are among the five true ones: 2 * 3 / (4 + 5).
    assert word_f1("small red cat sleeping", "A small red cat on a mat") == pytest.approx(2 * 3 / (4 + 5))
    assert word_f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert word_f1("", "cat") == 0


def test_cider_and_bleu_are_those_of_pycocoevalcap():
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    said = ["a small cat on a red mat", "two dogs", "a tall green tree stands there", ""]
    true = [["a small cat on a mat", "a cat on a red mat"], ["two dogs run"], ["a tall green tree"], ["a blue house"]]
    asked, answered = dict(enumerate(true)), {i: [text] for i, text in enumerate(said)}
    ours = score_captions(said, true)
    cider, each = Cider().compute_score(asked, answered)
    assert ours["cider"].value == pytest.approx(cider, abs=1e-12)
    assert ours["cider"].samples[:, 0] == pytest.approx(each, abs=1e-12)
    assert ours["bleu"].value == pytest.approx(Bleu(4).compute_score(asked, answered, verbose=0)[0][3], rel=1e-9)


def test_cider_of_the_references_themselves_is_ten():
    true = ["a red cat sits here", "two green dogs run away", "the old blue house burns"]
    assert score_captions(true, true)["cider"].value == pytest.approx(10)


def test_bleu_by_hand():
    # Five words said, six true; 4, 2, 1, 0 n-grams shared would be 0, so: all but the last word, brevity e^(1 - 6/5).
    said, true = ["a b c d e"], ["a b c d e f"]
    assert score_captions(said, true)["bleu"].value == pytest.approx(math.exp(1 - 6 / 5), rel=1e-6)


def test_the_best_of_several_references_counts():
    measures = score_captions(["a cat", "a dog"], [["a kitten", "a cat"], ["a puppy", "a hound"]])
    assert measures["exact"].value == 0.5


def test_lists_of_different_length_and_references_without_words_are_errors():
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        score_captions(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="sample 1 has no word"):
        score_captions(["a", "b"], ["a", "..."])


def test_a_missing_pycocoevalcap_is_said_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider_scorer", None)
    with pytest.raises(ModuleNotFoundError, match=r"scion-multimodal\[demo\]"):
        score_captions(["a"], ["a"])
