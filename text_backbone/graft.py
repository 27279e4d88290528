"""Simplicial layers grown on a trained backbone, which goes on as it was until they learn."""

from __future__ import annotations

import dataclasses

import torch

from text_backbone.config import Simplicial
from text_backbone.model import TextBackbone


def graft(model: TextBackbone, *, every: int, window1: int, window2: int) -> TextBackbone:
    """A model whose every `every`-th attention is simplicial and, to begin with, what it was within `window2` tokens.

    It shares the weights of `model`; the new ones (`k1_proj`, `v1_proj`) are zero. Their number is about 1.5 times that
    of a layer's keys. ValueError for a model that has simplicial layers already.
    """
    config = model.config
    if config.simplicial_every:
        raise ValueError("this model has simplicial layers already; graft onto the plain one")
    shape = Simplicial(
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_width=config.head_width,
        window1=window1,
        window2=window2,
        grafted=True,
    )
    with torch.device("meta"):
        grown = TextBackbone(dataclasses.replace(config, simplicial_every=every, simplicial=shape))
    old = model.state_dict(keep_vars=True)
    like = model.model.embed_tokens.weight
    state = {
        name: old[name] if name in old else torch.zeros(weight.shape, dtype=like.dtype, device=like.device)
        for name, weight in grown.state_dict().items()
    }
    grown.load_state_dict(state, assign=True)
    grown.recompute = model.recompute
    return grown.train(model.training)
