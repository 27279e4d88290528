"""The text model teaches itself: what it would say having read the transcript, it learns to say having heard it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multimodal.batch import NO_TARGET, Batch


def distillation_loss(
    model: nn.Module, batch: Batch, *, share: float, temperature: float = 2.0
) -> tuple[Float[Tensor, ""], int]:
    """The summed loss (nats) of a batch's target tokens, and their number.

    `share` of it is the divergence from the teacher's distribution, both softened by `temperature` (times its square,
    which keeps the gradient's size), the rest the cross-entropy of the tokens.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of distillation must lie above 0 and at most at 1, got {share}")
    assert batch.script is not None, "a teacher needs the transcripts: load with `scripted`"
    targets = batch.targets[batch.targets != NO_TARGET]
    if not len(targets):
        return torch.zeros((), device=batch.tokens.device), 0
    with torch.no_grad():
        taught = model(batch.script).float() / temperature
    heard = model(batch).float()
    assert heard.shape == taught.shape, "teacher and pupil answer with the same tokens"
    divergence = F.kl_div(
        (heard / temperature).log_softmax(-1), taught.log_softmax(-1), reduction="sum", log_target=True
    )
    tokens = F.cross_entropy(heard, targets, reduction="sum")
    return share * temperature**2 * divergence + (1 - share) * tokens, len(targets)
