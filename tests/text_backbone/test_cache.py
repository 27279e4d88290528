"""Reading in pieces, through the cache, is reading at once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from text_backbone import PRESETS, KeyValueCache, TextBackbone

TOY = PRESETS["toy"]


def toy(**changes: object) -> TextBackbone:
    return TextBackbone(dataclasses.replace(TOY, **changes)).eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, TOY.vocabulary, shape)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("cuts", [(1,) * 12, (5, 1, 1, 5), (12,), (1, 11)])
@torch.no_grad()
def test_cached_logits_are_uncached_logits(cuts: tuple[int, ...], kv_heads: int) -> None:
    model = toy(kv_heads=kv_heads)
    prompt = tokens(2, 12)
    cache = KeyValueCache(model.config, 2, 12)
    pieces = [model(piece, cache=cache) for piece in prompt.split(list(cuts), dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(prompt), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_different_lengths_go_on_from_their_own_ends() -> None:
    model = toy()
    rows = [tokens(12), tokens(12), tokens(12)]
    first, second = (5, 2, 4), (3, 1, 2)
    cache = KeyValueCache(model.config, 3, 12)

    def padded(pieces: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=7)

    model(padded([row[:n] for row, n in zip(rows, first, strict=True)]), cache=cache, lengths=torch.tensor(first))
    ends = [a + b for a, b in zip(first, second, strict=True)]
    pieces = [row[a:b] for row, a, b in zip(rows, first, ends, strict=True)]
    more = model(padded(pieces), cache=cache, lengths=torch.tensor(second))
    assert cache.lengths.tolist() == ends
    last = model(torch.stack([row[n : n + 1] for row, n in zip(rows, ends, strict=True)]), cache=cache)
    for i, row in enumerate(rows):
        alone = model(row[None])[0]
        torch.testing.assert_close(more[i, : second[i]], alone[first[i] : ends[i]], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last[i, 0], alone[ends[i]], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_blocks_run_in_parts_count_their_tokens_once() -> None:
    model = toy()
    prompt = tokens(1, 6)
    cache = KeyValueCache(model.config, 1, 6)
    for piece in prompt.split(3, dim=1):
        x = model.run(model.embed(piece), last=2, cache=cache)
        out = model.head(model.run(x, first=2, cache=cache))
    assert cache.lengths.tolist() == [6]
    torch.testing.assert_close(out, model(prompt)[:, 3:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_reordered_and_repeated_rows_go_on_as_their_originals() -> None:
    model = toy()
    prompt, more = tokens(2, 5), tokens(1, 1)
    cache = KeyValueCache(model.config, 2, 8)
    model(prompt, cache=cache, lengths=torch.tensor([5, 3]))
    cache.repeat(2)
    cache.reorder(torch.tensor([3, 0]))
    assert cache.lengths.tolist() == [3, 5]
    out = model(more.expand(2, 1), cache=cache)
    for row, (source, length) in enumerate([(1, 3), (0, 5)]):
        alone = model(torch.cat([prompt[source : source + 1, :length], more], dim=1))
        torch.testing.assert_close(out[row, 0], alone[0, -1], atol=1e-5, rtol=1e-5)


def test_a_full_cache_says_so() -> None:
    model = toy()
    cache = KeyValueCache(model.config, 1, 4)
    with pytest.raises(ValueError, match="0 cached and 5 new tokens exceed the cache's capacity"):
        model(tokens(1, 5), cache=cache)


def test_a_cache_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="the cache holds 2 rows, the call has 1"):
        toy()(tokens(1, 3), cache=KeyValueCache(TOY, 2, 4))


def test_documents_and_a_cache_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="documents are for packed training rows"):
        toy()(tokens(1, 3), cache=KeyValueCache(TOY, 1, 4), documents=torch.zeros(1, 3, dtype=torch.long))
