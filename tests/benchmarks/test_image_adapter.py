"""The benchmark compares what it says it compares."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from benchmarks.image_adapter import BARS, QUICK, measure, table
from benchmarks.mllama import TINY, Ours, Peer, difference, share_weights


@cache
def both() -> tuple[Ours, Peer]:
    ours, peer = Ours(TINY), Peer(TINY)
    share_weights(ours, peer)
    return ours, peer


def test_both_sides_give_the_same_logits_for_the_same_features() -> None:
    assert difference(*both()) < 1e-5


def test_a_changed_weight_is_seen_as_a_difference() -> None:
    ours, peer = Ours(TINY), Peer(TINY)
    share_weights(ours, peer)
    with torch.no_grad():
        ours.model.adapters["image"].get_parameter("blocks.1.attention.q_norm.weight").mul_(2)
    assert difference(ours, peer) > 1e-5


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
def test_the_peer_writes_as_many_tokens_with_every_cache(cache: str) -> None:
    ours, peer = both()
    assert len(ours.tokens(5)) == len(peer.tokens(5, cache=cache)) == 5
    assert peer.tokens(1, cache=cache) == [peer.read()]


def test_only_projector_and_cross_attention_learn_on_both_sides() -> None:
    ours, peer = Ours(TINY), Peer(TINY)
    frozen = {name: weight.clone() for name, weight in ours.model.named_parameters()}
    for caches in ("none", "features", "stream"):
        ours.step(caches)
    changed = {name for name, weight in ours.model.named_parameters() if not torch.equal(weight, frozen[name])}
    learning = {name for name, weight in ours.model.named_parameters() if weight.requires_grad}
    assert changed == learning
    assert sum(ours.model.get_parameter(name).numel() for name in learning) == sum(w.numel() for w in peer.learns)


def test_caches_do_not_change_what_is_learned() -> None:
    losses = [Ours(TINY).step(cache).loss for cache in ("none", "features", "stream")]
    # Cached features are bfloat16.
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)


def test_the_record_has_the_house_shape_and_a_verdict_for_every_bar() -> None:
    record = measure(QUICK, memory={"peer": 3.0, "ours": 2.0, "ours_stream": 1.0}.__getitem__)
    assert {"what", "command", "machine", "ours", "peers", "ratio", "runs"} <= record.keys()
    assert len(record["runs"]) == QUICK.rounds
    assert record["ratio"]["transformers_memory"] == 1.5
    assert record["bars"].keys() <= record["ratio"].keys()
    assert table(record).count("bar ") == len(BARS)
