"""Generated tokens against transformers, against reading anew for each token, and against the sampling's definition."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig as TheirLlamaConfig
from transformers import LlamaForCausalLM

from text_backbone import PRESETS, Sampling, TextBackbone, complete, generate
from text_backbone.checkpoint import write_config
from text_backbone.generate import pick

TOY = dataclasses.replace(PRESETS["toy"], stops=())


def toy() -> TextBackbone:
    model = TextBackbone(TOY).eval()
    # Sharper than at random, so that greedy choices are far apart and rounding decides nothing.
    for weight in model.parameters():
        weight.data.mul_(2)
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(3, TOY.vocabulary, shape)


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0), lengths


def test_greedy_tokens_are_those_of_transformers_and_of_reading_anew() -> None:
    model = toy()
    reference = LlamaForCausalLM(TheirLlamaConfig(**write_config(TOY))).eval()
    reference.load_state_dict(model.state_dict())
    prompt = tokens(1, 7)
    [mine] = complete(model, prompt, torch.tensor([7]), max_new=40)
    expected = reference.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert mine == expected[0, 7:].tolist()
    anew = prompt
    with torch.no_grad():
        for _ in range(40):
            anew = torch.cat([anew, model(anew)[:, -1:].argmax(-1)], dim=1)
    assert mine == anew[0, 7:].tolist()


def test_rows_of_a_batch_say_what_they_say_alone() -> None:
    model = toy()
    rows = [tokens(n) for n in (9, 2, 5)]
    together = complete(model, *padded(rows), max_new=20)
    alone = [complete(model, row[None], torch.tensor([len(row)]), max_new=20)[0] for row in rows]
    assert together == alone


def test_a_stopped_row_is_not_alive_and_says_pad() -> None:
    model = toy()
    prompt, lengths = padded([tokens(4), tokens(6)])
    free = complete(model, prompt, lengths, max_new=12)
    stop = next(token for token in free[0] if token not in free[1])
    at = free[0].index(stop)
    stream = list(generate(model, prompt, lengths, stops=(stop,), max_new=12))
    assert [alive[0].item() for _, alive in stream] == [i <= at for i in range(12)]
    assert all(alive[1] for _, alive in stream)
    assert stream[at][0][0] == stop
    assert all(token[0] == TOY.pad for token, _ in stream[at + 1 :])
    assert complete(model, prompt, lengths, stops=(stop,), max_new=12) == [free[0][:at], free[1]]


def test_generation_ends_when_every_row_has_stopped() -> None:
    model = toy()
    prompt, lengths = tokens(1, 4), torch.tensor([4])
    free = complete(model, prompt, lengths, max_new=10)[0]
    assert len(list(generate(model, prompt, lengths, stops=(free[0],), max_new=10))) == 1


def test_generation_ends_where_the_context_ends() -> None:
    prompt = tokens(1, TOY.context - 3)
    assert len(list(generate(toy(), prompt, torch.tensor([TOY.context - 3]), max_new=10))) == 3
    with pytest.raises(ValueError, match="the prompt has 129 tokens, the model's context is 128"):
        generate(toy(), tokens(1, 129), torch.tensor([129]))


def test_functions_of_the_prompt_and_of_later_tokens_are_kept_apart() -> None:
    seen: list[tuple[str, int]] = []

    def note(name: str, x: Tensor) -> Tensor:
        seen.append((name, x.shape[1]))
        return x

    complete(
        toy(),
        tokens(1, 5),
        torch.tensor([5]),
        before_prompt={1: (lambda x: note("prompt", x),)},
        before_next={1: (lambda x: note("next", x),)},
        max_new=3,
    )
    assert seen == [("prompt", 5), ("next", 1), ("next", 1)]


def test_a_seed_repeats_the_draws_and_another_does_not() -> None:
    model = toy()
    prompt, lengths = tokens(2, 5), torch.tensor([5, 3])

    def drawn(seed: int | None) -> list[list[int]]:
        return complete(model, prompt, lengths, sampling=Sampling(temperature=1.5, seed=seed), max_new=16)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.5), [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        (Sampling(temperature=1.0, top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(temperature=1.0, top_p=0.65), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, top_k=2, top_p=0.5), [0, 1, 0, 0]),
        (Sampling(temperature=1.0, top_p=1e-9), [0, 1, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(sampling: Sampling, expected: list[float]) -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(20_000, 4)
    drawn = pick(logits, sampling, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / 20_000
    wanted = torch.tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(shares, wanted, atol=0.02, rtol=0)
    assert shares[wanted == 0].sum() == 0


def test_a_row_is_drawn_without_regard_to_the_other_rows() -> None:
    one, other = torch.randn(3, 50), torch.randn(3, 50)
    other[1] = one[1]
    sampling = Sampling(temperature=1.0, top_p=0.9)
    draws = [pick(logits, sampling, torch.Generator().manual_seed(5))[1] for logits in (one, other)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}])
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


@pytest.mark.parametrize("lengths", [[0, 3], [4, 3]])
def test_lengths_that_do_not_fit_the_tokens_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="must be within 1"):
        generate(toy(), tokens(2, 3), torch.tensor(lengths))
