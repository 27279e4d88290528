import torch

from multimodal.batch import NO_TARGET, Item, Picture, collate
from multimodal.modality import Image
from multimodal.prompt import PromptReader
from tests.multimodal.tiny import Letters

READER = PromptReader(tokenizer=Letters(), vocabulary=128)


def picture(size: int, value: float) -> Picture:
    return Picture(places=torch.zeros(size, 3), features=torch.full((size, 2), value))


def item(prompt: list, pictures: tuple = (), answer: str | None = None) -> Item:
    return Item(row=READER.raw(prompt, answer=answer), pictures=pictures, key="k")


def test_a_target_is_the_token_that_follows() -> None:
    batch = collate([item(["ab"], answer="c")], pad=1)
    row = batch.tokens[0].tolist()
    learned = [t for t in range(len(row)) if batch.targets[0, t] != NO_TARGET]
    assert [batch.targets[0, t].item() for t in learned] == [row[t + 1] for t in learned]
    assert learned == [2, 3]


def test_features_are_packed_and_every_row_finds_its_own() -> None:
    first = item([Image("a"), "x"], (picture(2, 1.0),))
    second = item(["no picture at all"])
    third = item([Image("b"), "y", Image("c"), "z"], (picture(1, 2.0), picture(3, 3.0)))
    batch = collate([first, second, third], pad=1)
    assert batch.features is not None
    assert batch.features.shape == (6, 2)
    assert batch.index.tolist() == [[0, 1, -1, -1], [-1] * 4, [2, 3, 4, 5]]
    assert not batch.sees[1].any()
    assert batch.sees[0].any(-1).tolist()[:3] == [False, True, True]
    # Row 2: begin, picture b, y, picture c, z.
    assert batch.sees[2, :5].tolist() == [
        [False, False, False, False],
        [True, False, False, False],
        [True, False, False, False],
        [False, True, True, True],
        [False, True, True, True],
    ]


def test_padding_sees_nothing_and_is_never_a_target() -> None:
    batch = collate(
        [item([Image("a"), "x"], (picture(1, 1.0),), answer="y"), item(["a longer row than the other"])], pad=1
    )
    length = int(batch.lengths[0])
    assert not batch.sees[0, length:].any()
    assert (batch.targets[0, length - 1 :] == NO_TARGET).all()


def test_tiles_know_whose_they_are() -> None:
    two = Picture(places=torch.zeros(4, 3), tiles=torch.zeros(2, 3, 4, 4))
    one = Picture(places=torch.zeros(2, 3), tiles=torch.zeros(1, 3, 4, 4))
    batch = collate([item([Image("a"), Image("b"), "x"], (two, one))], pad=1)
    assert batch.tiles is not None
    assert batch.pictures is not None
    assert len(batch.tiles) == 3
    assert batch.pictures.tolist() == [0, 0, 1]
