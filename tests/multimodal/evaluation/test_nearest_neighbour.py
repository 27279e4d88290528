import pytest
import torch

from multimodal.evaluation.nearest_neighbour import NearestNeighbour, pool


def test_a_training_picture_is_its_own_neighbour():
    features = torch.randn(20, 6)
    for distance in ("cosine", "euclidean"):
        found = NearestNeighbour(features, [str(i) for i in range(20)], distance=distance).answers(features)
        assert found == [str(i) for i in range(20)]


def test_a_wide_column_does_not_drown_a_narrow_one():
    # Without standardising, the first column alone would decide, and wrongly.
    features = torch.tensor([[1000.0, 0.0], [0.0, 1.0], [1000.0, 1.0], [0.0, 0.0]])
    gallery = NearestNeighbour(features, ["a", "b", "c", "d"], distance="euclidean")
    assert gallery.answers(torch.tensor([[600.0, 0.9]])) == ["c"]
    assert gallery.answers(torch.tensor([[600.0, 0.1]])) == ["a"]


def test_a_column_that_never_changes_makes_no_nan():
    features = torch.cat([torch.randn(5, 3), torch.ones(5, 1)], dim=1)
    assert NearestNeighbour(features, list("abcde")).answers(features) == list("abcde")


def test_euclidean_is_what_cdist_says():
    features, asked = torch.randn(30, 4), torch.randn(11, 4)
    found = NearestNeighbour(features, [""] * 30, distance="euclidean").nearest(asked, chunk=4)
    deviation = features.std(0, correction=0)
    assert torch.equal(found, torch.cdist(asked / deviation, features / deviation).argmin(-1))


def test_pictures_of_different_sizes_are_pooled_to_their_means():
    pooled = pool([torch.tensor([[1.0, 3.0], [3.0, 5.0]]), torch.tensor([[7.0, 8.0]])])
    assert torch.equal(pooled, torch.tensor([[2.0, 4.0], [7.0, 8.0]]))


def test_captions_and_pictures_must_be_as_many():
    with pytest.raises(ValueError, match="2 pictures with 1 captions"):
        NearestNeighbour(torch.zeros(2, 3), ["a"])
