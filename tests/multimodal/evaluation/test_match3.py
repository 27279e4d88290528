"""Match3: the answers are what trying every pair gives, and they are worth asking for."""

import itertools

import pytest
import torch

from multimodal.evaluation.match3 import Match3

TASK = Match3(bits=4, window1=3, window2=5)


def test_an_answer_is_what_trying_every_pair_of_the_windows_gives() -> None:
    tokens, answers = TASK.draw(3, 17, torch.Generator().manual_seed(1))
    for row, told in zip(tokens.tolist(), answers.tolist(), strict=True):
        for i, answer in enumerate(told):
            first, second = range(max(0, i - 2), i + 1), range(max(0, i - 4), i + 1)
            assert answer == any(row[i] ^ row[j] ^ row[k] == 0 for j, k in itertools.product(first, second))


def test_only_pairs_of_two_other_places_count() -> None:
    tokens = torch.randint(1, 16, (20, 2), generator=torch.Generator().manual_seed(2))
    assert not TASK.answers(tokens).any()


def test_what_lies_before_the_windows_or_after_the_token_does_not_count() -> None:
    tokens, answers = TASK.draw(2, 12, torch.Generator().manual_seed(3))
    other = tokens.clone()
    other[:, 9:] = 1
    assert torch.equal(TASK.answers(other)[:, :9], answers[:, :9].bool())
    other = tokens.clone()
    other[:, :3] = 1
    assert torch.equal(TASK.answers(other)[:, 7:], answers[:, 7:].bool())


def test_both_answers_are_common_and_a_product_of_signs_is_one_exactly_for_a_triple() -> None:
    task = Match3()
    tokens, answers = task.draw(200, 64, torch.Generator().manual_seed(4))
    assert 0.35 < float(answers[:, 5:].float().mean()) < 0.65
    signs = task.signs()
    a, b, c = tokens[:, :3].unbind(1)
    complete = (signs[a] * signs[b] * signs[c] == 1).all(1)
    assert torch.equal(complete, a ^ b ^ c == 0)


def test_windows_and_bits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="bits must be 1 to 16"):
        Match3(bits=0)
