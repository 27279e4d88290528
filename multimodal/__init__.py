"""Composition: prompts, data, training and evaluation around a text model, encoders and adapters. Knows no recipe.

The names come in when they are first asked for, so that `python -m multimodal doctor` need not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multimodal.assistant import Assistant, Chat, load
    from multimodal.modality import Audio, Image
    from multimodal.model import MultimodalModel

__all__ = ["Assistant", "Audio", "Chat", "Image", "MultimodalModel", "load"]

_HOMES = {
    "Assistant": "assistant",
    "Audio": "modality",
    "Chat": "assistant",
    "Image": "modality",
    "MultimodalModel": "model",
    "load": "assistant",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'multimodal' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"multimodal.{_HOMES[name]}"), name)
