"""Models of the kit: whole folders that say what they were made of, and the same network after the conversion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from multimodal.data.kit.fetch import CannotFetchError
from multimodal.data.kit.kit import MODELS, TEXT, prepare_kit
from multimodal.data.kit.models import is_made, make_encoder
from multimodal.data.kit.packages import PACKAGES
from tests.multimodal.data.kit_making import Client, archive, package

PIN = package(archive({}))


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    """EfficientNet-lite0's tensors in its order, under names of another library."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    return {
        f"_blocks.{number}.{key.split('.')[-1]}": value
        for number, (key, value) in enumerate(model.state_dict().items())
    }


def test_the_encoder_is_the_same_network_under_timms_names(tmp_path: Path, theirs: dict[str, torch.Tensor]) -> None:
    import timm

    source = tmp_path / "package"
    source.mkdir()
    torch.save(theirs, source / "lite0.pth")
    out = make_encoder(PIN, source, tmp_path / "models/lite0")
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert all(torch.equal(one, two) for one, two in zip(model.state_dict().values(), theirs.values(), strict=True))
    assert tuple(model.pretrained_cfg["mean"]) == tuple(model.pretrained_cfg["std"]) == (0.5, 0.5, 0.5)
    told = json.loads((out / "kit.json").read_text())
    assert told["sha256"] == PIN.sha256
    assert len(told["weights"]) == 64
    # Made once: the package may go.
    (source / "lite0.pth").unlink()
    assert make_encoder(PIN, source, out) == out


def test_weights_of_another_network_are_refused(tmp_path: Path, theirs: dict[str, torch.Tensor]) -> None:
    torch.save(dict(list(theirs.items())[:-1]), tmp_path / "lite0.pth")
    with pytest.raises(ValueError, match="tensors that are not tf_efficientnet_lite0's"):
        make_encoder(PIN, tmp_path, tmp_path / "out")
    assert not is_made(PIN, tmp_path / "out")


def test_a_folder_of_another_pin_counts_as_not_made(tmp_path: Path) -> None:
    (tmp_path / "kit.json").write_text(json.dumps({"sha256": "0" * 64}))
    assert not is_made(PIN, tmp_path)


def test_too_little_to_train_with_is_one_error_that_names_all_of_it(tmp_path: Path) -> None:
    with pytest.raises(CannotFetchError) as error:
        prepare_kit(tmp_path, say=lambda line: None, client=Client({}))
    for one in PACKAGES:
        assert one.name in str(error.value)


@pytest.mark.slow
def test_the_real_text_model_knows_its_language() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path("downloads/models") / MODELS[TEXT]
    if not (folder / "kit.json").is_file():
        pytest.skip("the kit is not here; `python -m multimodal.data.kit` makes it")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16)
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    said = model.generate(**tokens, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0])
