import math
from dataclasses import replace

import pytest
import torch

from encoders.best_rq import BestRQ, BestRQConfig, Quantizer, coverage, cropped, perplexity, span_mask, wholly
from encoders.conformer import Conformer, ConformerConfig

CONFORMER = ConformerConfig(bands=8, width=24, layers=1, heads=2, feed_forward=40, kernel=5)
SMALL = BestRQConfig(codebooks=3, codes=20, code_width=4, span=8, start=0.08)


def frames(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, CONFORMER.bands, generator=torch.Generator().manual_seed(seed))


def test_codes_are_those_of_a_plain_loop_in_double_precision() -> None:
    quantizer = Quantizer(32, SMALL)
    stacks = torch.randn(50, 32)
    found = quantizer(stacks)
    projection, books = quantizer.projection.double().tolist(), quantizer.codes.double().tolist()
    for stack, codes in zip(stacks.double().tolist(), found.tolist(), strict=True):
        projected = [sum(stack[i] * projection[i][j] for i in range(32)) for j in range(4)]
        length = math.sqrt(sum(value * value for value in projected))
        for book, code in zip(books, codes, strict=True):
            nearest, best = -1, -2.0
            for number, entry in enumerate(book):
                size = math.sqrt(sum(value * value for value in entry))
                cosine = sum(a * b for a, b in zip(projected, entry, strict=True)) / length / size
                if cosine > best:
                    nearest, best = number, cosine
            assert code == nearest


def test_the_papers_quantizer_is_frozen_and_of_its_size() -> None:
    with torch.device("meta"):
        model = BestRQ(Conformer(ConformerConfig()), BestRQConfig())
    assert model.quantizer.projection.shape == (320, 16)
    assert model.quantizer.codes.shape == (16, 8192, 16)
    assert not list(model.quantizer.parameters())
    assert model.heads.weight.shape == (16 * 8192, 1536)


def test_masks_are_spans_and_hide_the_papers_share() -> None:
    paper = BestRQConfig()
    assert coverage(paper) == pytest.approx(0.555, abs=5e-4)
    mask = span_mask(400_000, paper)
    assert float(mask.float().mean()) == pytest.approx(coverage(paper), abs=0.01)
    edges = torch.diff(mask.int()).nonzero()[:, 0]
    runs = torch.diff(edges)[int(mask[0]) :: 2] if mask[edges[0] + 1] else torch.diff(edges)[1::2]
    hidden = torch.diff(edges)[0::2] if bool(mask[edges[0] + 1]) else runs
    assert int(hidden.min()) >= paper.span


def test_a_stack_is_guessed_only_where_nothing_of_it_is_seen() -> None:
    mask = torch.tensor([1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    assert wholly(mask, 4).tolist() == [True, False, False, True]


def test_the_loss_is_the_codebooks_mean_over_hidden_stacks_alone() -> None:
    model = BestRQ(Conformer(CONFORMER), SMALL)
    recordings = [frames(61), frames(40, 1)]
    torch.manual_seed(3)
    guess = model(recordings)
    torch.manual_seed(3)
    masks = [span_mask(len(one), SMALL) for one in recordings]
    noise = [SMALL.noise * torch.randn_like(one) for one in recordings]
    seen = [torch.where(m[:, None], n, one) for m, n, one in zip(masks, noise, recordings, strict=True)]
    total, count, right = 0.0, 0, 0.0
    for one, shown, mask in zip(recordings, seen, masks, strict=True):
        [features] = model.encoder([shown])
        codes = model.quantizer(model.encoder.stacked(one))
        for place in wholly(mask, 4).nonzero()[:, 0].tolist():
            scores = model.heads(features[place]).view(3, 20).log_softmax(-1)
            total -= float(scores[torch.arange(3), codes[place]].sum()) / 3
            right += float((scores.argmax(-1) == codes[place]).sum()) / 3
            count += 1
    assert guess.masked == count > 0
    assert float(guess.loss) == pytest.approx(total, rel=1e-4)
    assert float(guess.right) == pytest.approx(right, rel=1e-5)


def test_what_is_guessed_is_learned_and_the_quantizer_stays() -> None:
    torch.manual_seed(0)
    model = BestRQ(Conformer(CONFORMER), replace(SMALL, codes=6))
    before = {name: value.clone() for name, value in model.quantizer.state_dict().items()}
    # Two sounds that take turns: what is hidden can be told from what is not.
    pattern = torch.stack([torch.full((8,), 2.0), torch.full((8,), -2.0)]).repeat_interleave(4, 0).repeat(12, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        guess = model([pattern] * 8)
        optimizer.zero_grad()
        (guess.loss / guess.masked).backward()
        optimizer.step()
        losses.append(float(guess.loss.detach()) / guess.masked)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert all(torch.equal(value, before[name]) for name, value in model.quantizer.state_dict().items())


def test_long_recordings_give_a_random_piece() -> None:
    long = torch.arange(100.0)[:, None].expand(100, 8)
    starts = {float(cropped(long, 60)[0, 0]) for _ in range(30)}
    assert len(starts) > 5
    assert cropped(long, 100) is long


def test_perplexity_counts_codes_in_use() -> None:
    codes = torch.tensor([[0, 3], [1, 3], [2, 3], [3, 3]])
    torch.testing.assert_close(perplexity(codes, 10), torch.tensor([4.0, 1.0]))


def test_settings_that_cannot_be_say_why() -> None:
    with pytest.raises(ValueError, match="start must lie between 0 and 1"):
        BestRQConfig(start=0.0)
