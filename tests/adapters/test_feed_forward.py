"""Feed-forwards of an adapter's block."""

import pytest
import torch

from adapters import ImageAdapter, ImageAdapterConfig
from adapters.feed_forward import feed_forward, sparsity
from kernels.sparse_relu2.module import ReLU2FeedForward, SparsityConfig


def parameters(module: torch.nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


@pytest.mark.parametrize("activation", ["relu2", "relu2_dense"])
def test_squared_relu_has_as_many_parameters_as_swiglu(activation: str) -> None:
    assert parameters(feed_forward(32, 128, activation)) == parameters(feed_forward(32, 128, "swiglu"))  # pyright: ignore


def test_an_adapter_with_squared_relu_measures_trains_and_saves_what_it_knows() -> None:
    config = ImageAdapterConfig(
        at=(0, 2), width=32, features=16, heads=4, kv_heads=2, head_width=8, feed_forward=64, activation="relu2"
    )
    adapter = ImageAdapter(config).train()
    x, keys = torch.randn(2, 5, 32), torch.randn(2, 2, 7, 8)
    from adapters.cross_attention import sight

    block = adapter.blocks[0]
    y = block(x, keys, torch.randn(2, 2, 7, 8), sight(torch.ones(2, 5, 7, dtype=torch.bool), 2))
    # A new adapter changes nothing, whatever its feed-forward.
    assert torch.equal(y, x)
    ff = block.feed_forward
    assert isinstance(ff, ReLU2FeedForward)
    assert 0.3 < ff.counters()["zeros"] < 0.7
    assert sparsity(adapter)["blocks.0.feed_forward.zeros"] == ff.counters()["zeros"]
    assert adapter.state_dict()["blocks.0.feed_forward.measured"][0] == 1


def test_the_config_says_when_training_goes_over_to_sparse_activations() -> None:
    when = SparsityConfig(warmup=2, zeros=0.2, slack=0.1, violating=1.0)
    block = feed_forward(32, 64, "relu2", when).train()
    assert isinstance(block, ReLU2FeedForward)
    course = []
    for _ in range(4):
        block(torch.randn(3, 32)).sum().backward()
        course.append(block.sparse)
    assert course == [False, False, True, True]
    config = ImageAdapterConfig(
        at=(0,), width=32, features=16, heads=4, kv_heads=2, head_width=8, feed_forward=64, activation="relu2",
        sparsity=when,
    )  # fmt: skip
    inner = ImageAdapter(config).blocks[0].feed_forward
    assert isinstance(inner, ReLU2FeedForward)
    assert inner.config == when
