"""Simplicial layers in the model: cached is uncached, a graft changes nothing until it learns, the fast path runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.simplicial_attention import cpu, reference
from text_backbone import (
    PRESETS,
    KeyValueCache,
    LlamaConfig,
    Simplicial,
    TextBackbone,
    complete,
    graft,
    load_backbone,
    save_backbone,
)
from text_backbone.attention import Attention
from text_backbone.simplicial import GraftedSimplicialAttention, SimplicialAttention

PAIRS = Simplicial(heads=16, kv_heads=1, head_width=12, window1=3, window2=7)
TOY = dataclasses.replace(PRESETS["toy"], simplicial_every=2, simplicial=PAIRS)


def toy(**changes: Any) -> TextBackbone:
    return TextBackbone(dataclasses.replace(TOY, **changes)).eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, TOY.vocabulary, shape)


SHAPES = [
    PAIRS,
    dataclasses.replace(PAIRS, window1=9, window2=2),
    dataclasses.replace(PAIRS, heads=32, kv_heads=2, form="determinant"),
    dataclasses.replace(PAIRS, window1=1, window2=1),
    dataclasses.replace(PAIRS, window1=50, window2=60),
    Simplicial(heads=4, kv_heads=2, head_width=8, window1=3, window2=6, grafted=True),
]


def test_every_nth_block_is_simplicial_with_its_own_heads() -> None:
    model = toy()
    kinds = [type(block.self_attn) for block in model.model.layers]
    assert kinds == [Attention, SimplicialAttention] * 2
    assert model.model.layers[1].self_attn.q_proj.weight.shape == (16 * 12, TOY.width)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cuts", [(1,) * 15, (5, 1, 1, 8), (15,), (2, 12, 1)])
@torch.no_grad()
def test_cached_logits_are_uncached_logits(cuts: tuple[int, ...], shape: Simplicial) -> None:
    model = toy(simplicial=shape)
    grow(model)
    prompt = tokens(2, 15)
    cache = KeyValueCache(model.config, 2, 15)
    pieces = [model(piece, cache=cache) for piece in prompt.split(list(cuts), dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(prompt), atol=1e-5, rtol=1e-5)


def grow(model: TextBackbone) -> None:
    """Give a graft's new weights something to do."""
    for name, weight in model.named_parameters():
        if "1_proj" in name:
            torch.nn.init.normal_(weight, std=0.1)


@torch.no_grad()
def test_the_ring_does_not_grow_with_the_text() -> None:
    cache = KeyValueCache(TOY, 2, 1000)
    assert sorted(cache.rings) == [1, 3]
    assert [cache.keys[layer].shape[2] for layer in range(4)] == [1000, 0, 1000, 0]
    assert [ring.keys.shape for ring in cache.rings[1]] == [(2, 1, 3, 12), (2, 1, 7, 12)]


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[5]], ids=str)
@torch.no_grad()
def test_rows_of_different_lengths_go_on_from_their_own_ends(shape: Simplicial) -> None:
    model = toy(simplicial=shape)
    grow(model)
    rows = [tokens(22), tokens(22), tokens(22)]
    first, second = (12, 2, 9), (3, 6, 1)
    cache = KeyValueCache(model.config, 3, 30)

    def padded(pieces: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=7)

    model(padded([row[:n] for row, n in zip(rows, first, strict=True)]), cache=cache, lengths=torch.tensor(first))
    ends = [a + b for a, b in zip(first, second, strict=True)]
    pieces = [row[a:b] for row, a, b in zip(rows, first, ends, strict=True)]
    more = model(padded(pieces), cache=cache, lengths=torch.tensor(second))
    for step in range(2):
        now = torch.stack([row[n + step : n + step + 1] for row, n in zip(rows, ends, strict=True)])
        last = model(now, cache=cache)
        for i, row in enumerate(rows):
            alone = model(row[None])[0]
            if step == 0:
                torch.testing.assert_close(more[i, : second[i]], alone[first[i] : ends[i]], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(last[i, 0], alone[ends[i] + step], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_reordered_rows_go_on_as_the_rows_they_copy() -> None:
    model = toy()
    prompt, after = tokens(2, 9), tokens(3, 1)
    cache = KeyValueCache(model.config, 2, 12)
    model(prompt, cache=cache)
    cache.reorder(torch.tensor([1, 0, 1]))
    whole = torch.cat((prompt[[1, 0, 1]], after), dim=1)
    torch.testing.assert_close(model(after, cache=cache)[:, 0], model(whole)[:, -1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_greedy_generation_is_the_argmax_of_the_whole_text() -> None:
    model = toy()
    prompt = tokens(2, 6)
    said = complete(model, prompt, torch.tensor([6, 4]), max_new=10, stops=[])
    for row, length, new in zip(prompt, (6, 4), said, strict=True):
        text = row[:length]
        for token in new:
            assert int(model(text[None])[0, -1].argmax()) == token
            text = torch.cat((text, torch.tensor([token])))


@torch.no_grad()
def test_documents_of_a_packed_row_do_not_meet() -> None:
    model = toy()
    one, two = tokens(1, 5), tokens(1, 8)
    packed = torch.cat((one, two), dim=1)
    documents = torch.tensor([[0] * 5 + [1] * 8])
    logits = model(packed, documents=documents)
    torch.testing.assert_close(logits[:, :5], model(one), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[:, 5:], model(two), atol=1e-5, rtol=1e-5)


def test_what_lies_beyond_both_windows_changes_nothing() -> None:
    layer = SimplicialAttention(TOY, 1)
    model = toy()
    x = torch.randn(1, 20, TOY.width)
    seen = view_of(model, x)
    near = x.clone()
    near[:, : 20 - 7] = 0
    torch.testing.assert_close(layer(near, seen, None)[:, -1], layer(x, seen, None)[:, -1], atol=1e-6, rtol=1e-6)
    near[:, 20 - 7] = 0
    assert not torch.allclose(layer(near, seen, None)[:, -1], layer(x, seen, None)[:, -1], atol=1e-4)


def view_of(model: TextBackbone, x: Tensor) -> Any:
    from text_backbone.attention import view

    return view(model.config, x)


@torch.no_grad()
def test_a_graft_wider_than_the_text_changes_no_logit() -> None:
    plain = TextBackbone(PRESETS["toy"]).eval()
    prompt = tokens(2, 20)
    grown = graft(plain, every=2, window1=4, window2=20)
    before, after = plain(prompt), grown(prompt)
    assert float((after - before).norm() / before.norm()) <= 1e-6
    assert isinstance(grown.model.layers[1].self_attn, GraftedSimplicialAttention)
    assert grown.model.layers[0].mlp.up_proj.weight is plain.model.layers[0].mlp.up_proj.weight


@torch.no_grad()
def test_a_graft_begins_as_sliding_window_attention() -> None:
    plain = TextBackbone(PRESETS["toy"]).eval()
    x = torch.randn(2, 30, TOY.width)
    old = plain.model.layers[1].self_attn
    new = graft(plain, every=2, window1=4, window2=9).model.layers[1].self_attn
    seen = view_of(plain, x)
    at = torch.arange(30)
    mask = ((at <= at[:, None]) & (at > at[:, None] - 9))[None, None]
    sliding = old(x, dataclasses.replace(seen, mask=mask), None)
    assert float((new(x, seen, None) - sliding).norm() / sliding.norm()) <= 1e-6


@torch.no_grad()
def test_a_grown_graft_still_depends_on_distances_alone() -> None:
    """Text after a shift of all positions gives the same logits: k1 is tied over rotary pairs."""
    model = graft(TextBackbone(PRESETS["toy"]).eval(), every=2, window1=4, window2=9)
    grow(model)
    prompt, at = tokens(1, 20), torch.arange(20)[None]
    moved = model(prompt, positions=at + 50)
    torch.testing.assert_close(model(prompt, positions=at), moved, atol=2e-5, rtol=1e-4)
    attention = model.model.layers[1].self_attn
    with torch.random.fork_rng():
        free = torch.randn(1, 20, 2, 8)

    def untied(x: Tensor, view: Any) -> Any:
        return GraftedSimplicialAttention.streams(attention, x, view)._replace(k1=free)

    attention.streams = untied
    assert not torch.allclose(model(prompt, positions=at), model(prompt, positions=at + 50), atol=1e-3)


def test_a_graft_learns() -> None:
    """The sum of the last two tokens, modulo the vocabulary: the new weights take part and the loss falls."""
    torch.manual_seed(1)
    model = graft(
        TextBackbone(dataclasses.replace(PRESETS["toy"], layers=2, vocabulary=16)), every=2, window1=3, window2=12
    )
    new = [weight for name, weight in model.named_parameters() if "1_proj" in name]
    assert len(new) == 2
    assert not any(weight.any() for weight in new)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    text = torch.randint(0, 16, (8, 16))
    for place in range(2, 16):
        text[:, place] = (text[:, place - 1] + text[:, place - 2]) % 16
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(text[:, :-1])[:, 1:].flatten(0, 1), text[:, 2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert all(weight.any() for weight in new)


def test_training_and_inference_really_run_the_cpu_path(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            ran.append(name)
            return call(*args, **kwargs)

        return counted

    for module in (cpu, reference):
        for name in ("forward", "backward"):
            monkeypatch.setattr(module, name, counting(f"{module.__name__}.{name}", getattr(module, name)))
    model = toy()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(tokens(2, 10)).square().mean().backward()
    calls = {event.key: event.count for event in profile.key_averages() if event.key.startswith("scion::")}
    assert calls == {"scion::simplicial_attention": 2, "scion::simplicial_attention_backward": 2}
    assert ran == [f"{cpu.__name__}.forward"] * 2 + [f"{cpu.__name__}.backward"] * 2


@torch.no_grad()
def test_a_saved_model_comes_back_and_is_no_plain_llama(tmp_path: Path) -> None:
    model = toy()
    save_backbone(model, tmp_path)
    again = load_backbone(tmp_path)
    assert again.config == dataclasses.replace(model.config, norm_eps=again.config.norm_eps)
    prompt = tokens(1, 9)
    assert torch.equal(again(prompt), model(prompt))
    assert '"model_type": "llama"' not in (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="Meta's layout knows no simplicial layers"):
        save_backbone(model, tmp_path / "meta", layout="meta")


def test_shapes_that_make_no_sense_are_refused_in_words() -> None:
    with pytest.raises(
        ValueError, match="8 simplicial heads on 1 key heads are fewer than 16 a key head; give them 16"
    ):
        Simplicial(heads=8, kv_heads=1, head_width=8)
    with pytest.raises(ValueError, match="belong together"):
        dataclasses.replace(PRESETS["toy"], simplicial_every=2)
    with pytest.raises(ValueError, match="only the trilinear form"):
        Simplicial(heads=4, kv_heads=4, head_width=6, grafted=True, form="determinant")
    with pytest.raises(ValueError, match="has simplicial layers already"):
        graft(toy(), every=2, window1=2, window2=3)
    assert isinstance(TOY, LlamaConfig)
