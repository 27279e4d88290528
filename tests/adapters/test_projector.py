import pytest
import torch
from torch import Tensor

from adapters.projector import Mixer, Projector
from adapters.recall import Recall
from adapters.summary import Summary

PLACES = torch.tensor([[0.5, 0.5, 1.0], [0.2, 0.2, 0.0], [0.8, 0.8, 0.0], [0.5, 0.5, 1.0], [0.4, 0.6, 0.0]])
PICTURES = torch.tensor([0, 0, 0, 1, 1])


def _features() -> Tensor:
    return torch.randn(5, 12)


def _summary(whole: int = 1) -> Summary:
    """One that remembers four names of at most two words."""
    summary = Summary(whole, 12, 16, names=4, words=6, slots=2)
    torch.nn.init.normal_(summary.recall.codes)
    summary.recall.words.copy_(torch.tensor([[1, 2], [3, 0], [4, 5], [6, 0]]))
    return summary


def test_pictures_of_different_sizes_are_mixed_as_each_is_alone():
    mixer, media = Mixer(16, 8).eval(), torch.randn(9, 16)
    pictures = torch.tensor([0, 0, 0, 0, 2, 3, 3, 3, 3])
    expected = torch.cat([mixer(media[pictures == one], pictures[pictures == one]) for one in (0, 2, 3)])
    torch.testing.assert_close(mixer(media, pictures), expected)
    with torch.no_grad():
        torch.testing.assert_close(mixer(media, pictures), expected)
    assert mixer(media[:0], pictures[:0]).shape == (0, 16)


def test_features_of_a_picture_look_at_each_other_and_not_at_another_pictures():
    mixer, media = Mixer(16, 8), torch.randn(5, 16)
    other = media.clone()
    other[0] += 1
    moved = (mixer(media, PICTURES) != mixer(other, PICTURES)).any(-1)
    assert moved.tolist() == [True, True, True, False, False]


def test_a_projector_projects_each_picture_as_alone_with_every_option():
    projector = Projector(12, 16, hidden=20, norm=True, summary=_summary(), places=True, mixer=8, noise=0.5).eval()
    features = _features()
    together = projector(features, PLACES, PICTURES)
    assert together.features is not None
    for one in (0, 1):
        own = one == PICTURES
        alone = projector(features[own], PLACES[own], PICTURES[own])
        torch.testing.assert_close(together.rows[own[together.features]], alone.rows)


def test_a_plain_projector_is_a_linear_map():
    projector, features = Projector(12, 16), _features()
    assert torch.equal(projector(features, None, None).rows, projector.out(features))


def test_noise_is_drawn_in_training_alone():
    projector, features = Projector(12, 16, noise=0.5), _features()
    assert not torch.equal(projector(features, None, None).rows, projector(features, None, None).rows)
    projector.eval()
    assert torch.equal(projector(features, None, None).rows, projector.out(features))


def test_features_are_told_where_they_lie():
    projector, features = Projector(12, 16, places=True), torch.randn(1, 12).expand(5, -1)
    rows = projector(features, PLACES, None).rows
    assert torch.equal(rows[0], rows[3])
    assert len({tuple(row) for row in rows.tolist()}) == 4


@pytest.mark.parametrize(
    ("options", "name"), [({"places": True}, "places"), ({"summary": _summary()}, "places"), ({"mixer": 8}, "pictures")]
)
def test_what_a_projector_needs_and_was_not_given_is_named(options: dict, name: str):
    with pytest.raises(ValueError, match=f"needs the features' {name}, but none were given"):
        Projector(12, 16, **options)(_features(), None, None)


def test_whole_features_become_a_summary_and_patches_stay_as_they_are():
    summary, features = _summary(), _features()
    projector = Projector(12, 16, summary=summary).eval()
    media = projector(features, PLACES, None)
    assert media.features is not None
    assert media.features.tolist() == [0, 0, 0, 1, 2, 3, 3, 3, 4]
    torch.testing.assert_close(media.rows[[3, 4, 8]], projector.out(features[[1, 2, 4]]))
    torch.testing.assert_close(media.rows[:3], summary(features[None, :1])[0])
    torch.testing.assert_close(media.rows[5:8], summary(features[None, 3:4])[0])


def test_several_whole_features_of_a_tile_are_read_together():
    summary, features = _summary(whole=2), torch.randn(6, 12)
    places = torch.tensor([[0.5, 0.5, kind] for kind in (1.0, 1.0, 0.0, 1.0, 1.0, 0.0)])
    media = Projector(12, 16, summary=summary).eval()(features, places, None)
    assert media.features is not None
    assert media.features.tolist() == [0, 0, 0, 2, 3, 3, 3, 5]
    torch.testing.assert_close(media.rows[4:7], summary(features[None, 3:5])[0])


def test_a_word_stands_beside_its_place_and_the_word_before_it():
    summary = _summary().eval()
    features = torch.randn(1, 1, 12)
    rows, said = summary(features)[0], summary.recall(features[:, 0])[0]
    torch.testing.assert_close(rows[1], said[0] + summary.slots[0])
    torch.testing.assert_close(rows[2], said[1] + summary.slots[1] + summary.previous(said[0]))


def _remembering(things: Tensor, leave_out: float = 0.0) -> Recall:
    recall = Recall(12, 16, names=len(things), words=8, slots=2, leave_out=leave_out)
    recall.keys.data = recall.directions(things)
    recall.codes.data[1:] = torch.nn.functional.normalize(torch.randn(8, 16), dim=-1) * 4
    recall.words.copy_(torch.arange(1, 1 + 2 * len(things)).view(-1, 2))
    return recall.requires_grad_(False)


def test_a_remembered_feature_recalls_its_words_in_order_and_a_strange_one_nothing():
    things = torch.eye(12)[:4] + 0.01 * torch.rand(4, 12)
    recall = _remembering(things)
    torch.testing.assert_close(recall(things), recall.codes[recall.words], rtol=1e-3, atol=1e-3)
    assert recall(-torch.eye(12)[:4]).abs().max() < 1e-3


def test_in_training_a_picture_is_at_times_taken_out_of_its_memory():
    things = torch.eye(12)[:4]
    always = _remembering(things, leave_out=1.0).train()
    assert always(things).abs().max() < 1e-2
    assert torch.equal(always.eval()(things), _same(always, things))
    sometimes = _remembering(things, leave_out=0.5).train()
    left = (sometimes(things.repeat(100, 1)).flatten(1).abs().max(-1).values < 1e-2).float().mean()
    assert 0.35 < left < 0.65


def _same(recall: Recall, things: Tensor) -> Tensor:
    """What is recalled when nothing is left out."""
    recall.leave_out = 0.0
    return recall.train()(things)


def test_a_memory_that_learns_has_finite_gradients_where_a_picture_is_all_of_a_key():
    things = torch.eye(12)[:4]
    recall = _remembering(things, leave_out=1.0).requires_grad_(True).train()
    out = recall(things)
    (out * torch.randn_like(out)).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in recall.parameters())
