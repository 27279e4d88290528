"""Shards, order and batches: knows files and positions; knows no encoder, no tokenizer and no model.

The names come in when they are first asked for, so that the kit is found complete without waiting for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multimodal.data.loader import Loaded, Loader, LoaderConfig, Source
    from multimodal.data.order import Mixture, Order, Turns
    from multimodal.data.sample import Example, ShardExamples, read_picture
    from multimodal.data.shards import BadShard, Shards, write_shard
    from multimodal.data.tolerance import BadSample, Tolerance, TooManyBadSamples

__all__ = [
    "BadSample",
    "BadShard",
    "Example",
    "Loaded",
    "Loader",
    "LoaderConfig",
    "Mixture",
    "Order",
    "ShardExamples",
    "Shards",
    "Source",
    "Tolerance",
    "TooManyBadSamples",
    "Turns",
    "read_picture",
    "write_shard",
]

_HOMES = {
    **dict.fromkeys(("Loaded", "Loader", "LoaderConfig", "Source"), "loader"),
    **dict.fromkeys(("Mixture", "Order", "Turns"), "order"),
    **dict.fromkeys(("Example", "ShardExamples", "read_picture"), "sample"),
    **dict.fromkeys(("BadShard", "Shards", "write_shard"), "shards"),
    **dict.fromkeys(("BadSample", "Tolerance", "TooManyBadSamples"), "tolerance"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'multimodal.data' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"multimodal.data.{_HOMES[name]}"), name)
