from dataclasses import replace

import pytest
import torch

from adapters import SpeechAdapter, SpeechAdapterConfig
from adapters.feed_forward import sparsity

CONFIG = SpeechAdapterConfig(text=24, features=10, stack=2, width=32, heads=2, feed_forward=40)
SIZES = torch.tensor([7, 20, 1, 12])


def features(count: int = 40) -> torch.Tensor:
    return torch.randn(count, CONFIG.features, generator=torch.Generator().manual_seed(1))


def test_a_row_of_the_text_is_80_milliseconds_whatever_the_encoder() -> None:
    whisper, conformer = (SpeechAdapter(replace(CONFIG, stack=stack)) for stack in (2, 1))
    # Ten seconds: features 20 ms apart, and 40 ms apart.
    assert whisper.sounding(500) == conformer.sounding(250) == 125
    assert whisper.rows(500) == 127


def test_a_recording_has_the_same_rows_alone_and_in_a_batch() -> None:
    adapter = SpeechAdapter(CONFIG)
    packed = features()
    together = adapter.between(packed, SIZES)
    for rows, part in zip(together, packed.split(SIZES.tolist()), strict=True):
        [alone] = adapter.between(part, torch.tensor([len(part)]))
        torch.testing.assert_close(rows, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("activation", ["relu2", "relu2_dense"])
def test_the_layer_may_be_of_squared_relu_with_as_many_parameters(activation: str) -> None:
    wide = replace(CONFIG, feed_forward=64)
    plain, squared = SpeechAdapter(wide), SpeechAdapter(replace(wide, activation=activation))
    count, same = (sum(weight.numel() for weight in one.parameters()) for one in (squared, plain))
    assert count == same
    squared.train()(features(), SIZES).square().sum().backward()
    assert all(weight.grad is not None for name, weight in squared.named_parameters())
    counters = sparsity(squared)
    assert 0.3 < counters["layer.feed_forward.zeros"] < 0.7
    again = SpeechAdapter(squared.config)
    again.load_state_dict(squared.state_dict())
    assert torch.equal(again.eval()(features(), SIZES), squared.eval()(features(), SIZES))


def test_every_recording_stands_between_its_delimiters() -> None:
    adapter = SpeechAdapter(CONFIG)
    rows = adapter(features(), SIZES)
    counts = [adapter.rows(size) for size in SIZES.tolist()]
    assert len(rows) == sum(counts)
    for part in rows.split(counts):
        assert torch.equal(part[[0, -1]], adapter.delimiters)


def test_what_is_said_later_is_heard_earlier() -> None:
    adapter = SpeechAdapter(CONFIG)
    one, other = features(20), features(20)
    other[-1] += 5
    first = [adapter.between(x, torch.tensor([20]))[0][0] for x in (one, other)]
    assert not torch.equal(*first)


def test_order_is_heard() -> None:
    adapter = SpeechAdapter(CONFIG)
    x = features(40)
    forward, turned = (adapter.between(one, torch.tensor([40]))[0] for one in (x, x.flip(0)))
    assert not torch.allclose(forward.mean(0), turned.mean(0), atol=1e-4)


def test_every_part_learns() -> None:
    adapter = SpeechAdapter(CONFIG)
    rows = adapter(features(), SIZES)
    rows.backward(torch.randn_like(rows))
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in adapter.parameters())


def test_the_papers_adapter_has_about_100_million_parameters() -> None:
    with torch.device("meta"):
        adapter = SpeechAdapter(SpeechAdapterConfig(text=4096, features=1536))
    assert 99e6 < sum(weight.numel() for weight in adapter.parameters()) < 105e6


def test_what_cannot_be_built_says_why() -> None:
    with pytest.raises(ValueError, match=r"width \(32\) must be a multiple of twice the heads \(5\)"):
        replace(CONFIG, heads=5)
    with pytest.raises(ValueError, match="stack must be at least 1"):
        replace(CONFIG, stack=0)
    with pytest.raises(ValueError, match="widths of text and features known"):
        SpeechAdapter(SpeechAdapterConfig())
