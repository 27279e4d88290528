import pytest
import torch
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

from adapters.cross_attention import CrossAttentionBlock, sight


def _block(gate: float = 0.5) -> CrossAttentionBlock:
    return CrossAttentionBlock(width=48, heads=6, kv_heads=2, head_width=8, feed_forward=64, gate=gate, eps=1e-5)


def _memory(block: CrossAttentionBlock, media: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = zip(*(block.attention.remember(row) for row in media), strict=True)
    return torch.stack(keys).transpose(1, 2), torch.stack(values).transpose(1, 2)


@pytest.mark.parametrize("everything", [True, False])
def test_the_block_is_that_of_llama_vision_for_tokens_that_see_something(everything: bool):
    config = MllamaTextConfig(
        hidden_size=48,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=64,
        num_hidden_layers=1,
        cross_attention_layers=[0],
        rms_norm_eps=1e-5,
        attn_implementation="eager",
    )
    theirs, ours = MllamaCrossAttentionDecoderLayer(config, 0).eval(), _block()
    names = {
        "attention_norm": "input_layernorm",
        "attention_gate": "cross_attn_attn_gate",
        "attention": "cross_attn",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward_gate": "cross_attn_mlp_gate",
        "feed_forward": "mlp",
    }
    state = theirs.state_dict()
    own = ours.state_dict()
    mapped = {}
    for name, tensor in own.items():
        part, dot, rest = name.partition(".")
        mapped[name] = torch.randn(tensor.shape) * 0.2
        state[names[part] + dot + rest] = mapped[name].reshape(state[names[part] + dot + rest].shape)
    ours.load_state_dict(mapped)
    theirs.load_state_dict(state)
    x, media = torch.randn(2, 5, 48), torch.randn(2, 7, 48)
    sees = torch.ones(2, 5, 7, dtype=torch.bool) if everything else torch.rand(2, 5, 7) > 0.4
    sees[..., 0] = True
    bias = torch.zeros(2, 1, 5, 7).masked_fill(~sees[:, None], torch.finfo(torch.float32).min)
    # Their head width is width / heads = 8, as ours.
    expected = theirs(x, cross_attention_states=media, cross_attention_mask=bias, attention_mask=None,
                      full_text_row_masked_out_mask=torch.ones(2, 1, 5, 1), position_embeddings=None)  # fmt: skip
    expected = expected[0] if isinstance(expected, tuple) else expected
    keys, values = _memory(ours, media)
    torch.testing.assert_close(ours(x, keys, values, sight(sees, 3)), expected, rtol=1e-5, atol=1e-5)


def test_tokens_that_see_nothing_are_bit_for_bit_what_they_were():
    block, x, media = _block(), torch.randn(2, 5, 48), torch.randn(2, 7, 48)
    sees = torch.rand(2, 5, 7) > 0.5
    sees[0, :2], sees[1, 4] = False, False
    sees[0, 2:, 0] = sees[1, :4, 0] = True
    y = block(x, *_memory(block, media), sight(sees, 3))
    assert (y == x).all(-1).tolist() == (~sees.any(-1)).tolist()


def test_gradients_of_tokens_that_see_nothing_are_finite_and_pass_through():
    block, media = _block(), torch.randn(1, 7, 48)
    x = torch.randn(1, 4, 48, requires_grad=True)
    sees = torch.zeros(1, 4, 7, dtype=torch.bool)
    sees[0, 2:, :3] = True
    upstream = torch.randn(1, 4, 48)
    (block(x, *_memory(block, media), sight(sees, 3)) * upstream).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[0, :2], upstream[0, :2])
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in block.parameters())


def test_a_single_token_gives_what_it_gives_among_others():
    block, x, media = _block(), torch.randn(2, 5, 48), torch.randn(2, 7, 48)
    memory, sees = _memory(block, media), torch.ones(2, 5, 7, dtype=torch.bool)
    together = block(x, *memory, sight(sees, 3))
    alone = torch.cat([block(x[:, t : t + 1], *memory, sight(sees[:, t : t + 1], 3)) for t in range(5)], dim=1)
    torch.testing.assert_close(alone, together)


def test_no_mask_is_made_where_everything_is_seen():
    assert sight(torch.ones(2, 1, 7, dtype=torch.bool), 3).sees is None


def test_heads_that_cannot_share_are_refused():
    with pytest.raises(ValueError, match=r"heads \(4\) must be a multiple of kv_heads \(3\)"):
        CrossAttentionBlock(width=16, heads=4, kv_heads=3, head_width=4, feed_forward=8, gate=0.0, eps=1e-5)
