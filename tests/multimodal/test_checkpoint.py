import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multimodal import load
from multimodal.checkpoint import (
    check_encoder,
    describe,
    load_weights,
    read_parts,
    read_settings,
    save_parts,
    save_weights,
    text_fingerprint,
)
from multimodal.modality import Image
from multimodal.model import MultimodalModel
from multimodal.training.learns import open_parameters
from tests.multimodal import tiny
from tests.multimodal.tiny import mixed


@pytest.fixture
def run(model: MultimodalModel, text_folder: Path, tmp_path: Path) -> Path:
    """A run of the tiny composition, as a recipe leaves it."""
    folder = tmp_path / "run"
    save_parts(folder, describe(model, text=str(text_folder), caption_prompt="Seen:"))
    save_weights(folder, model)
    return folder


def edit(file: Path, change) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def test_what_was_saved_gives_the_same_logits(run: Path, model: MultimodalModel) -> None:
    loaded = load(run)
    assert loaded.caption_prompt == "Seen:"
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    batch = mixed(model)
    with torch.no_grad():
        assert torch.equal(loaded.model(batch, every_position=True), model(batch, every_position=True))


def test_a_run_holds_the_adapter_and_nothing_of_text_and_encoder(run: Path, model: MultimodalModel) -> None:
    assert sorted(path.name for path in run.iterdir()) == ["adapters.image.safetensors", "parts.json"]
    assert load_file(run / "adapters.image.safetensors").keys() == model.adapters["image"].state_dict().keys()


def test_what_of_an_encoder_learned_is_saved_with_the_run(run: Path, model: MultimodalModel, tmp_path: Path) -> None:
    open_parameters(model, ((r"encoders\.image\.tower\.model\.conv_head\..*", 1.0), (r"adapters\..*", 1.0)))
    learned = next(weight for weight in model.encoders.parameters() if weight.requires_grad)
    learned.data += 1
    save_weights(run, model)
    other = tiny.composed(tmp_path / "eye")
    load_weights(run, other)
    assert all(
        torch.equal(weight, model.state_dict()[name])
        for name, weight in other.state_dict().items()
        if "text" not in name
    )


def test_an_encoder_that_learned_loads_with_its_run(model: MultimodalModel, text_folder: Path, tmp_path: Path) -> None:
    """Its fingerprint is that of what it has become."""
    open_parameters(model, ((r"encoders\.image\.tower\.model\.conv_head\..*", 1.0), (r"adapters\..*", 1.0)))
    next(weight for weight in model.encoders.parameters() if weight.requires_grad).data += 1
    folder = tmp_path / "run"
    save_weights(folder, model)
    save_parts(folder, describe(model, text=str(text_folder), caption_prompt=""))
    loaded = load(folder).model.encoders["image"].state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in model.encoders["image"].state_dict().items())


def test_another_backbone_is_refused_with_both_fingerprints(run: Path, tmp_path: Path) -> None:
    other = tiny.text_folder(tmp_path / "other", seed=7)
    theirs, ours = read_parts(run).text_fingerprint[:8], text_fingerprint(tiny.text_model(7))[:8]
    with pytest.raises(
        ValueError, match=f"trained on backbone {theirs}, this one is {ours}; pass allow_other_backbone"
    ):
        load(other, adapters=[run])
    composed = load(other, adapters=[run], allow_other_backbone=True)
    assert composed.reply([Image(tiny.photo()), "hm"], max_new=4) is not None


def test_the_backbone_is_the_same_in_every_dtype(run: Path) -> None:
    """Weights that were bfloat16 in their files may be loaded in float32, and the other way round."""
    model = tiny.text_model().to(torch.bfloat16)
    assert text_fingerprint(model) == text_fingerprint(model.float())
    assert load(run, dtype=torch.bfloat16).model.text.model.norm.weight.dtype == torch.bfloat16


def test_another_encoder_is_refused_with_both_fingerprints(run: Path, tmp_path: Path) -> None:
    other = tiny.eye(tmp_path / "other", seed=9).name
    edit(
        run / "parts.json",
        lambda parts: parts | {"image": parts["image"] | {"encoder": parts["image"]["encoder"] | {"name": other}}},
    )
    with pytest.raises(ValueError, match=r"was trained on image encoder [0-9a-f]{8} .*, this one is [0-9a-f]{8}"):
        load(run)


def test_weights_of_another_shape_or_name_are_refused_by_name(run: Path, model: MultimodalModel) -> None:
    file = run / "adapters.image.safetensors"
    weights = load_file(file)
    save_file({**weights, "placeholder": torch.zeros(3)}, file)
    with pytest.raises(
        ValueError, match=r"adapters\.image\.safetensors does not fit .*\['placeholder'\], missing \[\]"
    ):
        load(run)
    save_file(
        {name: weight for name, weight in weights.items() if name != "placeholder"} | {"new": torch.zeros(1)}, file
    )
    with pytest.raises(ValueError, match=r"\['new'\], missing \['placeholder'\]"):
        load(run)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match="cannot be read"):
        load(run)
    file.unlink()
    with pytest.raises(
        ValueError, match=r"holds no trained image adapter \(adapters\.image\.safetensors is not there\)"
    ):
        load(run)


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path, text_folder: Path, run: Path) -> None:
    with pytest.raises(ValueError, match=r"parts\.json is not there; a run's folder holds one"):
        load(text_folder, adapters=[tmp_path])
    with pytest.raises(ValueError, match=r"is a run; to add adapters, load its backbone: load\("):
        load(run, adapters=[run])
    with pytest.raises(ValueError, match="two runs bring an image adapter"):
        load(text_folder, adapters=[run, run])


def test_a_check_of_the_encoder_passes_on_its_own(run: Path, model: MultimodalModel) -> None:
    image = read_parts(run).image
    assert image is not None
    check_encoder(run, image, model.encoders["image"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="was trained on image encoder 41ab"):
        check_encoder(run, replace(image, encoder_fingerprint="41ab"), model.encoders["image"])  # type: ignore[arg-type]


def test_settings_are_those_of_the_recipe(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"out": "x"}')
    assert read_settings(tmp_path) == {"out": "x"}
