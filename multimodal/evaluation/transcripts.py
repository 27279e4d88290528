"""Scores of transcripts: word and character errors after Whisper's normalizer, and of which kind they are.

Counted by jiwer, normalized by whisper-normalizer (OpenAI's, with its spelling map). Both are libraries on purpose:
figures that are to be set beside others must be counted as others count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from multimodal.evaluation.measure import Measure, share_of

WITHOUT_SPACES = frozenset({"Chinese", "Japanese", "Korean", "Thai"})
"""Languages that are scored by characters, as the paper does."""
METADATA: dict[str, dict[str, Any]] = {
    "wer": {"by": "jiwer 4", "normalizer": "whisper-normalizer", "means": "errors over words of the references"},
    "cer": {"by": "jiwer 4", "normalizer": "whisper-normalizer", "means": "errors over characters of the references"},
    "insertions": {"means": "words said that are not there, over words of the references"},
    "deletions": {"means": "words there that are not said, over words of the references"},
    "substitutions": {"means": "words said in place of others, over words of the references"},
}
_EDGES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the groups by length."""


def score_transcripts(
    predictions: Sequence[str], references: Sequence[str], *, language: str = "English"
) -> dict[str, Measure]:
    """Measures `wer`, `cer`, and of the words `insertions`, `deletions`, `substitutions`: errors over what is there.

    A language without spaces has `cer` alone. What is empty once normalized (a reference of noises) is no reference: a
    ValueError. ModuleNotFoundError without jiwer.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} transcripts for {len(references)} references; every one needs its other")
    plain = normalizer(language)
    said, true = [plain(text) for text in predictions], [plain(text) for text in references]
    if empty := [i for i, text in enumerate(true) if not text]:
        raise ValueError(f"reference {empty[0]}, {references[empty[0]]!r}, has no word once normalized")
    jiwer = _jiwer()
    letters = np.array([_counts(jiwer.process_characters(t, s)) for s, t in zip(said, true, strict=True)])
    measures = {"cer": share_of(letters[:, :3].sum(1).tolist(), letters[:, 3].tolist())}
    if language in WITHOUT_SPACES:
        return measures
    words = np.array([_counts(jiwer.process_words(t, s)) for s, t in zip(said, true, strict=True)])
    there = words[:, 3].tolist()
    kinds = {name: share_of(words[:, i].tolist(), there) for i, name in enumerate(_KINDS)}
    return {"wer": share_of(words[:, :3].sum(1).tolist(), there), **measures, **kinds}


_KINDS = ("insertions", "deletions", "substitutions")


def by_group(measure: Measure, groups: Sequence[str], *, least: int = 5) -> dict[str, dict[str, float]]:
    """The score of each group that has `least` samples at least: {"score", "n"}, the largest group first."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        members[group].append(number)
    found = {name: numbers for name, numbers in members.items() if len(numbers) >= least}
    return {
        name: {
            "score": round(Measure(samples=measure.samples[numbers], of_means=measure.of_means).value, 4),
            "n": len(numbers),
        }
        for name, numbers in sorted(found.items(), key=lambda one: -len(one[1]))
    }


def length_group(seconds: float) -> str:
    """Which group by length a recording is in: "1 to 2 s"."""
    low = max((edge for edge in _EDGES if edge <= seconds), default=0.0)
    high = min((edge for edge in _EDGES if edge > seconds), default=None)
    return f"{low:g} s and more" if high is None else f"{low:g} to {high:g} s"


@cache
def normalizer(language: str) -> Callable[[str], str]:
    """Whisper's normalizer for a language: English has one of its own, the others share one."""
    try:
        if language == "English":
            from whisper_normalizer.english import EnglishTextNormalizer

            return EnglishTextNormalizer()
        from whisper_normalizer.basic import BasicTextNormalizer
    except ModuleNotFoundError as missing:
        raise _without(missing) from missing
    plain = BasicTextNormalizer(split_letters=language in WITHOUT_SPACES)
    return lambda text: " ".join(plain(text).split())


def _counts(output: Any) -> tuple[int, int, int, int]:
    """Insertions, deletions, substitutions, and what there was."""
    there = output.hits + output.deletions + output.substitutions
    return output.insertions, output.deletions, output.substitutions, there


def _jiwer() -> Any:
    try:
        import jiwer
    except ModuleNotFoundError as missing:
        raise _without(missing) from missing
    return jiwer


def _without(missing: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"transcripts are scored with jiwer and whisper-normalizer, and {missing.name!r} is not installed; "
        "pip install 'scion-multimodal[demo]'",
        name=missing.name,
    )
