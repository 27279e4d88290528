"""Meta's release format (`params.json`, `consolidated.*.pth`): names, rotary order and model-parallel shards."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from text_backbone.config import LlamaConfig, RopeScaling


@dataclass(frozen=True)
class Entry:
    """What one of Meta's tensors is here."""

    ours: str
    split: Literal[0, 1] | None = None
    """The axis that model-parallel shards cut; None where every shard has the whole."""

    rotary: Literal["heads", "kv_heads"] | None = None
    """Whose rows are in Meta's rotary order."""


TABLE: dict[str, Entry | None] = {
    "tok_embeddings.weight": Entry("model.embed_tokens.weight", 0),
    "layers.{}.attention_norm.weight": Entry("model.layers.{}.input_layernorm.weight"),
    "layers.{}.attention.wq.weight": Entry("model.layers.{}.self_attn.q_proj.weight", 0, "heads"),
    "layers.{}.attention.wk.weight": Entry("model.layers.{}.self_attn.k_proj.weight", 0, "kv_heads"),
    "layers.{}.attention.wv.weight": Entry("model.layers.{}.self_attn.v_proj.weight", 0),
    "layers.{}.attention.wo.weight": Entry("model.layers.{}.self_attn.o_proj.weight", 1),
    "layers.{}.ffn_norm.weight": Entry("model.layers.{}.post_attention_layernorm.weight"),
    "layers.{}.feed_forward.w1.weight": Entry("model.layers.{}.mlp.gate_proj.weight", 0),
    "layers.{}.feed_forward.w2.weight": Entry("model.layers.{}.mlp.down_proj.weight", 1),
    "layers.{}.feed_forward.w3.weight": Entry("model.layers.{}.mlp.up_proj.weight", 0),
    "norm.weight": Entry("model.norm.weight"),
    "output.weight": Entry("lm_head.weight", 0),
    # Follows from the config.
    "rope.freqs": None,
}
"""Meta's names -> ours; `{}` is the layer's number, None means dropped. The way back is this table turned round."""

BACK: dict[str, tuple[str, Entry]] = {entry.ours: (meta, entry) for meta, entry in TABLE.items() if entry is not None}


def interleaved_to_halves(weight: Float[Tensor, "HK D"], heads: int) -> Float[Tensor, "HK D"]:
    """Query or key rows from Meta's rotary order, pairs (2k, 2k + 1), to ours, pairs (k, k + K/2)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def halves_to_interleaved(weight: Float[Tensor, "HK D"], heads: int) -> Float[Tensor, "HK D"]:
    """The inverse of `interleaved_to_halves`."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def numbered(name: str) -> tuple[str, str]:
    """A name with its layer number taken out, and the number (empty if it has none)."""
    found = re.search(r"(?<=layers\.)\d+(?=\.)", name)
    return (name, "") if found is None else (name[: found.start()] + "{}" + name[found.end() :], found.group())


Shards = list[dict[str, Tensor]]


def open_shards(folder: Path) -> Shards:
    """The state dict of each `consolidated.*.pth`, memory-mapped, in rank order."""
    paths = sorted(folder.glob("consolidated.*.pth"))
    if not paths:
        raise ValueError(f"{folder} has params.json but no consolidated.*.pth")
    return [torch.load(path, map_location="cpu", mmap=True, weights_only=True) for path in paths]


def read_config(folder: Path, shards: Shards) -> LlamaConfig:
    """The config behind `params.json`; what it leaves out is read off the shapes of the tensors."""
    params: dict[str, Any] = json.loads((folder / "params.json").read_text())
    ours = params.get("scion", {})
    heads, width = params["n_heads"], params["dim"]
    embedding = _join("tok_embeddings.weight", Entry("", 0), shards, width, "meta")
    gate = _tensor("layers.0.feed_forward.w1.weight", shards[0])
    if "rope_scaling" in ours:
        scaling = None if ours["rope_scaling"] is None else RopeScaling(**ours["rope_scaling"])
    elif params.get("use_scaled_rope", False):
        # params.json does not tell: Llama 3.2's small models (1B, 3B) were released with 32, the others with 8.
        scaling = RopeScaling(factor=32.0 if width < 4096 else 8.0)
    else:
        scaling = None
    config = LlamaConfig(
        vocabulary=embedding.shape[0],
        width=width,
        layers=params["n_layers"],
        heads=heads,
        kv_heads=params.get("n_kv_heads") or heads,
        head_width=width // heads,
        feed_forward=gate.shape[0] * len(shards),
        rope_theta=float(params.get("rope_theta", 500_000.0)),
        rope_scaling=scaling,
        norm_eps=params.get("norm_eps", 1e-5),
        tied=_tied(shards),
        context=8192 if scaling is None else 131_072,
    )
    told = {key: ours[key] for key in ("context", "begin", "pad") if key in ours}
    if "stops" in ours:
        told["stops"] = tuple(ours["stops"])
    return dataclasses.replace(config, **told)


def read_weights(config: LlamaConfig, shards: Shards) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors, one at a time: joined over shards, in our rotary order."""
    for name in shards[0]:
        pattern, number = numbered(name)
        if pattern not in TABLE:
            raise ValueError(f"unknown tensor {name!r} in consolidated.*.pth; it is no text-only Llama")
        entry = TABLE[pattern]
        if entry is None or (config.tied and entry.ours == "lm_head.weight"):
            continue
        weight = _join(name, entry, shards, config.width)
        if entry.rotary is not None:
            weight = interleaved_to_halves(weight, getattr(config, entry.rotary))
        yield entry.ours.replace("{}", number), weight


def write(folder: Path, config: LlamaConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write `params.json`, and give back the tensors under Meta's names and in Meta's rotary order."""
    if config.heads * config.head_width != config.width:
        raise ValueError(
            f"Meta's format can not say that heads ({config.heads}) * head_width ({config.head_width}) is not width "
            f"({config.width}); save with layout='hf'"
        )
    base = int(8 * config.width / 3)
    params = {
        "dim": config.width,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "vocab_size": config.vocabulary,
        # Meta's models compute the hidden width as int(ffn_dim_multiplier * base), rounded up to a multiple.
        "multiple_of": config.feed_forward,
        "ffn_dim_multiplier": (config.feed_forward - 0.5) / base,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
        # What Meta's readers pass over.
        "scion": {
            "rope_scaling": None if config.rope_scaling is None else dataclasses.asdict(config.rope_scaling),
            "context": config.context,
            "begin": config.begin,
            "stops": list(config.stops),
            "pad": config.pad,
        },
    }
    (folder / "params.json").write_text(json.dumps(params, indent=2) + "\n")
    turned: dict[str, Tensor] = {}
    for name, weight in weights.items():
        pattern, number = numbered(name)
        meta, entry = BACK[pattern]
        if entry.rotary is not None:
            weight = halves_to_interleaved(weight, getattr(config, entry.rotary))
        turned[meta.replace("{}", number)] = weight
    if config.tied:
        turned["output.weight"] = turned["tok_embeddings.weight"]
    return turned


def _tensor(name: str, shard: Mapping[str, Tensor]) -> Tensor:
    if name not in shard:
        raise ValueError(f"consolidated.*.pth has no tensor {name!r}")
    return shard[name]


def _join(name: str, entry: Entry, shards: Shards, width: int, device: str | None = None) -> Tensor:
    """One tensor from its pieces; with device="meta" only its shape."""
    pieces = [_tensor(name, shard) for shard in shards]
    if len(pieces) == 1 or entry.split is None:
        return pieces[0]
    axis: int = entry.split
    if name == "tok_embeddings.weight" and pieces[0].shape[1] != width:
        # Llama 2 cut its embeddings by width, Llama 3 by vocabulary.
        axis = 1
    if device is not None:
        pieces = [piece.to(device) for piece in pieces]
    return torch.cat(pieces, dim=axis)


def _tied(shards: Shards) -> bool:
    if "output.weight" not in shards[0]:
        return True
    for shard in shards:
        embedding, head = shard["tok_embeddings.weight"], shard["output.weight"]
        # The first rows answer for almost every model, without reading the rest of two large tensors.
        if (
            embedding.shape != head.shape
            or not torch.equal(embedding[:2], head[:2])
            or not torch.equal(embedding, head)
        ):
            return False
    return True
