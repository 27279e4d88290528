"""Shards, order and batches: knows files and positions; knows no encoder, no tokenizer and no model."""

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
