"""Scores of captions against references: exact match, the noun, words in common, BLEU-4 and CIDEr.

CIDEr and BLEU are counted by pycocoevalcap. Its own Penn Treebank tokenizer is a Java program; captions are split by
`words` below instead, which is not the same thing: such figures carry `tokenizer: "plain"` and must not be set beside
figures of other papers.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from multimodal.evaluation.measure import Measure, mean_of

References = Sequence[str] | Sequence[Sequence[str]]
"""The true caption of each sample, or several true captions of each."""

_WORD = re.compile(r"[^\W_]+(?:['.-][^\W_]+)*")
_ARTICLES = frozenset(("a", "an", "the"))
_CLAUSE = re.compile(
    r"\b(?:on|in|at|of|to|with|without|from|for|by|under|over|above|below|behind|beside|near|next|and|that|which|is)\b"
    r"|[,;:.!?]\s"
)

METADATA: dict[str, dict[str, Any]] = {
    "cider": {"by": "pycocoevalcap 1.2", "tokenizer": "plain", "idf": "of the test references, held fixed"},
    "bleu": {"by": "pycocoevalcap 1.2", "tokenizer": "plain", "order": 4},
    "exact": {"ignores": "case, articles, punctuation at the ends"},
    "exact_noun": {"means": "the subject's last words are the true noun"},
    "log_likelihood": {
        "means": "mean log-probability of the true caption's tokens and its end",
        "unit": "nats a token",
    },
    "word_f1": {"means": "F1 of the words in common without articles, best reference"},
}
"""How each figure came to be; goes into the result beside it."""


def score_captions(
    predictions: Sequence[str], references: References, nouns: Sequence[str] | None = None
) -> dict[str, Measure]:
    """Measures `cider`, `bleu`, `exact`, `word_f1`, 0 to 1 (CIDEr: 0 to 10); `exact_noun` where nouns are given.

    ValueError where the lists differ in length or a sample has no reference; ModuleNotFoundError without pycocoevalcap.
    """
    true = as_lists(references)
    if not predictions or len(predictions) != len(true):
        raise ValueError(f"{len(predictions)} predictions for {len(true)} references; every sample needs one of each")
    if empty := [i for i, sample in enumerate(true) if not any(words(text) for text in sample)]:
        raise ValueError(f"sample {empty[0]} has no word in its references {true[empty[0]]!r}")
    pairs = list(zip(predictions, true, strict=True))
    measures = {
        "cider": mean_of(_cider(predictions, true).tolist()),
        "bleu": Measure(samples=_bleu_counts(predictions, true), of_means=partial(_bleu, n=len(true))),
        "exact": mean_of([max(is_exact(said, text) for text in sample) for said, sample in pairs]),
        "word_f1": mean_of([max(word_f1(said, text) for text in sample) for said, sample in pairs]),
    }
    if nouns is not None:
        if len(nouns) != len(predictions):
            raise ValueError(f"{len(nouns)} nouns for {len(predictions)} predictions")
        measures["exact_noun"] = mean_of([names(said, noun) for said, noun in zip(predictions, nouns, strict=True)])
    return measures


def as_lists(references: References) -> list[list[str]]:
    """Every sample's references as a list, also where there is one."""
    return [[sample] if isinstance(sample, str) else list(sample) for sample in references]


def words(text: str) -> list[str]:
    """The plain tokenizer: lower case, letters and digits; hyphens, stops and apostrophes only inside a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower())


def plain(text: str) -> list[str]:
    """The words without articles."""
    return [word for word in words(text) if word not in _ARTICLES]


def is_exact(said: str, true: str) -> bool:
    """Whether both say the same words in the same order; case, articles and the final stop do not count."""
    return plain(said) == plain(true)


def names(said: str, noun: str) -> bool:
    """Whether the caption's subject is the noun: "A red apple on a mat." names an apple, "An apple tree." does not."""
    target = plain(noun)
    if not target:
        raise ValueError(f"noun {noun!r} has no word")
    return plain(said) == target or plain(_CLAUSE.split(said.lower(), maxsplit=1)[0])[-len(target) :] == target


def word_f1(said: str, true: str) -> float:
    """Harmonic mean of precision and recall of the words (with their number, without articles), 0 to 1."""
    ours, theirs = Counter(plain(said)), Counter(plain(true))
    common = sum((ours & theirs).values())
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


def _cider(predictions: Sequence[str], references: list[list[str]]) -> Float[np.ndarray, "n"]:
    """Each sample's CIDEr, 0 to 10, with document frequencies of these references."""
    try:
        from pycocoevalcap.cider.cider_scorer import CiderScorer
    except ModuleNotFoundError as missing:
        raise _without(missing) from missing
    scorer = CiderScorer(n=4, sigma=6.0)
    for said, sample in zip(predictions, references, strict=True):
        scorer += (" ".join(words(said)), [" ".join(words(text)) for text in sample])
    return np.asarray(scorer.compute_score()[1], dtype=np.float64)


def _bleu_counts(predictions: Sequence[str], references: list[list[str]]) -> Float[np.ndarray, "n 10"]:
    """Each sample's counts: right n-grams of 1 to 4 words, said n-grams of 1 to 4, length said, length of reference."""
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    except ModuleNotFoundError as missing:
        raise _without(missing) from missing
    scorer = BleuScorer(n=4)
    for said, sample in zip(predictions, references, strict=True):
        scorer += (" ".join(words(said)), [" ".join(words(text)) for text in sample])
    rows = []
    for counts in scorer.ctest:
        closest = min((abs(length - counts["testlen"]), length) for length in counts["reflen"])[1]
        rows.append([*counts["correct"], *counts["guess"], counts["testlen"], closest])
    return np.asarray(rows, dtype=np.float64)


def _bleu(means: Float[np.ndarray, "*draws 10"], n: int) -> Float[np.ndarray, "*draws"]:
    """Corpus BLEU-4 of n samples from their mean counts, with pycocoevalcap's own guards against division by zero."""
    sums = means * n
    right, said, length, closest = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    precision = ((right + 1e-15) / (said + 1e-9)).prod(-1) ** 0.25
    brevity = (length + 1e-15) / (closest + 1e-9)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / brevity))


def _without(missing: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"CIDEr and BLEU are counted by pycocoevalcap, and {missing.name!r} is not installed; "
        "pip install 'scion-multimodal[demo]'",
        name=missing.name,
    )
