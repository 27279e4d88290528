import math

import pytest
import torch
from torch import Tensor, nn

from multimodal.batch import NO_TARGET, Batch
from multimodal.training.loss import candidates, sampled_token_loss, token_loss


class Knows(nn.Module):
    """Is sure of the token 3, whatever it is asked; `sure` 0 knows nothing of 11 words."""

    def forward(self, batch: Batch, *, sure: float = 0.0) -> Tensor:
        logits = torch.zeros(int((batch.targets != NO_TARGET).sum()), 11)
        logits[:, 3] = sure
        return logits.bfloat16().requires_grad_()


def batch(targets: list[list[int]]) -> Batch:
    wanted = torch.tensor(targets)
    B, T = wanted.shape
    return Batch(
        tokens=torch.zeros_like(wanted),
        lengths=torch.full((B,), T),
        targets=wanted,
        places=torch.zeros(0, 3),
        owners=torch.zeros(0, dtype=torch.long),
        index=torch.zeros(B, 0, dtype=torch.long),
        sees=torch.zeros(B, T, 0, dtype=torch.bool),
    )


def test_it_is_a_sum_over_the_targets_and_their_number() -> None:
    total, count = token_loss(Knows(), batch([[NO_TARGET, 3, 5], [7, NO_TARGET, NO_TARGET]]))
    assert count == 3
    assert total.item() == pytest.approx(3 * math.log(11), rel=1e-6)
    assert total.dtype == torch.float32


def test_without_targets_it_is_zero_with_a_gradient_of_nothing() -> None:
    total, count = token_loss(Knows(), batch([[NO_TARGET, NO_TARGET]]))
    assert (total.item(), count) == (0.0, 0)
    total.backward()


def test_what_more_it_is_given_goes_to_the_model() -> None:
    total, _ = token_loss(Knows(), batch([[3, 3]]), sure=50.0)
    assert total.item() == pytest.approx(0.0, abs=1e-6)


class Table(nn.Module):
    """Says for every target position the same logits, of the words asked for."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.logits = 2 * torch.randn(vocabulary)

    def forward(self, batch: Batch, *, words: Tensor | None = None) -> Tensor:
        logits = self.logits if words is None else self.logits[words]
        return logits.expand(int((batch.targets != NO_TARGET).sum()), -1)


def test_compared_with_all_words_the_sampled_loss_is_the_whole_one() -> None:
    table, wanted = Table(6000), batch([[3, 5900, NO_TARGET]])
    whole, _ = token_loss(table, wanted)
    total, count = sampled_token_loss(table, wanted, vocabulary=6000, drawn=6000)
    assert count == 2
    torch.testing.assert_close(total, whole)


def test_the_sampled_sum_over_the_vocabulary_is_right_on_average() -> None:
    table, targets = Table(9000), torch.tensor([8000])
    drawn = [candidates(targets, 9000, 400) for _ in range(400)]
    sums = torch.stack([(table.logits[words] + raised).exp().sum() for words, raised in drawn])
    assert sums.mean().item() == pytest.approx(table.logits.exp().sum().item(), rel=0.02)
    for words, raised in drawn[:5]:
        assert len(words) == 4096 + 1 + 400
        assert torch.equal(words, words.unique())
        assert 8000 in words
        assert raised[words < 4096].eq(0).all()
