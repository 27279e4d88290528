"""Decoding by the fused steps says what calling the layers one by one says, and stands back where it must."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels.token_step import cpu, module
from text_backbone import PRESETS, KeyValueCache, TextBackbone, complete

TOY = dataclasses.replace(PRESETS["toy"], stops=())


def toy(**changes: object) -> TextBackbone:
    model = TextBackbone(dataclasses.replace(TOY, **changes)).eval()
    # Sharper than at random, so that greedy choices are far apart and rounding decides nothing.
    for weight in model.parameters():
        weight.data.mul_(2)
    return model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fused steps taken, by name."""
    taken: list[str] = []

    def noted(name: str) -> None:
        step = getattr(cpu, name)

        def counted(*given: Any, **more: Any) -> Tensor:
            taken.append(name)
            return step(*given, **more)

        monkeypatch.setattr(cpu, name, counted)

    for name in ("self_attention_step", "swiglu_step", "head_step"):
        noted(name)
    return taken


@pytest.fixture
def layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_ready", lambda: False)
    return


def decoded(model: TextBackbone, rows: int = 1, **cache: Any) -> Tensor:
    """Logits of three more tokens, one at a time, behind prompts of different lengths."""
    tokens = torch.randint(3, TOY.vocabulary, (rows, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.arange(rows) % 4 + 2
    held = KeyValueCache(model.config, rows, 12, **cache)
    model(tokens[:, :6], cache=held, lengths=lengths)
    return torch.cat([model(tokens[:, 6 + i : 7 + i], cache=held) for i in range(3)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("changes", [{}, {"kv_heads": 4}, {"kv_heads": 1, "tied": True}], ids=str)
def test_decoded_logits_are_those_of_the_layers(changes: dict, rows: int, calls: list[str], monkeypatch) -> None:
    model = toy(**changes)
    fused = decoded(model, rows)
    assert calls.count("self_attention_step") == calls.count("swiglu_step") == 3 * TOY.layers
    assert calls.count("head_step") == 3
    monkeypatch.setattr(module, "_ready", lambda: False)
    torch.testing.assert_close(fused, decoded(model, rows), atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_decoding_in_bfloat16_is_no_further_from_float32_than_the_layers_are(monkeypatch) -> None:
    model = toy()
    half = toy()
    half.load_state_dict(model.state_dict())
    half.bfloat16()
    fused = decoded(half, dtype=torch.bfloat16)
    monkeypatch.setattr(module, "_ready", lambda: False)
    exact, plain = decoded(model), decoded(half, dtype=torch.bfloat16)
    assert fused.dtype == torch.bfloat16
    assert (fused.float() - exact).abs().mean() <= 1.2 * (plain.float() - exact).abs().mean()


@torch.no_grad()
def test_a_row_decodes_to_the_same_bits_alone_and_among_others() -> None:
    model = toy()
    tokens, more = torch.randint(3, TOY.vocabulary, (3, 5)), torch.randint(3, TOY.vocabulary, (3, 1))
    together = KeyValueCache(model.config, 3, 8)
    model(tokens, cache=together)
    alone = KeyValueCache(model.config, 3, 8)
    model(tokens, cache=alone)
    alone.reorder(torch.tensor([1]))
    assert torch.equal(model(more, cache=together)[1], model(more[1:2], cache=alone)[0])


@pytest.mark.usefixtures("layer_by_layer")
def test_without_the_op_the_layers_are_called(calls: list[str]) -> None:
    assert len(complete(toy(), torch.tensor([[3, 4]]), torch.tensor([2]), max_new=3)[0]) == 3
    assert not calls


def test_a_missing_compiler_is_said_and_changes_no_token(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    model, prompt = toy(), (torch.tensor([[3, 4]]), torch.tensor([2]))
    expected = complete(model, *prompt, max_new=20)
    calls.clear()
    monkeypatch.setattr(module, "why_not", lambda source: "no compiler in this test")
    module._ready.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no compiler in this test"):
            assert not module._ready()
        assert complete(model, *prompt, max_new=20) == expected
    finally:
        module._ready.cache_clear()
    assert not calls


@torch.no_grad()
def test_several_tokens_and_many_rows_are_left_to_the_matrix_products(calls: list[str]) -> None:
    model = toy()
    cache = KeyValueCache(model.config, 9, 8)
    model(torch.randint(3, TOY.vocabulary, (9, 2)), cache=cache)
    model(torch.randint(3, TOY.vocabulary, (9, 1)), cache=cache)
    model(torch.randint(3, TOY.vocabulary, (1, 2)))
    model.run(torch.randn(1, 1, TOY.width))
    assert not calls


def test_gradients_flow_through_a_cached_token(calls: list[str]) -> None:
    model = toy()
    x = torch.randn(1, 1, TOY.width, requires_grad=True)
    model.head(model.run(x, cache=KeyValueCache(model.config, 1, 4))).sum().backward()
    assert x.grad is not None
    assert not calls


@torch.no_grad()
def test_hooks_and_other_parts_are_called(calls: list[str]) -> None:
    """What somebody put into a block is not passed over: only blocks as they were made are fused."""
    model = toy()
    bare = decoded(model)
    calls.clear()
    seen: list[str] = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: seen.append("query"))  # type: ignore[union-attr]
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: seen.append("feed"))  # type: ignore[union-attr]
    model.model.layers[2].mlp.down_proj = Doubled(model.model.layers[2].mlp.down_proj)  # type: ignore[union-attr, arg-type]
    changed = decoded(model)
    # The prompt calls the layers too: four calls each.
    assert sorted(seen) == ["feed"] * 4 + ["query"] * 4
    assert calls.count("self_attention_step") == 3 * (TOY.layers - 3)
    assert not torch.allclose(bare, changed, atol=1e-2)


class Doubled(nn.Module):
    """A layer that is more than its matrix."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)
