"""A Whisper written as CTranslate2 lays it out and read back is the Whisper it was."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import WhisperConfig, WhisperForConditionalGeneration

from multimodal.data.kit.whisper import read_ctranslate2, write_whisper

END = "<|endoftext|>"


def written(weights: dict[str, np.ndarray]) -> bytes:
    """CTranslate2's binary form, version 6."""

    def name(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", 6) + name("WhisperSpec") + struct.pack("<I", 3) + struct.pack("<I", len(weights))
    kinds = {"float32": 0, "int8": 1, "float16": 4}
    for key, value in weights.items():
        data += name(key) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", kinds[str(value.dtype)], value.nbytes) + value.tobytes()
    return data


def theirs(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """The weights under CTranslate2's names: query, key and value in one, a missing bias as zeros."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    found = {}

    def put(name: str, own: str, *, norm: bool = False) -> None:
        found[f"{name}/{'gamma' if norm else 'weight'}"] = state[f"model.{own}.weight"]
        found[f"{name}/{'beta' if norm else 'bias'}"] = state[f"model.{own}.bias"]

    def fuse(name: str, own: str, letters: str) -> None:
        weights = [state[f"model.{own}.{one}_proj.weight"] for one in letters]
        biases = [state.get(f"model.{own}.{one}_proj.bias", np.zeros(len(weights[0]), np.float32)) for one in letters]
        found[f"{name}/weight"], found[f"{name}/bias"] = np.concatenate(weights), np.concatenate(biases)

    for conv in ("conv1", "conv2"):
        put(f"encoder/{conv}", f"encoder.{conv}")
    for side in ("encoder", "decoder"):
        found[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        put(f"{side}/layer_norm", f"{side}.layer_norm", norm=True)
        for layer in range(2):
            name, own = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            fuse(f"{name}/self_attention/linear_0", f"{own}.self_attn", "qkv")
            put(f"{name}/self_attention/linear_1", f"{own}.self_attn.out_proj")
            put(f"{name}/self_attention/layer_norm", f"{own}.self_attn_layer_norm", norm=True)
            if side == "decoder":
                put(f"{name}/attention/linear_0", f"{own}.encoder_attn.q_proj")
                fuse(f"{name}/attention/linear_1", f"{own}.encoder_attn", "kv")
                put(f"{name}/attention/linear_2", f"{own}.encoder_attn.out_proj")
                put(f"{name}/attention/layer_norm", f"{own}.encoder_attn_layer_norm", norm=True)
            put(f"{name}/ffn/linear_0", f"{own}.fc1")
            put(f"{name}/ffn/linear_1", f"{own}.fc2")
            put(f"{name}/ffn/layer_norm", f"{own}.final_layer_norm", norm=True)
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return found


@pytest.fixture
def model() -> WhisperForConditionalGeneration:
    config = WhisperConfig(
        vocab_size=50300,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    return WhisperForConditionalGeneration(config)


def around(folder: Path) -> tuple[Path, Path]:
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [5], "suppress_ids_begin": [7]}))
    Tokenizer(models.WordLevel({END: 0, "a": 1}, unk_token=END)).save(str(folder / "tokenizer.json"))
    return folder / "config.json", folder / "tokenizer.json"


def test_a_whisper_comes_back_as_it_was_also_from_two_parts(tmp_path: Path, model) -> None:
    data = written(theirs(model))
    parts = [tmp_path / "model.bin.part1", tmp_path / "model.bin.part2"]
    for part, content in zip(parts, (data[:1000], data[1000:]), strict=True):
        part.write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    write_whisper(parts, *around(tmp_path), out)
    back = WhisperForConditionalGeneration.from_pretrained(out)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, atol=0, rtol=0, msg=name)
    assert (back.config.encoder_layers, back.config.d_model) == (2, 64)
    assert back.generation_config.suppress_tokens == [5]


def test_half_precision_is_read_as_it_is(model) -> None:
    half = {name: value.astype(np.float16) for name, value in theirs(model).items()}
    found = read_ctranslate2(written(half), name="x")
    assert found.keys() == half.keys()
    assert all(np.array_equal(found[name], value) for name, value in half.items())


def test_what_is_no_whisper_says_so(tmp_path: Path, model) -> None:
    file = tmp_path / "model.bin"
    whole = theirs(model)
    cases = [
        (b"not a model", "is not a model of CTranslate2's, or is cut short"),
        (written(whole)[:5000], "is cut short"),
        (written({"a/weight": np.zeros(3, np.float32)}), r"holds no Whisper; its first weights are \['a/weight'\]"),
    ]
    for data, message in cases:
        file.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            write_whisper([file], *around(tmp_path), tmp_path)
