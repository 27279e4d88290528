"""Llama-family text models, their files, tokenizers and generation; knows nothing of other modalities."""

from text_backbone.cache import KeyValueCache
from text_backbone.checkpoint import load_backbone, save_backbone
from text_backbone.config import PRESETS, LlamaConfig, RopeScaling, Simplicial
from text_backbone.dialog import Slot
from text_backbone.generate import GREEDY, Sampling, complete, generate
from text_backbone.graft import graft
from text_backbone.model import Before, Embeds, TextBackbone
from text_backbone.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "GREEDY",
    "PRESETS",
    "Before",
    "Embeds",
    "KeyValueCache",
    "LlamaConfig",
    "RopeScaling",
    "Sampling",
    "Simplicial",
    "Slot",
    "TextBackbone",
    "Tokenizer",
    "complete",
    "generate",
    "graft",
    "load_backbone",
    "load_tokenizer",
    "save_backbone",
]
