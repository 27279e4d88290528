"""Scores, intervals, controls, baselines and reports of what a model said; knows answers, no encoder and no adapter."""

from multimodal.evaluation.bootstrap import Difference, difference, interval
from multimodal.evaluation.captioning import score_captions
from multimodal.evaluation.controls import wrong_medium
from multimodal.evaluation.guarantee import text_unchanged
from multimodal.evaluation.measure import Measure, mean_of, share_of
from multimodal.evaluation.nearest_neighbour import NearestNeighbour, pool
from multimodal.evaluation.report import (
    Example,
    Exchange,
    costs,
    examples,
    exchanges,
    guarantees,
    header,
    loss_curve,
    pick_random,
    pick_worst,
    scores,
    write_report,
)
from multimodal.evaluation.result import Result, evaluate, measured, read_result
from multimodal.evaluation.slots import score_scenes

__all__ = [
    "Difference",
    "Example",
    "Exchange",
    "Measure",
    "NearestNeighbour",
    "Result",
    "costs",
    "difference",
    "evaluate",
    "examples",
    "exchanges",
    "guarantees",
    "header",
    "interval",
    "loss_curve",
    "mean_of",
    "measured",
    "pick_random",
    "pick_worst",
    "pool",
    "read_result",
    "score_captions",
    "score_scenes",
    "scores",
    "share_of",
    "text_unchanged",
    "write_report",
    "wrong_medium",
]
