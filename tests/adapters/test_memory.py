import torch

from adapters.memory import Memory


def _packed(features: list[int]) -> Memory:
    rows = torch.arange(float(len(features)))[:, None, None]
    return Memory((rows,), (10 + rows,), torch.tensor(features))


def test_a_feature_that_made_several_rows_brings_them_all_and_one_that_made_none_brings_none():
    memory = _packed([0, 0, 0, 2, 3, 3, 5]).take(torch.tensor([[3, 4, 5], [0, 1, -1]]))
    [keys], columns = memory.keys, memory.features
    assert columns is not None
    assert columns.tolist() == [[0, 0, 2], [0, 0, 0]]
    assert keys[:, 0, :, 0].tolist() == [[4, 5, 6], [0, 1, 2]]


def test_who_sees_a_feature_sees_its_rows_and_nobody_sees_where_nothing_stands():
    memory = _packed([0, 0, 1, 2, 2, 2]).take(torch.tensor([[0, 1], [2, -1]]))
    sees = torch.tensor([[[True, False], [True, True]], [[True, False], [False, False]]])
    assert memory.seen(sees).tolist() == [
        [[True, True, False], [True, True, True]],
        [[True, True, True], [False, False, False]],
    ]
    short = _packed([0, 1, 1]).take(torch.tensor([[1], [0]]))
    assert short.seen(torch.ones(2, 1, 1, dtype=torch.bool)).tolist() == [[[True, True]], [[True, False]]]


def test_rows_of_a_batch_are_chosen_together():
    memory = _packed([0, 1, 1]).take(torch.tensor([[1], [0]])).select(torch.tensor([1]))
    assert memory.features is not None
    assert memory.features.tolist() == [[0, -1]]
    assert memory.keys[0][0, 0, 0, 0] == 0
