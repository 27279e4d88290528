"""Whisper from CTranslate2's file to a Hugging Face folder: the same numbers under other names."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
_ENGLISH = 51864
"""Tokens of the models that know English only; the others have a token for each language more."""


def write_whisper(binary: Sequence[Path], settings: Path, tokenizer: Path, out: Path) -> None:
    """Writes config, weights, tokenizer and preprocessing of a Whisper into the folder `out`.

    `binary` is model.bin, or the parts that it was cut into, in order. ValueError where it is no Whisper, or where a
    weight is missing or left over.
    """
    # Here, so that the kit is found complete without waiting for torch.
    import torch
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor, WhisperForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    found = read_ctranslate2(b"".join(part.read_bytes() for part in binary), name=str(binary[0]))
    if "decoder/embeddings/weight" not in found or "encoder/conv1/weight" not in found:
        raise ValueError(f"{binary[0]} holds no Whisper; its first weights are {sorted(found)[:3]}")
    config = _config(found)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    weights = {name: torch.from_numpy(value.astype(np.float32)) for name, value in _renamed(found, config).items()}
    loaded = model.load_state_dict(weights, strict=False, assign=True)
    # The output's weight is the embedding's.
    if loaded.unexpected_keys or set(loaded.missing_keys) - {"proj_out.weight"}:
        raise ValueError(
            f"{binary[0]} does not fill a Whisper: missing {loaded.missing_keys[:3]}, "
            f"left over {loaded.unexpected_keys[:3]}"
        )
    model.tie_weights()
    asked = json.loads(settings.read_bytes())
    _set_generation(model.generation_config, config, asked)
    model.save_pretrained(str(out))
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(str(out))
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    end = "<|endoftext|>"
    words = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), bos_token=end, eos_token=end, pad_token=end)
    words.save_pretrained(str(out))


def read_ctranslate2(data: bytes, *, name: str) -> dict[str, np.ndarray]:
    """The named arrays in CTranslate2's binary form (version 6); ValueError for anything else."""
    try:
        _, at = _name(data, 4)
        at += 4
        (count,) = struct.unpack_from("<I", data, at)
        at += 4
        arrays = {}
        for _ in range(count):
            key, at = _name(data, at)
            rank = data[at]
            shape = struct.unpack_from(f"<{rank}I", data, at + 1)
            at += 1 + 4 * rank
            kind, size = struct.unpack_from("<BI", data, at)
            at += 5
            arrays[key] = np.frombuffer(data, _DTYPES[kind], count=size // _DTYPES[kind]().itemsize, offset=at)
            arrays[key] = arrays[key].reshape(shape)
            at += size
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"{name} is not a model of CTranslate2's, or is cut short ({error})") from error
    return arrays


def _name(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<H", data, at)
    return data[at + 2 : at + 2 + length].rstrip(b"\0").decode(), at + 2 + length


def _config(found: Mapping[str, np.ndarray]) -> Any:
    from transformers import WhisperConfig

    vocabulary, width = found["decoder/embeddings/weight"].shape
    english = vocabulary == _ENGLISH
    end = 50256 if english else 50257
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=_depth(found, "encoder"),
        decoder_layers=_depth(found, "decoder"),
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=found["encoder/conv1/weight"].shape[1],
        max_source_positions=len(found["encoder/position_encodings/encodings"]),
        max_target_positions=len(found["decoder/position_encodings/encodings"]),
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end + 1,
    )


def _depth(found: Mapping[str, np.ndarray], side: str) -> int:
    begin = f"{side}/layer_"
    return 1 + max(
        int(key[len(begin) :].split("/")[0])
        for key in found
        if key.startswith(begin) and key[len(begin) :].split("/")[0].isdigit()
    )


def _renamed(found: Mapping[str, np.ndarray], config: Any) -> dict[str, np.ndarray]:
    """Hugging Face's names; query, key and value, which the file keeps in one, each by itself (keys have no bias)."""
    plain = {
        "model.encoder.embed_positions.weight": found["encoder/position_encodings/encodings"],
        "model.decoder.embed_positions.weight": found["decoder/position_encodings/encodings"],
        "model.decoder.embed_tokens.weight": found["decoder/embeddings/weight"],
    }

    def linear(ours: str, theirs: str) -> None:
        plain[f"{ours}.weight"], plain[f"{ours}.bias"] = found[f"{theirs}/weight"], found[f"{theirs}/bias"]

    def norm(ours: str, theirs: str) -> None:
        plain[f"{ours}.weight"], plain[f"{ours}.bias"] = found[f"{theirs}/gamma"], found[f"{theirs}/beta"]

    def split(ours: str, theirs: str, letters: str) -> None:
        weights = np.split(found[f"{theirs}/weight"], len(letters))
        biases = np.split(found[f"{theirs}/bias"], len(letters))
        for letter, weight, bias in zip(letters, weights, biases, strict=True):
            plain[f"{ours}.{letter}_proj.weight"] = weight
            if letter != "k":
                plain[f"{ours}.{letter}_proj.bias"] = bias

    for conv in ("conv1", "conv2"):
        linear(f"model.encoder.{conv}", f"encoder/{conv}")
    for side, depth in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for layer in range(depth):
            ours, theirs = f"model.{side}.layers.{layer}", f"{side}/layer_{layer}"
            split(f"{ours}.self_attn", f"{theirs}/self_attention/linear_0", "qkv")
            linear(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            if side == "decoder":
                linear(f"{ours}.encoder_attn.q_proj", f"{theirs}/attention/linear_0")
                split(f"{ours}.encoder_attn", f"{theirs}/attention/linear_1", "kv")
                linear(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
                norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
            linear(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            linear(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
    return plain


def _set_generation(generation: Any, config: Any, asked: Mapping[str, Any]) -> None:
    """What Whisper's own decoder needs to write plain text: our baseline runs it."""
    english = config.vocab_size == _ENGLISH
    generation.begin_suppress_tokens = asked.get("suppress_ids_begin")
    generation.suppress_tokens = asked.get("suppress_ids")
    generation.is_multilingual = not english
    generation.max_length = config.max_target_positions
    generation.no_timestamps_token_id = 50362 if english else 50363
    for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(generation, name, getattr(config, name))
