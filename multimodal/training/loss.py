"""The loss of a batch as a sum and a count, to be divided once, by the targets of all processes together."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multimodal.batch import NO_TARGET, Batch


def token_loss(model: nn.Module, batch: Batch, **more: object) -> tuple[Float[Tensor, ""], int]:
    """The summed cross-entropy (nats) of a batch's target tokens, and their number: 0.0 and 0 where there are none.

    `more` is handed on to the model.
    """
    targets = batch.targets[batch.targets != NO_TARGET]
    logits = model(batch, **more)
    return F.cross_entropy(logits.float(), targets, reduction="sum"), len(targets)
