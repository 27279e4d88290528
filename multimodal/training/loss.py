"""The loss of a batch as a sum and a count, to be divided once, by the targets of all processes together."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from multimodal.batch import NO_TARGET, Batch

_ALWAYS = 4096
"""Tokens that are always compared: byte-pair vocabularies begin with what is most frequent."""


def token_loss(model: nn.Module, batch: Batch, **more: object) -> tuple[Float[Tensor, ""], int]:
    """The summed cross-entropy (nats) of a batch's target tokens, and their number: 0.0 and 0 where there are none.

    `more` is handed on to the model.
    """
    targets = batch.targets[batch.targets != NO_TARGET]
    logits = model(batch, **more)
    return F.cross_entropy(logits.float(), targets, reduction="sum"), len(targets)


def sampled_token_loss(
    model: nn.Module, batch: Batch, *, vocabulary: int, drawn: int, **more: object
) -> tuple[Float[Tensor, ""], int]:
    """`token_loss` against a share of the vocabulary: the first 4096 tokens, the targets, and `drawn` of the others.

    Each drawn token stands for the many that were not: its logit is raised by the logarithm of their ratio, so that
    the sum under the softmax has the full one's expectation (sampled softmax; Jean et al. 2015). For heads that cost
    more than the blocks which are trained through.
    """
    targets = batch.targets[batch.targets != NO_TARGET]
    words, raised = candidates(targets, vocabulary, drawn)
    logits = model(batch, words=words, **more).float() + raised
    return F.cross_entropy(logits, torch.searchsorted(words, targets), reduction="sum"), len(targets)


def candidates(targets: Int[Tensor, "S"], vocabulary: int, drawn: int) -> tuple[Int[Tensor, "W"], Float[Tensor, "W"]]:
    """The tokens that are compared, rising, and what their logits are raised by; chance from the global generator."""
    kept = torch.zeros(vocabulary, dtype=torch.bool, device=targets.device)
    kept[:_ALWAYS] = True
    kept[targets] = True
    others = (~kept).nonzero()[:, 0]
    some = others[torch.randperm(len(others), device=targets.device)[:drawn]]
    raised = torch.zeros(vocabulary, device=targets.device)
    if len(some):
        raised[some] = math.log(len(others) / len(some))
    kept[some] = True
    words = kept.nonzero()[:, 0]
    return words, raised[words]
