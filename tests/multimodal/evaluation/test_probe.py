import pytest
import torch

from multimodal.evaluation.probe import linear_probe, pooled


def test_what_is_linear_is_read_and_what_is_not_there_is_not() -> None:
    x = torch.randn(400, 6)
    labels = ["high" if row[2] > 0 else "low" for row in x]
    found = linear_probe(x[:300], labels[:300], x[300:], labels[300:])
    assert found.accuracy > 0.9
    blind = linear_probe(torch.randn(300, 6), labels[:300], torch.randn(100, 6), labels[300:])
    assert blind.accuracy < 0.7
    assert 0.3 < found.majority < 0.7
    assert found.n == 100


def test_pooling_takes_mean_and_deviation_of_recordings_of_any_length() -> None:
    rows = pooled([torch.ones(3, 2), torch.tensor([[0.0, 2.0], [4.0, 2.0]])])
    torch.testing.assert_close(rows, torch.tensor([[1.0, 1, 0, 0], [2.0, 2, 2, 0]]))


def test_a_probe_of_one_label_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs two labels at least"):
        linear_probe(torch.ones(2, 3), ["a", "a"], torch.ones(1, 3), ["a"])
