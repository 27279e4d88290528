import json
from pathlib import Path

import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from encoders import ImageEncoder, ImageEncoderConfig, to_tiles

VIT = "test_vit"
CNN = "test_efficientnet"
WANTS = {
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 3,
    "size": {"height": 32, "width": 32},
}


def _encoder(name: str, **options) -> ImageEncoder:
    return ImageEncoder(ImageEncoderConfig(**{"name": name, "weights": "random", **options}))


def _features(encoder: ImageEncoder, count: int = 2) -> Tensor:
    side = encoder.preprocess.size
    return encoder(torch.randn(count, 3, side, side), torch.arange(count))


def _hugging_face(model: torch.nn.Module, folder: Path) -> str:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(WANTS))
    return f"hf/{folder}"


def _tiny(kind: type, **options):
    return kind(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        **options,
    )


def test_layers_of_a_timm_transformer_are_counted_in_blocks_run():
    encoder = _encoder(f"timm/{VIT}", layers=(2, "final", 5))
    model = encoder.tower.model
    side, width = encoder.preprocess.size, encoder.width // 3
    tiles = torch.randn(2, 3, side, side)
    seen: dict[int, Tensor] = {}
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda module, given, out, number=number: seen.update({number: out}))
    features = encoder(tiles, torch.arange(2))
    assert features.shape == (2, encoder.per_tile, encoder.width)
    for at, expected in enumerate((seen[2], model.forward_features(tiles), seen[5])):
        torch.testing.assert_close(features[..., at * width : (at + 1) * width], expected)


def test_convolutional_stages_lie_on_the_final_grid():
    encoder = _encoder(f"timm/{CNN}", layers=(3, "final"))
    model, side = encoder.tower.model, encoder.preprocess.size
    tiles = torch.randn(2, 3, side, side)
    final, (third,) = model.forward_intermediates(tiles, indices=[2])
    h, w = final.shape[-2:]
    pooled = torch.nn.functional.adaptive_avg_pool2d(third, (h, w))
    expected = torch.cat([pooled, final], dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(tiles, torch.arange(2)), expected, rtol=1e-4, atol=1e-4)
    assert encoder.per_tile == h * w
    assert encoder.tower.whole == 0


def test_pooled_adds_mean_and_root_mean_square_of_the_patches():
    encoder = _encoder(f"timm/{CNN}", pooled=True)
    features = _features(encoder)
    assert (features.shape[1], encoder.whole) == (encoder.per_tile, 2)
    torch.testing.assert_close(features[:, 0], features[:, 2:].mean(1))
    torch.testing.assert_close(features[:, 1], features[:, 2:].square().mean(1).sqrt())


def test_registers_are_left_out():
    encoder = _encoder("timm/test_vit2", pixels=64)
    model = encoder.tower.model
    assert (model.num_reg_tokens, encoder.tower.whole) == (1, 0)
    tiles = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(tiles, torch.arange(2)), model.forward_features(tiles)[:, 1:])


@pytest.mark.parametrize("kind", [(ViTConfig, ViTModel), (Dinov2Config, Dinov2Model)])
def test_layers_of_a_hugging_face_transformer_are_counted_in_blocks_run(tmp_path: Path, kind):
    model = kind[1](_tiny(kind[0])).eval()
    encoder = ImageEncoder(ImageEncoderConfig(name=_hugging_face(model, tmp_path), layers=(1, "final")))
    tiles = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out = model(tiles, output_hidden_states=True)
    features = encoder(tiles, torch.arange(2))
    torch.testing.assert_close(features, torch.cat([out.hidden_states[1], out.last_hidden_state], -1))
    assert encoder.tower.whole == 1
    assert encoder.tower.grid == (4, 4)
    assert encoder.preprocess.mean == (0.1, 0.2, 0.3)
    assert encoder.preprocess.interpolation == "bicubic"


def test_other_sizes_than_the_trained_one_work_in_both_libraries(tmp_path: Path):
    folder = _hugging_face(ViTModel(_tiny(ViTConfig)), tmp_path)
    encoder = ImageEncoder(ImageEncoderConfig(name=folder, pixels=48))
    assert _features(encoder).shape == (2, 1 + 36, 16)
    small = _encoder(f"timm/{VIT}", pixels=64)
    assert _features(small).shape[1] == small.per_tile == small.tower.whole + 16


def test_the_vision_half_of_a_two_sided_model_and_a_convolutional_one_load(tmp_path: Path):
    vision = {**_tiny(ViTConfig).to_dict(), "model_type": "clip_vision_model", "projection_dim": 8}
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 50,
    }
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
    encoder = ImageEncoder(ImageEncoderConfig(name=_hugging_face(clip, tmp_path / "clip"), layers=(2,)))
    assert _features(encoder).shape == (2, 17, 16)
    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    encoder = ImageEncoder(
        ImageEncoderConfig(name=_hugging_face(resnet, tmp_path / "resnet"), pixels=64, layers=(1, "final"))
    )
    assert _features(encoder).shape == (2, 64, 24)


def test_weights_come_from_a_timm_folder_and_from_a_file(tmp_path: Path):
    model = timm.create_model(CNN, pretrained=False)
    own = {"input_size": [3, 96, 96], "classifier": "classifier", "num_classes": 1000}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": CNN, "pretrained_cfg": own}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for name, weights in ((CNN, tmp_path), (CNN, tmp_path / "model.safetensors"), (tmp_path, None)):
        config = ImageEncoderConfig(name=f"timm/{name}", weights=weights and str(weights))
        loaded = ImageEncoder(config).tower.model.state_dict()
        assert all(torch.equal(model.state_dict()[key], value) for key, value in loaded.items())
    assert ImageEncoder(ImageEncoderConfig(name=f"timm/{tmp_path}")).preprocess.size == 96
    with pytest.raises(ValueError, match="holds weights of 'test_efficientnet', but the encoder is 'test_vit'"):
        ImageEncoder(ImageEncoderConfig(name=f"timm/{VIT}", weights=str(tmp_path)))
    with pytest.raises(ValueError, match="does not fit"):
        ImageEncoder(ImageEncoderConfig(name=f"timm/{VIT}", weights=str(tmp_path / "model.safetensors")))


def test_what_is_not_there_is_refused_in_words(tmp_path: Path):
    for name, message in (
        ("resnet", "no image encoder 'resnet'"),
        ("timm/no_such_model", "timm cannot make 'no_such_model'"),
        (f"hf/{tmp_path}", "cannot be loaded as a Hugging Face vision model"),
        ("llama-vision", "names no weights"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageEncoder(ImageEncoderConfig(name=name, pixels=28 if name == "llama-vision" else 0))
    with pytest.raises(ValueError, match=r"layers \(99\) must be 'final' or lie between 1 and"):
        _encoder(f"timm/{CNN}", layers=(99,))
    with pytest.raises(ValueError, match="add 'final'"):
        ImageEncoderConfig(layers=(1,), global_layers=2)


def test_a_frozen_tower_stays_in_evaluation_mode_and_an_opened_one_learns():
    encoder = _encoder(f"timm/{CNN}", global_layers=1).train()
    assert not any(module.training for module in encoder.tower.modules())
    assert encoder.global_layers is not None
    assert encoder.global_layers.training
    assert {name.split(".")[0] for name, weight in encoder.named_parameters() if weight.requires_grad} == {
        "global_layers"
    }
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    _features(encoder)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    encoder.tower.requires_grad_(True)
    encoder.train()
    assert encoder.tower.training
    features = _features(encoder, 4)
    (features * torch.randn_like(features)).sum().backward()
    assert all(weight.grad is not None for weight in encoder.tower.parameters())


def test_new_global_layers_change_no_feature():
    plain = _encoder(f"timm/{CNN}", layers=("final", 2))
    topped = ImageEncoder(ImageEncoderConfig(layers=("final", 2), global_layers=2, weights="random"), tower=plain.tower)
    tiles, pictures = torch.randn(3, 3, plain.tower.side, plain.tower.side), torch.tensor([0, 0, 1])
    assert torch.equal(plain(tiles, pictures), topped(tiles, pictures))


def test_a_frozen_convolutional_tower_is_folded_and_keeps_its_state():
    encoder = _encoder(f"timm/{CNN}")
    for module in encoder.tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    tiles = torch.randn(2, 3, encoder.tower.side, encoder.tower.side)
    names, state = list(encoder.state_dict()), torch.get_rng_state()
    features = encoder(tiles, torch.arange(2))
    expected = encoder.tower.model.forward_features(tiles).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    fast = encoder.tower._folded[1]
    assert fast is not encoder.tower.model
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    assert list(encoder.state_dict()) == names
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_weights_give_the_same_features_after_they_were_changed():
    encoder, other = _encoder(f"timm/{CNN}"), _encoder(f"timm/{CNN}")
    tiles = torch.randn(2, 3, encoder.tower.side, encoder.tower.side)
    assert not torch.allclose(encoder(tiles, torch.arange(2)), other(tiles, torch.arange(2)))
    encoder.load_state_dict(other.state_dict())
    assert torch.equal(encoder(tiles, torch.arange(2)), other(tiles, torch.arange(2)))


def test_places_are_centres_on_the_whole_canvas_tile_by_tile():
    encoder = _encoder(f"timm/{VIT}", pooled=True, tiles=4)
    places = encoder.places((2, 1))
    assert places.shape == (2 * encoder.per_tile, 3)
    upper, lower = places.unflatten(0, (2, -1))
    whole = encoder.whole
    assert upper[:whole].eq(torch.tensor([0.25, 0.5, 1])).all()
    assert lower[:whole].eq(torch.tensor([0.75, 0.5, 1])).all()
    high, wide = encoder.tower.grid
    torch.testing.assert_close(upper[whole], torch.tensor([0.25 / high, 0.5 / wide, 0]))
    torch.testing.assert_close(lower[-1], torch.tensor([1 - 0.25 / high, 1 - 0.5 / wide, 0]))
    torch.testing.assert_close(lower[:, 0], upper[:, 0] + 0.5)


def test_preprocessing_is_the_encoders_own():
    encoder = _encoder(f"timm/{CNN}")
    wants = timm.data.resolve_data_config(model=encoder.tower.model)
    assert encoder.preprocess.mean == wants["mean"]
    assert encoder.preprocess.fit == "squash"
    assert _encoder(f"timm/{CNN}", tiles=4).preprocess.fit == "tile"
    white = to_tiles(PIL.Image.new("RGB", (50, 90), (255, 255, 255)), encoder.preprocess)
    expected = (1 - torch.tensor(wants["mean"])) / torch.tensor(wants["std"])
    torch.testing.assert_close(white.pixels[0, :, 0, 0], expected)


def test_on_the_meta_device_nothing_is_read():
    with torch.device("meta"):
        encoder = ImageEncoder(ImageEncoderConfig(name=f"timm/{CNN}", weights="not/there.safetensors"))
    assert all(weight.is_meta for weight in encoder.parameters())
