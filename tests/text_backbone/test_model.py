"""The backbone against transformers' Llama and Mistral, and against itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig as TheirLlamaConfig
from transformers import LlamaForCausalLM, MistralForCausalLM
from transformers import MistralConfig as TheirMistralConfig

from text_backbone import PRESETS, LlamaConfig, RopeScaling, TextBackbone
from text_backbone.checkpoint import write_config

TOY = PRESETS["toy"]
SCALED = RopeScaling(original_context=32)

CONFIGS = {
    "gqa 1, untied": dataclasses.replace(TOY, kv_heads=4),
    "gqa 3, tied": dataclasses.replace(TOY, width=48, heads=6, kv_heads=2, tied=True),
    "gqa 4, scaled": dataclasses.replace(TOY, kv_heads=1, rope_scaling=SCALED),
    "gqa 3, scaled, tied": dataclasses.replace(
        TOY, width=72, heads=9, kv_heads=3, head_width=16, rope_scaling=SCALED, tied=True
    ),
}


def theirs(config: LlamaConfig) -> LlamaForCausalLM:
    told = write_config(config)
    return LlamaForCausalLM(TheirLlamaConfig(**{k: v for k, v in told.items() if k not in ("architectures",)})).eval()


def ours(config: LlamaConfig, reference: LlamaForCausalLM | MistralForCausalLM) -> TextBackbone:
    model = TextBackbone(config).eval()
    state = reference.state_dict()
    model.load_state_dict({k: v for k, v in state.items() if not (config.tied and k == "lm_head.weight")})
    return model


def toy(**changes: object) -> TextBackbone:
    return TextBackbone(dataclasses.replace(TOY, **changes)).eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, TOY.vocabulary, shape)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_transformers(name: str) -> None:
    reference = theirs(CONFIGS[name])
    model = ours(CONFIGS[name], reference)
    prompt = tokens(3, 90)
    expected = reference(prompt).logits
    scale = expected.max() - expected.min()
    assert (model(prompt) - expected).abs().max() <= 1e-5 * scale


@torch.no_grad()
def test_mistral_without_a_window_is_the_same_function() -> None:
    told = TheirMistralConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        sliding_window=None,
    )
    reference = MistralForCausalLM(told).eval()
    config = dataclasses.replace(TOY, layers=3, head_width=16, norm_eps=told.rms_norm_eps)
    prompt = tokens(2, 40)
    expected = reference(prompt).logits
    assert (ours(config, reference)(prompt) - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


def test_gradients_are_those_of_transformers() -> None:
    config = CONFIGS["gqa 4, scaled"]
    reference = theirs(config)
    model = ours(config, reference)
    prompt, slope = tokens(2, 20), torch.randn(2, 20, TOY.vocabulary)
    model(prompt).backward(slope)
    reference(prompt).logits.backward(slope)
    expected = dict(reference.named_parameters())
    for name, weight in model.named_parameters():
        grad, want = weight.grad, expected[name].grad
        assert grad is not None
        assert want is not None
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-5 * want.abs().max().item())


@torch.no_grad()
def test_in_bfloat16_the_norm_rounds_where_transformers_does() -> None:
    config = CONFIGS["gqa 1, untied"]
    reference = theirs(config).bfloat16()
    model = ours(config, reference).bfloat16()
    x = torch.randn(4, 7, 32).bfloat16()
    assert torch.equal(model.model.norm(x), reference.model.norm(x))


def test_text_weights_keep_their_hugging_face_names() -> None:
    names = set(theirs(CONFIGS["gqa 1, untied"]).state_dict())
    assert set(toy(kv_heads=4).state_dict()) == names
    assert "lm_head.weight" not in toy(tied=True).state_dict()


@pytest.mark.parametrize(
    ("preset", "billions"), [("llama3-8b", 8.030), ("llama3.1-70b", 70.554), ("llama3.1-405b", 405.853)]
)
def test_presets_have_the_published_number_of_parameters(preset: str, billions: float) -> None:
    with torch.device("meta"):
        model = TextBackbone(PRESETS[preset])
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 3) == billions


@torch.no_grad()
def test_running_the_blocks_in_parts_changes_no_bit() -> None:
    model = toy()
    prompt, documents = tokens(2, 12), torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    whole = model(prompt, documents=documents)
    for cut in range(TOY.layers + 1):
        x = model.run(model.embed(prompt), last=cut, documents=documents)
        assert torch.equal(model.head(model.run(x, first=cut, documents=documents)), whole)


def test_functions_run_ahead_of_the_block_that_they_are_named_for() -> None:
    model = toy()
    x = torch.randn(1, 3, TOY.width)
    seen: list[Tensor] = []

    def enter(y: Tensor) -> Tensor:
        seen.append(y)
        return y + 1

    out = model.run(x, before={2: (enter, enter)})
    middle = model.run(x, last=2)
    assert torch.equal(seen[0], middle)
    assert torch.equal(seen[1], middle + 1)
    assert torch.equal(out, model.run(middle + 2, first=2))


def test_a_function_for_a_block_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"before names blocks \[4\]"):
        toy()(tokens(1, 3), before={4: (lambda x: x,)})


def test_embeds_take_the_place_of_placeholders_and_get_gradients() -> None:
    model = toy()
    prompt = tokens(2, 4)
    prompt[0, 1] = prompt[1, 3] = TOY.vocabulary
    rows = torch.randn(2, TOY.width, requires_grad=True)
    x = model.embed(prompt, (prompt >= TOY.vocabulary, rows))
    assert torch.equal(x[0, 1], rows[0])
    assert torch.equal(x[1, 3], rows[1])
    plain = prompt < TOY.vocabulary
    assert torch.equal(x[plain], model.model.embed_tokens(prompt[plain]))
    x.backward(slope := torch.randn_like(x))
    assert rows.grad is not None
    assert torch.equal(rows.grad, slope[~plain])


def test_an_uncovered_placeholder_is_an_error() -> None:
    with pytest.raises(ValueError, match="token 257 is a placeholder"):
        toy()(torch.tensor([[3, 257]]))
    with pytest.raises(ValueError, match="marks 1 tokens but brings 2 rows"):
        toy().embed(torch.tensor([[3, 256]]), (torch.tensor([[False, True]]), torch.zeros(2, TOY.width)))


@torch.no_grad()
def test_each_document_of_a_packed_row_is_as_if_alone() -> None:
    model = toy(rope_scaling=SCALED)
    parts = [tokens(1, n) for n in (7, 1, 12)]
    documents = torch.tensor([[0] * 7 + [1] + [2] * 12])
    packed = model(torch.cat(parts, dim=1), documents=documents)
    alone = torch.cat([model(part) for part in parts], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_right_padded_rows_are_as_if_alone() -> None:
    model = toy()
    rows = [tokens(1, n) for n in (9, 4)]
    padded = torch.cat([rows[0], torch.cat([rows[1], torch.zeros(1, 5, dtype=torch.long)], dim=1)])
    logits = model(padded)
    torch.testing.assert_close(logits[0], model(rows[0])[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1, :4], model(rows[1])[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_other_rows_say_changes_no_bit_of_a_row() -> None:
    model = toy()
    one, other = tokens(3, 11), tokens(3, 11)
    other[1] = one[1]
    assert torch.equal(model(one)[1], model(other)[1])


def test_a_token_never_sees_what_comes_after_it() -> None:
    model = toy()
    prompt = tokens(1, 8)
    changed = prompt.clone()
    changed[0, 5] = (changed[0, 5] + 1) % TOY.vocabulary
    assert torch.equal(model(prompt)[0, :5], model(changed)[0, :5])
    assert not torch.equal(model(prompt)[0, 5:], model(changed)[0, 5:])


def test_recomputing_changes_neither_logits_nor_gradients() -> None:
    model, prompt = toy(), tokens(2, 6)
    gate = torch.zeros((), requires_grad=True)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        gate.grad = None
        logits = model(prompt, before={1: (lambda x: x + gate.tanh() * x.roll(1, -1),)})
        logits.square().mean().backward()
        return [logits.detach(), *(p.grad.clone() for p in [*model.parameters(), gate] if p.grad is not None)]

    kept = gradients()
    model.recompute = True
    for before, after in zip(kept, gradients(), strict=True):
        assert torch.equal(before, after)


def test_frequencies_survive_a_change_of_dtype() -> None:
    model = toy(rope_theta=1e6)
    x = torch.randn(1, 100, TOY.width)
    with torch.no_grad():
        there_and_back = toy(rope_theta=1e6)
        there_and_back.load_state_dict(model.state_dict())
        there_and_back.bfloat16().float().load_state_dict(model.state_dict())
        assert torch.equal(model.run(x), there_and_back.run(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ({"head_width": 7}, r"head_width \(7\) must be even"),
        ({"layers": 0}, r"layers \(0\) must be at least 1"),
    ],
)
def test_an_impossible_shape_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TOY, **changes)
