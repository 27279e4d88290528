"""Backbone files in, backbone files out: Hugging Face folders, Meta folders, hub ids."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from text_backbone import meta_layout
from text_backbone.config import LlamaConfig, RopeScaling, Simplicial
from text_backbone.hub import find_folder
from text_backbone.model import TextBackbone

SIMPLICIAL = "scion_simplicial_llama"
"""The model type of a backbone with simplicial layers: no reader of plain Llamas must take it for one."""

SQUARED_RELU = "scion_relu2_llama"
"""The model type of a backbone whose feed-forward is squared ReLU; it may have simplicial layers too."""

MODEL_TYPES = ("llama", "mistral", SIMPLICIAL, SQUARED_RELU)

_DROPPED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_SHARD_BYTES = 5_000_000_000


def load_backbone(
    path_or_hub_id: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> TextBackbone:
    """A backbone from a Hugging Face folder, a Meta folder or a hub id; in the files' dtype unless told otherwise.

    Files are memory-mapped: on the CPU and in their own dtype the parameters *are* the files' pages, otherwise tensors
    are converted one at a time. ValueError for what is not the same function as Llama (by the name of the setting), for
    a tensor that is unknown, missing or of another shape (by its name), for a folder that holds no model.
    """
    folder = find_folder(path_or_hub_id)
    try:
        if (folder / "config.json").exists():
            config = read_config(folder)
            return assemble(config, _read_safetensors(folder), dtype, device)
        if (folder / "params.json").exists():
            shards = meta_layout.open_shards(folder)
            config = meta_layout.read_config(folder, shards)
            return assemble(config, meta_layout.read_weights(config, shards), dtype, device)
    except SafetensorError as error:
        raise ValueError(f"a safetensors file in {folder} is damaged or cut short: {error}") from error
    raise ValueError(f"{folder} holds neither config.json (Hugging Face) nor params.json (Meta)")


def assemble(
    config: LlamaConfig,
    weights: Iterator[tuple[str, Tensor]],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> TextBackbone:
    """A backbone around these tensors, without copying those that already have the dtype and device."""
    with torch.device("meta"):
        model = TextBackbone(config)
    wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for name, weight in weights:
        if _DROPPED.fullmatch(name) or (config.tied and name == "lm_head.weight"):
            continue
        if name not in wanted:
            raise ValueError(f"unknown tensor {name!r}; this is no plain Llama of {config.layers} layers")
        if tuple(weight.shape) != wanted[name]:
            raise ValueError(f"{name} has shape {tuple(weight.shape)}, the config says {wanted[name]}")
        state[name] = weight.to(device=device, dtype=dtype if weight.is_floating_point() else None)
    if missing := sorted(wanted.keys() - state.keys()):
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]!r}")
    model.load_state_dict(state, assign=True)
    return model.eval()


def save_backbone(
    model: TextBackbone,
    folder: str | Path,
    layout: Literal["hf", "meta"] = "hf",
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write config and weights; the way back is `load_backbone`. Files are written aside and renamed.

    `shard_bytes` is the most that one safetensors file may hold (layout "hf"); Meta's layout is one file.
    """
    if layout not in ("hf", "meta"):
        raise ValueError(f"no layout {layout!r}; layouts: hf, meta")
    if layout == "meta" and model.config.simplicial_every:
        raise ValueError("Meta's layout knows no simplicial layers; save them with layout='hf'")
    if layout == "meta" and model.config.squared_relu:
        raise ValueError("Meta's layout knows no squared ReLU; save it with layout='hf'")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().contiguous() for name, weight in model.state_dict().items()}
    if layout == "meta":
        with _aside(folder / "consolidated.00.pth") as path:
            torch.save(meta_layout.write(folder, model.config, weights), path)
        return
    parts = _parts(weights, shard_bytes)
    index: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = "model.safetensors" if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        with _aside(folder / name) as path:
            save_file(part, path, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    # What an earlier save of another size has left would be read in place of the new files.
    (folder / ("model.safetensors" if len(parts) > 1 else "model.safetensors.index.json")).unlink(missing_ok=True)
    if len(parts) > 1:
        total = sum(weight.nbytes for weight in weights.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (folder / "model.safetensors.index.json").write_text(text + "\n")
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(write_config(model.config) | {"dtype": dtype}, indent=2) + "\n")


def read_config(folder: Path) -> LlamaConfig:
    """The config behind a Hugging Face `config.json`; ValueError for what would be another function than ours."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    kind = found.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"{folder} is of model type {kind!r}; a text backbone is one of {', '.join(MODEL_TYPES)}")
    if kind == "mistral":
        # What a missing key means to the reference implementation.
        found = {"sliding_window": 4096, "num_key_value_heads": 8} | found
    for name, plain in {
        "sliding_window": (None,),
        "hidden_act": ("relu2",) if kind == SQUARED_RELU else (None, "silu"),
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
        "quantization_config": (None,),
    }.items():
        if found.get(name) not in plain:
            raise ValueError(
                f"{folder}/config.json sets {name} to {found[name]!r}, which is another function than Llama's; "
                f"only {' or '.join(map(repr, plain))} can be loaded"
            )
    rope = dict(found.get("rope_parameters") or found.get("rope_scaling") or {})
    theta = rope.get("rope_theta", found.get("rope_theta", 10_000.0))
    heads = found["num_attention_heads"]
    stops = _ids(found.get("eos_token_id"))
    if (folder / "generation_config.json").exists():
        told = json.loads((folder / "generation_config.json").read_text())
        stops = tuple(dict.fromkeys(stops + _ids(told.get("eos_token_id"))))
    pad = found.get("pad_token_id")
    vocabulary = found["vocab_size"]
    pairs = kind == SIMPLICIAL or (kind == SQUARED_RELU and "simplicial" in found)
    return LlamaConfig(
        vocabulary=vocabulary,
        width=found["hidden_size"],
        layers=found["num_hidden_layers"],
        heads=heads,
        kv_heads=found.get("num_key_value_heads") or heads,
        head_width=found.get("head_dim") or found["hidden_size"] // heads,
        feed_forward=found["intermediate_size"],
        rope_theta=float(theta),
        rope_scaling=_scaling(rope, folder),
        norm_eps=found.get("rms_norm_eps", 1e-6),
        tied=found.get("tie_word_embeddings", False),
        context=found.get("max_position_embeddings", 2048),
        begin=found.get("bos_token_id"),
        stops=stops,
        # Padding is never read, so that any id will do where the file names none.
        pad=pad if pad is not None and 0 <= pad < vocabulary else (stops[0] if stops else 0),
        squared_relu=kind == SQUARED_RELU,
        simplicial_every=found.get("simplicial_every", 0) if pairs else 0,
        simplicial=Simplicial(**found["simplicial"]) if pairs else None,
    )


def write_config(config: LlamaConfig) -> dict[str, Any]:
    """A Hugging Face `config.json` for this config."""
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency,
            "high_freq_factor": scaling.high_frequency,
            "original_max_position_embeddings": scaling.original_context,
        }
    stops = config.stops
    pairs: dict[str, Any] = {}
    if config.simplicial is not None:
        pairs = {"simplicial_every": config.simplicial_every, "simplicial": dataclasses.asdict(config.simplicial)}
    architecture, kind = ("ScionSimplicialLlama", SIMPLICIAL) if pairs else ("LlamaForCausalLM", "llama")
    if config.squared_relu:
        architecture, kind = "ScionReLU2Llama", SQUARED_RELU
    return {
        "architectures": [architecture],
        "model_type": kind,
        **pairs,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.feed_forward,
        "hidden_act": "relu2" if config.squared_relu else "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        # For readers older than `rope_parameters`.
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else {k: v for k, v in rope.items() if k != "rope_theta"},
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.context,
        "bos_token_id": config.begin,
        "eos_token_id": list(stops) if len(stops) != 1 else stops[0],
        "pad_token_id": config.pad,
    }


def _scaling(rope: Mapping[str, Any], folder: Path) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"{folder}/config.json asks for rope type {kind!r}; known are 'default' and 'llama3'")
    return RopeScaling(
        factor=rope["factor"],
        low_frequency=rope["low_freq_factor"],
        high_frequency=rope["high_freq_factor"],
        original_context=rope["original_max_position_embeddings"],
    )


def _ids(found: int | list[int] | None) -> tuple[int, ...]:
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (found,)


def _read_safetensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} points outside of its folder: {name!r}")
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}; weights are read from safetensors files only")
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                yield key, file.get_tensor(key)


def _parts(weights: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, weight in weights.items():
        if parts[-1] and size + weight.nbytes > most:
            parts.append({})
            size = 0
        parts[-1][name] = weight
        size += weight.nbytes
    return parts


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when all went well.

    The model that is being saved may itself be mapped from `path`, so that writing into it would be fatal.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        # safetensors makes files that only their owner can read, whatever the umask.
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
