"""The paper's sizes, on a device without memory: names, shapes, what learns, how many parameters."""

import pytest
import torch

from multimodal.model import MultimodalModel
from multimodal.training import open_parameters
from recipes.image_adapter import PRESETS, build
from text_backbone import TextBackbone
from text_backbone.config import PRESETS as TEXTS


def on_meta(preset: str, text: str) -> MultimodalModel:
    with torch.device("meta"):
        return build(PRESETS[preset], TextBackbone(TEXTS[text]))


def count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(
    ("preset", "text", "blocks", "billions"),
    [("llama3-8b", "llama3.1-8b", 8, 1.745), ("llama3-70b", "llama3.1-70b", 20, 17.1)],
)
def test_the_adapter_has_the_papers_blocks_and_parameters(preset, text, blocks, billions) -> None:
    model = on_meta(preset, text)
    adapter = model.adapters["image"]
    assert adapter.config.at == tuple(range(3, 4 * blocks, 4))
    assert count(adapter.blocks) == pytest.approx(billions * 1e9, rel=2e-3)
    assert adapter.config.features == 7680


@pytest.mark.parametrize(("pixels", "millions"), [(448, 836), (560, 864)])
def test_the_encoder_has_the_papers_parameters_at_both_resolutions(pixels, millions) -> None:
    from dataclasses import replace

    from encoders import ImageEncoder

    with torch.device("meta"):
        encoder = ImageEncoder(replace(PRESETS["llama3-8b-annealing"].encoder, pixels=pixels))
    assert count(encoder) == pytest.approx(millions * 1e6, rel=1e-3)


@pytest.mark.parametrize("preset", ["llama3-8b", "llama3-8b-annealing"])
def test_encoder_and_adapter_learn_and_the_text_model_does_not(preset) -> None:
    model = on_meta(preset, "llama3.1-8b")
    open_parameters(model, PRESETS[preset].training.learns)
    learning = {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning == {"encoders", "adapters"}
    assert not any(weight.requires_grad for weight in model.text.parameters())


def test_the_learning_rates_batches_and_tiles_are_the_papers() -> None:
    initial, annealing = PRESETS["llama3-8b"], PRESETS["llama3-8b-annealing"]
    assert initial.data.batch == annealing.data.batch == 16_384
    assert (initial.training.learning_rate, annealing.training.learning_rate) == (1e-3, 2e-5)
    assert initial.training.weight_decay == 0.01
    assert (initial.encoder.tiles, initial.encoder.pixels) == (4, 336)
    assert annealing.begin == initial.out
