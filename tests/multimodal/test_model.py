from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from multimodal.batch import NO_TARGET, Batch, collate, stand_in
from multimodal.evaluation.guarantee import text_unchanged
from multimodal.model import MultimodalModel
from multimodal.training.learns import learning, open_parameters
from multimodal.training.loss import token_loss
from tests.multimodal.tiny import TEXT, item, mixed

CASES = ("alone", "beside_pictures", "before_first_picture", "cached_prefill", "cached_decode", "cached_decode_alone")


@torch.no_grad()
def logits(model: MultimodalModel, batch: Batch) -> Tensor:
    return model(batch, every_position=True)


def steps(model: MultimodalModel, batch: Batch, count: int) -> None:
    """Trains the adapter."""
    open_parameters(model, ((r"adapters\..*", 1.0),))
    optimizer = torch.optim.AdamW(learning(model).values(), lr=1e-2)
    for _ in range(count):
        optimizer.zero_grad()
        token_loss(model, batch)[0].backward()
        optimizer.step()


def test_text_is_bit_identical_with_an_adapter_attached_before_and_after_training(model: MultimodalModel) -> None:
    batch = mixed(model)
    assert text_unchanged(model, batch) == dict.fromkeys(CASES, 0.0)
    before = {name: weight.clone() for name, weight in model.text.state_dict().items()}
    seen = logits(model, batch)
    steps(model, batch, 3)
    assert text_unchanged(model, batch) == dict.fromkeys(CASES, 0.0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.text.state_dict().items())
    # The adapter did learn, and does change what it is allowed to change.
    assert not torch.allclose(logits(model, batch)[0], seen[0])


def test_text_is_bit_identical_in_bfloat16(model: MultimodalModel) -> None:
    model.text.to(torch.bfloat16)
    assert text_unchanged(model, mixed(model)) == dict.fromkeys(CASES, 0.0)


def test_a_picture_changes_what_follows_it(model: MultimodalModel) -> None:
    one, other = (collate([item(model, "look ", seed, " what")], pad=TEXT.pad) for seed in (1, 2))
    moved = (logits(model, one) != logits(model, other)).any(-1)[0]
    slot = item(model, "look ", 1, " what").row.slots[0]
    assert not moved[:slot].any()
    assert moved[slot:].all()


def test_a_text_row_in_a_mixed_batch_keeps_its_logits(model: MultimodalModel) -> None:
    batch = mixed(model)
    bare = model.text(batch.tokens.masked_fill(batch.tokens >= TEXT.vocabulary, 0), lengths=batch.lengths)
    assert torch.equal(logits(model, batch)[1::2], bare[1::2])


def test_a_model_without_adapters_is_the_text_model(model: MultimodalModel) -> None:
    plain = MultimodalModel(model.text, {}, {})
    batch = collate([item(model, "only words"), item(model, "and these")], pad=TEXT.pad)
    assert torch.equal(logits(plain, batch), model.text(batch.tokens))
    assert plain.first_block == TEXT.layers
    with pytest.raises(ValueError, match=r"holds a picture, but the model's adapters are \[\], not 'image'"):
        plain(mixed(model))


def test_logits_of_targets_are_those_of_every_position(model: MultimodalModel) -> None:
    batch = mixed(model)
    picked = logits(model, batch)[batch.targets != NO_TARGET]
    torch.testing.assert_close(model(batch), picked, rtol=1e-5, atol=1e-5)


def test_a_permutation_of_the_batch_permutes_the_logits(model: MultimodalModel) -> None:
    rows = [item(model, 1, "one"), item(model, "none"), item(model, 2, (3, 2), "both", 4, "x"), item(model, "y", 5)]
    order = [2, 0, 3, 1]
    straight = logits(model, collate(rows, pad=TEXT.pad))
    permuted = logits(model, collate([rows[i] for i in order], pad=TEXT.pad))
    for place, i in enumerate(order):
        length = len(rows[i].row.tokens)
        torch.testing.assert_close(permuted[place, :length], straight[i, :length], rtol=1e-5, atol=1e-5)


def test_pictures_side_by_side_may_change_places(model: MultimodalModel) -> None:
    """Cross-attention knows no order among what a token sees: behind a run its order is forgotten."""
    one, other = (collate([item(model, *seeds, "what")], pad=TEXT.pad) for seeds in ((1, 2), (2, 1)))
    # With an empty row between the placeholders' own streams the text of both would be the same: they are one token.
    moved = (logits(model, one) - logits(model, other)).abs()[0]
    assert moved[1].max() > 1e-3
    picture_one = replace(one, sees=one.sees[:, 2:3].expand_as(one.sees))
    picture_two = replace(other, sees=other.sees[:, 2:3].expand_as(other.sees))
    torch.testing.assert_close(logits(model, picture_one), logits(model, picture_two), rtol=1e-4, atol=1e-4)


def test_each_picture_is_encoded_as_it_is_alone(model: MultimodalModel) -> None:
    """Tiles of a batch and features of a cache give the same."""
    encoder = model.encoders["image"]
    side = encoder.preprocess.size  # type: ignore[union-attr]
    batch = collate([item(model, 1, "one"), item(model, "none"), item(model, 2, 3, "two")], pad=TEXT.pad)
    tiles, owners = torch.randn(3, 3, side, side), torch.arange(3)
    features = torch.cat([encoder(tiles[i : i + 1], torch.zeros(1, dtype=torch.long)).flatten(0, 1) for i in range(3)])
    encoded = replace(batch, features=None, tiles=tiles, pictures=owners)
    kept = replace(batch, features=features)
    torch.testing.assert_close(logits(model, encoded), logits(model, kept), rtol=1e-4, atol=1e-4)


def test_a_stand_in_leaves_the_batch_its_logits_and_reaches_the_adapter_from_its_loss(model: MultimodalModel) -> None:
    encoder = model.encoders["image"]
    rows = [item(model, "only words", answer="a"), item(model, "more of them here", answer="bc")]
    batch = collate(rows, pad=TEXT.pad)
    shape, places = (3, encoder.preprocess.size, encoder.preprocess.size), encoder.places((1, 1))  # type: ignore[union-attr, operator]
    filled = stand_in(batch, tile=shape, places=places, pad=TEXT.pad)
    assert filled.has_media
    assert filled.keys == batch.keys
    torch.testing.assert_close(logits(model, filled)[:2], logits(model, batch), rtol=1e-5, atol=1e-5)
    assert token_loss(model, filled)[1] == token_loss(model, batch)[1]
    alone = stand_in(None, tile=shape, places=places, pad=TEXT.pad)
    assert alone.has_media
    assert (alone.targets == NO_TARGET).all()
    assert logits(model, alone).isfinite().all()
    with_pictures = mixed(model)
    assert stand_in(with_pictures, tile=shape, places=places, pad=TEXT.pad) is with_pictures


def test_a_batch_moves_whole(model: MultimodalModel) -> None:
    batch = mixed(model)
    moved = batch.to("meta")
    for entry in fields(batch):
        value = getattr(batch, entry.name)
        if isinstance(value, Tensor):
            assert getattr(moved, entry.name).is_meta
        else:
            assert getattr(moved, entry.name) == value
