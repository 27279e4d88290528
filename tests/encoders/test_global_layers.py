import torch

from encoders.global_layers import GlobalLayers, VisionBlock, by_picture


def _opened(layers: GlobalLayers) -> GlobalLayers:
    for block in layers.blocks:
        assert isinstance(block, VisionBlock)
        assert block.attention_gate is not None
        assert block.feed_forward_gate is not None
        torch.nn.init.constant_(block.attention_gate, 0.7)
        torch.nn.init.constant_(block.feed_forward_gate, -0.4)
    return layers


def test_new_layers_change_nothing():
    x = torch.randn(3, 5, 16)
    assert torch.equal(GlobalLayers(2, 16, heads=2, hidden=32)(x, torch.tensor([0, 0, 1])), x)


def test_opened_layers_mix_the_tiles_of_a_picture_and_no_others():
    layers = _opened(GlobalLayers(1, 16, heads=2, hidden=32))
    x, pictures = torch.randn(4, 5, 16), torch.tensor([0, 0, 1, 2])
    y = layers(x, pictures)
    changed = x.clone()
    changed[0] += 1
    moved = (layers(changed, pictures) != y).flatten(1).any(1)
    assert moved.tolist() == [True, True, False, False]


def test_a_picture_gives_the_same_alone_and_among_pictures_of_other_sizes():
    layers = _opened(GlobalLayers(2, 16, heads=4, hidden=32))
    x, pictures = torch.randn(7, 3, 16), torch.tensor([4, 1, 1, 9, 9, 9, 2])
    together = layers(x, pictures)
    for picture in pictures.unique():
        own = pictures == picture
        torch.testing.assert_close(together[own], layers(x[own], pictures[own]))


def test_gates_have_a_gradient_before_anything_else_has():
    layers = GlobalLayers(1, 16, heads=2, hidden=32)
    y = layers(torch.randn(2, 3, 16), torch.tensor([0, 1]))
    (y * torch.randn_like(y)).sum().backward()
    moving = {name for name, weight in layers.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moving == {"blocks.0.attention_gate", "blocks.0.feed_forward_gate"}


def test_groups_hold_every_tile_once_and_in_order():
    groups = by_picture(torch.tensor([7, 7, 3, 5, 5, 1]))
    assert sorted(tuple(row) for group in groups for row in group.tolist()) == [(0, 1), (2,), (3, 4), (5,)]
