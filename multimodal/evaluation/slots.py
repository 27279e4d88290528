"""How much of a composed scene a sentence gets right, slot by slot: noun, count, relation, size, background."""

from __future__ import annotations

from collections.abc import Sequence

from multimodal.data.sentences import SLOT_NAMES, Slots, read_slots, score_slots
from multimodal.evaluation.measure import Measure, share_of


def score_scenes(predictions: Sequence[str], true: Sequence[Slots]) -> dict[str, Measure]:
    """`slot_noun`, `slot_count`, ... and `slots` (all of them together), each the share right of those asked for.

    A slot that no true sentence has is left out. Chance is no fixed number: it is what the wrong picture's answers get.
    """
    if not predictions or len(predictions) != len(true):
        raise ValueError(f"{len(predictions)} predictions for {len(true)} scenes; every scene needs one")
    scores = [score_slots(read_slots(said), slots) for said, slots in zip(predictions, true, strict=True)]
    measures = {"slots": share_of([sum(one.values()) for one in scores], [len(one) for one in scores])}
    for name in SLOT_NAMES:
        asked = [float(name in one) for one in scores]
        if any(asked):
            measures[f"slot_{name}"] = share_of([one.get(name, 0.0) for one in scores], asked)
    return measures
