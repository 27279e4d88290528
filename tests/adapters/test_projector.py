import pytest
import torch
from torch import Tensor

from adapters.projector import Mixer, Projector
from adapters.recall import Recall

PLACES = torch.tensor([[0.5, 0.5, 1.0], [0.2, 0.2, 0.0], [0.8, 0.8, 0.0], [0.5, 0.5, 1.0], [0.4, 0.6, 0.0]])
PICTURES = torch.tensor([0, 0, 0, 1, 1])


def _features() -> Tensor:
    return torch.randn(5, 12)


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
    projector = Projector(12, 16, hidden=20, norm=True, recall=3, places=True, mixer=8, noise=0.5).eval()
    assert projector.recall is not None
    torch.nn.init.normal_(projector.recall.values)
    features = _features()
    together = projector(features, PLACES, PICTURES)
    for one in (0, 1):
        own = one == PICTURES
        torch.testing.assert_close(together[own], projector(features[own], PLACES[own], PICTURES[own]))


def test_a_plain_projector_is_a_linear_map():
    projector, features = Projector(12, 16), _features()
    assert torch.equal(projector(features, None, None), projector.out(features))


def test_noise_is_drawn_in_training_alone():
    projector, features = Projector(12, 16, noise=0.5), _features()
    assert not torch.equal(projector(features, None, None), projector(features, None, None))
    projector.eval()
    assert torch.equal(projector(features, None, None), projector.out(features))


def test_features_are_told_where_they_lie():
    projector, features = Projector(12, 16, places=True), torch.randn(1, 12).expand(5, -1)
    rows = projector(features, PLACES, None)
    assert torch.equal(rows[0], rows[3])
    assert len({tuple(row) for row in rows.tolist()}) == 4


@pytest.mark.parametrize(
    ("options", "name"), [({"places": True}, "places"), ({"recall": 2}, "places"), ({"mixer": 8}, "pictures")]
)
def test_what_a_projector_needs_and_was_not_given_is_named(options: dict, name: str):
    with pytest.raises(ValueError, match=f"needs the features' {name}, but none were given"):
        Projector(12, 16, **options)(_features(), None, None)


def test_recall_adds_to_whole_tiles_alone_and_says_nothing_while_it_is_new():
    projector, features = Projector(12, 16, recall=4).eval(), _features()
    plain = projector.out(features)
    assert torch.equal(projector(features, PLACES, None), plain)
    assert projector.recall is not None
    torch.nn.init.normal_(projector.recall.values)
    torch.nn.init.normal_(projector.recall.keys)
    moved = (projector(features, PLACES, None) != plain).any(-1)
    assert moved.tolist() == [True, False, False, True, False]


def _remembering(things: Tensor, leave_out: float = 0.0) -> Recall:
    recall = Recall(12, 16, len(things), leave_out=leave_out)
    recall.keys.data = recall.directions(things)
    torch.nn.init.normal_(recall.values)
    return recall.requires_grad_(False)


def test_a_remembered_feature_recalls_its_value_and_a_strange_one_nothing():
    things = torch.eye(12)[:4] + 0.01 * torch.rand(4, 12)
    recall = _remembering(things)
    torch.testing.assert_close(recall(things), recall.values, rtol=1e-3, atol=1e-3)
    assert recall(-torch.eye(12)[:4]).abs().max() < 1e-3


def test_in_training_a_picture_is_at_times_taken_out_of_its_memory():
    things = torch.eye(12)[:4]
    always = _remembering(things, leave_out=1.0).train()
    assert always(things).abs().max() < 1e-2
    assert torch.equal(always.eval()(things), _same(always, things))
    sometimes = _remembering(things, leave_out=0.5).train()
    left = (sometimes(things.repeat(100, 1)).abs().max(-1).values < 1e-2).float().mean()
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
