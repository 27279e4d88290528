import pytest
import torch
from transformers import MllamaVisionModel
from transformers.models.mllama import modeling_mllama
from transformers.models.mllama.configuration_mllama import MllamaVisionConfig

from encoders import ImageEncoder, ImageEncoderConfig
from encoders.llama_vision import LlamaVisionConfig, LlamaVisionTower

TINY = LlamaVisionConfig(width=32, blocks=5, heads=4, hidden=128, patch=4, pixels=16, layers=(1, 3, 4, "final"))


def _encoder() -> ImageEncoder:
    tower = LlamaVisionTower(TINY, weights="random")
    config = ImageEncoderConfig(name="llama-vision", layers=TINY.layers, tiles=4, global_layers=2, weights="random")
    encoder = ImageEncoder(config, tower=tower)
    for name, weight in encoder.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.uniform_(weight, 0.3, 0.9)
    return encoder


def _tiles(encoder: ImageEncoder, grids: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    owners = torch.arange(len(grids)).repeat_interleave(torch.tensor([rows * columns for rows, columns in grids]))
    return torch.randn(len(owners), 3, 16, 16), owners, torch.cat([encoder.places(grid) for grid in grids])


def _from_ours(name: str) -> str:
    """Hugging Face's name of one of our weights."""
    table = {
        "tower.patches.weight": "patch_embedding.weight",
        "tower.class_token": "class_embedding",
        "tower.positions": "gated_positional_embedding.embedding",
        "tower.tile_positions": "gated_positional_embedding.tile_embedding.weight",
        "tower.positions_gate": "gated_positional_embedding.gate",
        "tower.tiles_before": "pre_tile_positional_embedding.embedding.weight",
        "tower.tiles_before_gate": "pre_tile_positional_embedding.gate",
        "tower.tiles_after": "post_tile_positional_embedding.embedding.weight",
        "tower.tiles_after_gate": "post_tile_positional_embedding.gate",
        "tower.norm_before": "layernorm_pre",
        "tower.norm_after": "layernorm_post",
        "tower.blocks": "transformer.layers",
        "global_layers.blocks": "global_transformer.layers",
        "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
        "up_proj": "mlp.fc1",
        "down_proj": "mlp.fc2",
        "attention_gate": "gate_attn",
        "feed_forward_gate": "gate_ffn",
        **{f"{letter}_proj": f"self_attn.{letter}_proj" for letter in "qkvo"},
    }
    if name in table:
        return table[name]
    parts = name.split(".")
    head = ".".join(parts[:2])
    if head.endswith("blocks"):
        return ".".join([table[head], parts[2], table[parts[3]], *parts[4:]])
    return ".".join([table[head], *parts[2:]])


def test_features_are_those_of_transformers_where_the_meaning_is_the_same(monkeypatch: pytest.MonkeyPatch):
    """Four real tiles; transformers' layer numbers one lower (it takes the outputs of blocks); its padding rows,
    which real tokens look at there, hidden by a real key mask."""

    def key_mask(aspect_ratio_mask, num_patches, target_length, dtype):
        batch, tiles = aspect_ratio_mask.shape
        real = (torch.arange(target_length) < num_patches).expand(batch, tiles, -1).flatten(1)
        mask = torch.where(real, 0.0, torch.finfo(dtype).min).to(dtype)
        return mask[:, None, None].expand(-1, 1, mask.shape[1], -1)

    monkeypatch.setattr(modeling_mllama, "_prepare_aspect_ratio_attention_mask", key_mask)
    config = MllamaVisionConfig(
        hidden_size=32,
        num_hidden_layers=5,
        num_global_layers=2,
        attention_heads=4,
        intermediate_size=128,
        image_size=16,
        patch_size=4,
        vision_output_dim=128,
        intermediate_layers_indices=[0, 2, 3],
        max_num_tiles=4,
    )
    theirs, ours = MllamaVisionModel(config).eval(), _encoder()
    state = theirs.state_dict()
    mapped = {name: state.pop(_from_ours(name)).reshape(tensor.shape) for name, tensor in ours.state_dict().items()}
    assert not state, f"weights of theirs that ours has not: {list(state)}"
    for name, tensor in mapped.items():
        if name.endswith("gate"):
            tensor.fill_(0.6)  # in place: both models share it
    ours.load_state_dict(mapped)
    grids = [(2, 2), (1, 4), (4, 1)]
    tiles, owners, places = _tiles(ours, grids)
    ids = torch.tensor([[TINY.grids.index(grid) + 1] for grid in grids])
    with torch.no_grad():
        expected = theirs(tiles.unflatten(0, (3, 1, 4)), ids, torch.ones(3, 1, 4, dtype=torch.long)).last_hidden_state
        features = ours(tiles, owners, places)
    torch.testing.assert_close(features, expected.flatten(0, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pixels", "millions"), [(448, 836), (560, 864)])
def test_the_papers_tower_has_the_papers_size(pixels: int, millions: int):
    with torch.device("meta"):
        encoder = ImageEncoder(
            ImageEncoderConfig(
                name="llama-vision", layers=(4, 8, 16, 24, 31, "final"), pixels=pixels, tiles=4, global_layers=8
            )
        )
    assert round(sum(weight.numel() for weight in encoder.parameters()) / 1e6) == millions
    assert encoder.width == 7680
    assert encoder.per_tile == (pixels // 14) ** 2 + 1


def test_a_picture_gives_the_same_alone_and_among_others():
    encoder = _encoder()
    grids = [(1, 2), (1, 1), (2, 1), (3, 1), (1, 2)]
    tiles, owners, places = _tiles(encoder, grids)
    together = encoder(tiles, owners, places)
    for picture, grid in enumerate(grids):
        own = owners == picture
        torch.testing.assert_close(together[own], encoder(tiles[own], owners[own], encoder.places(grid)))


def test_how_tiles_lie_makes_a_difference():
    encoder = _encoder()
    tiles, owners, places = _tiles(encoder, [(1, 2)])
    assert not torch.allclose(encoder(tiles, owners, places), encoder(tiles, owners, encoder.places((2, 1))))


def test_a_picture_of_one_tile_needs_no_places_and_one_of_several_does():
    encoder = _encoder()
    tiles, owners, places = _tiles(encoder, [(1, 1), (1, 1)])
    assert torch.equal(encoder(tiles, owners), encoder(tiles, owners, places))
    with pytest.raises(ValueError, match="needs their places"):
        encoder(tiles, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="do not agree with the tiles"):
        encoder(tiles, owners, encoder.places((1, 2)))


def test_recomputing_blocks_changes_no_gradient():
    encoder = _encoder()
    encoder.tower.requires_grad_(True)
    tiles, owners, places = _tiles(encoder, [(1, 2), (1, 1)])
    upstream = torch.randn(3, encoder.per_tile, encoder.width)
    gradients = []
    for recompute in (False, True):
        encoder.tower.recompute = recompute
        encoder.zero_grad()
        (encoder(tiles, owners, places) * upstream).sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in encoder.named_parameters()})
    assert all(torch.allclose(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_more_tiles_than_there_are_embeddings_for_are_refused():
    with pytest.raises(ValueError, match=r"tiles \(6\) must be at most 4"), torch.device("meta"):
        ImageEncoder(ImageEncoderConfig(name="llama-vision", tiles=6))
