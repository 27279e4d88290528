"""Files of others in, files for others out: the way there and back is the identity."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, MistralForCausalLM
from transformers import MistralConfig as TheirMistralConfig

from text_backbone import PRESETS, LlamaConfig, RopeScaling, TextBackbone, load_backbone, save_backbone
from text_backbone.meta_layout import TABLE, halves_to_interleaved, interleaved_to_halves

TOY = PRESETS["toy"]
SCALED = dataclasses.replace(TOY, rope_scaling=RopeScaling(factor=4.0, original_context=32), stops=(2, 5), context=64)
CONFIGS = {"plain": TOY, "scaled": SCALED, "tied": dataclasses.replace(SCALED, tied=True, kv_heads=1)}


def same(one: TextBackbone, other: TextBackbone) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return (
        one.config == other.config
        and mine.keys() == theirs.keys()
        and all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    )


@pytest.mark.parametrize("layout", ["hf", "meta"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_there_and_back_is_the_identity(tmp_path: Path, layout: str, name: str, dtype: torch.dtype) -> None:
    model = TextBackbone(CONFIGS[name]).to(dtype)
    save_backbone(model, tmp_path, layout)
    assert same(load_backbone(tmp_path), model)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_transformers_reads_what_is_saved_and_says_the_same(tmp_path: Path, name: str) -> None:
    model = TextBackbone(CONFIGS[name])
    save_backbone(model, tmp_path)
    reference = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompt = torch.randint(0, TOY.vocabulary, (2, 60))
    expected = reference(prompt).logits
    assert (model(prompt) - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


@pytest.mark.parametrize("shard", ["100GB", "20KB"])
@torch.no_grad()
def test_what_transformers_saves_is_read_whole_or_in_shards(tmp_path: Path, shard: str) -> None:
    save_backbone(TextBackbone(SCALED), tmp_path / "ours")
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    reference.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    files = len(list((tmp_path / "theirs").glob("*.safetensors")))
    assert (files == 1) == (shard == "100GB")
    assert same(load_backbone(tmp_path / "theirs"), load_backbone(tmp_path / "ours"))


def test_large_models_are_saved_in_shards_that_transformers_reads(tmp_path: Path) -> None:
    model = TextBackbone(TOY)
    save_backbone(model, tmp_path, shard_bytes=40_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert same(load_backbone(tmp_path), model)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(theirs[name], weight) for name, weight in model.state_dict().items())


def test_a_save_replaces_an_earlier_one_of_another_number_of_shards(tmp_path: Path) -> None:
    for shard_bytes in (40_000, 10**9, 40_000):
        model = TextBackbone(TOY)
        save_backbone(model, tmp_path, shard_bytes=shard_bytes)
        assert same(load_backbone(tmp_path), model)
        assert torch.equal(
            LlamaForCausalLM.from_pretrained(tmp_path).lm_head.weight, model.state_dict()["lm_head.weight"]
        )


@torch.no_grad()
def test_mistral_is_read_where_it_is_the_same_function(tmp_path: Path) -> None:
    told = TheirMistralConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        sliding_window=None,
    )
    reference = MistralForCausalLM(told).eval()
    reference.save_pretrained(tmp_path)
    prompt = torch.randint(0, 256, (1, 30))
    torch.testing.assert_close(load_backbone(tmp_path)(prompt), reference(prompt).logits, atol=1e-5, rtol=1e-5)
    told.sliding_window = 16
    told.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sets sliding_window to 16, which is another function than Llama's"):
        load_backbone(tmp_path)


def _complex_attention(weights: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """Query-key products as Meta computes them: rotary positions by complex numbers, on neighbouring pairs."""
    turned = []
    for name in ("wq", "wk"):
        y = (x @ weights[f"layers.0.attention.{name}.weight"].T).unflatten(-1, (heads, -1))
        angles = torch.arange(len(x))[:, None] / TOY.rope_theta ** (torch.arange(0, y.shape[-1], 2) / y.shape[-1])
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        turned.append(torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * turns).flatten(-2))
    return torch.einsum("thk,shk->hts", *turned)


def test_meta_weights_mean_the_same_in_metas_rotary_order(tmp_path: Path) -> None:
    from text_backbone.rope import rotation, turn

    model = TextBackbone(dataclasses.replace(TOY, kv_heads=4))
    save_backbone(model, tmp_path, "meta")
    meta = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    x = torch.randn(9, TOY.width)
    attention = model.model.layers[0].self_attn
    by = rotation(TOY, torch.arange(9)[None], torch.float32)
    q, k = (
        turn((x @ projection.weight.T).unflatten(-1, (4, -1)).transpose(0, 1)[None], by)[0]
        for projection in (attention.q_proj, attention.k_proj)
    )
    torch.testing.assert_close(q @ k.mT, _complex_attention(meta, x, 4), atol=1e-5, rtol=1e-5)


def test_the_rotary_permutations_are_each_others_inverse() -> None:
    weight = torch.randn(24, 5)
    assert torch.equal(interleaved_to_halves(halves_to_interleaved(weight, 3), 3), weight)
    rows = interleaved_to_halves(torch.arange(8.0)[:, None], 1)[:, 0]
    assert rows.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("embedding_axis", [0, 1])
@pytest.mark.parametrize("ranks", [2, 4])
def test_model_parallel_shards_are_joined(tmp_path: Path, ranks: int, embedding_axis: int) -> None:
    model = TextBackbone(dataclasses.replace(SCALED, kv_heads=4))
    save_backbone(model, tmp_path, "meta")
    whole = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    whole["rope.freqs"] = torch.zeros(4)
    for rank in range(ranks):
        shard = {}
        for name, weight in whole.items():
            parts = name.split(".")
            entry = TABLE[".".join("{}" if part.isdigit() else part for part in parts)]
            axis = None if entry is None else entry.split
            axis = embedding_axis if name == "tok_embeddings.weight" else axis
            shard[name] = weight if axis is None else weight.chunk(ranks, axis)[rank].clone()
        torch.save(shard, tmp_path / f"consolidated.{rank:02d}.pth")
    assert same(load_backbone(tmp_path), model)


def test_a_released_params_file_is_read_as_llama_3(tmp_path: Path) -> None:
    save_backbone(TextBackbone(TOY), tmp_path, "meta")
    params = json.loads((tmp_path / "params.json").read_text())
    del params["scion"]
    params |= {"vocab_size": -1, "use_scaled_rope": True, "rope_theta": 500000.0}
    (tmp_path / "params.json").write_text(json.dumps(params))
    config = load_backbone(tmp_path).config
    assert config.vocabulary == 256
    assert config.rope_scaling == RopeScaling(factor=32.0)
    assert (config.begin, config.stops, config.pad) == (128_000, (128_001, 128_008, 128_009), 128_004)
    # Meta's own formula for the hidden width gives back ours.
    hidden = int(params["ffn_dim_multiplier"] * int(8 * params["dim"] / 3))
    assert -(-hidden // params["multiple_of"]) * params["multiple_of"] == TOY.feed_forward


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    import pickle

    save_backbone(TextBackbone(TOY), tmp_path, "meta")
    torch.save({"tok_embeddings.weight": Path("code")}, tmp_path / "consolidated.00.pth")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        load_backbone(tmp_path)


def test_weights_are_the_pages_of_the_file(tmp_path: Path) -> None:
    save_backbone(TextBackbone(TOY), tmp_path)
    model = load_backbone(tmp_path)
    weight = model.model.layers[0].mlp.up_proj.weight
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    spans = [line.split()[0].split("-") for line in maps.read_text().splitlines() if str(tmp_path) in line]
    assert any(int(low, 16) <= weight.data_ptr() < int(high, 16) for low, high in spans)
    # Mapped privately: training the weights does not write into the file.
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        weight.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_a_model_can_be_saved_over_the_files_it_is_mapped_from(tmp_path: Path, layout: str) -> None:
    save_backbone(TextBackbone(TOY), tmp_path, layout)
    model = load_backbone(tmp_path)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    save_backbone(model, tmp_path, layout)
    assert same(load_backbone(tmp_path), model)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_saved_files_can_be_read_by_colleagues(tmp_path: Path) -> None:
    save_backbone(TextBackbone(TOY), tmp_path)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1
    assert (tmp_path / "model.safetensors").stat().st_mode & stat.S_IRGRP == (
        (tmp_path / "config.json").stat().st_mode & stat.S_IRGRP
    )


def test_the_dtype_is_as_asked(tmp_path: Path) -> None:
    save_backbone(TextBackbone(TOY), tmp_path)
    weights = load_backbone(tmp_path, dtype=torch.bfloat16).state_dict().values()
    assert {weight.dtype for weight in weights} == {torch.bfloat16}


def _edit(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "is of model type 'gpt2'; a text backbone is one of llama, mistral"),
        ({"attention_bias": True}, "sets attention_bias to True"),
        ({"hidden_act": "gelu"}, "sets hidden_act to 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn'"),
        ({"quantization_config": {"bits": 4}}, "sets quantization_config"),
        ({"num_hidden_layers": 3}, r"unknown tensor 'model\.layers\.3\.[^']+'; this is no plain Llama of 3 layers"),
        ({"num_hidden_layers": 5}, r"9 tensors are missing, the first is 'model\.layers\.4\."),
        ({"intermediate_size": 65}, r"mlp\.\w+_proj\.weight has shape \(\d+, \d+\), the config says"),
    ],
)
def test_what_is_not_the_same_function_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    save_backbone(TextBackbone(TOY), tmp_path)
    _edit(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_an_unknown_tensor_is_raised_by_its_name(tmp_path: Path, layout: str) -> None:
    save_backbone(TextBackbone(TOY), tmp_path, layout)
    if layout == "hf":
        file = tmp_path / "model.safetensors"
        save_file(load_file(file) | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, file)
    else:
        file = tmp_path / "consolidated.00.pth"
        torch.save(torch.load(file) | {"layers.0.self_attn.q_norm.weight": torch.ones(8)}, file)
    with pytest.raises(ValueError, match=r"unknown tensor '(model\.)?layers\.0\.self_attn\.q_norm\.weight'"):
        load_backbone(tmp_path)


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    save_backbone(TextBackbone(TOY), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_backbone(tmp_path)


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither config\.json"):
        load_backbone(tmp_path)
    save_backbone(TextBackbone(TOY), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        load_backbone(tmp_path)


def test_a_shard_index_can_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    save_backbone(TextBackbone(TOY), tmp_path)
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="points outside of its folder"):
        load_backbone(tmp_path)


def test_meta_refuses_what_its_format_can_not_say(tmp_path: Path) -> None:
    model = TextBackbone(dataclasses.replace(TOY, head_width=16))
    with pytest.raises(ValueError, match=r"heads \(4\) \* head_width \(16\) is not width \(32\)"):
        save_backbone(model, tmp_path, "meta")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_is_not_there_says_so_without_a_network(path: str) -> None:
    with pytest.raises(ValueError, match="no folder"):
        load_backbone(path)


def test_a_hub_id_without_a_network_says_so_at_once() -> None:
    with pytest.raises(ValueError, match=r"'owner/name' is no folder here, and the hub did not give it \(OfflineMode"):
        load_backbone("owner/name")


def test_released_configs_are_read_as_their_presets(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_released_llama31_8b()))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [128001, 128008, 128009]}))
    from text_backbone.checkpoint import read_config

    expected: LlamaConfig = PRESETS["llama3.1-8b"]
    assert read_config(tmp_path) == dataclasses.replace(expected, pad=128_001)


def _released_llama31_8b() -> dict[str, object]:
    """As the release's own file has it, in the keys of its day."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 128256,
    }
