import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from encoders import BestRQConfig, Conformer, ConformerConfig, SpeechEncoder, SpeechEncoderConfig
from multimodal.data.loader import LoaderConfig
from multimodal.settings import from_json, to_json
from multimodal.training import TrainingConfig
from recipes.speech_encoder import PRESETS, Config, ListeningData, main
from tests.multimodal import hearing

TEXTS = [f"line {i}" for i in range(12)]


@pytest.fixture(autouse=True)
def _one_accelerator_a_test() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def toy(tmp_path: Path) -> Config:
    for number, name in enumerate(("ann", "bob")):
        hearing.shard(tmp_path / name, TEXTS[number:], speaker=name)
    folders = tuple(str(tmp_path / name) for name in ("ann", "bob"))
    return Config(
        encoder=ConformerConfig(width=16, layers=1, heads=2, feed_forward=24),
        best_rq=BestRQConfig(codebooks=2, codes=8, code_width=4, span=8, start=0.1),
        data=ListeningData(train=folders, test=folders, batch=4, bucket=2, reading=LoaderConfig(workers=0)),
        training=TrainingConfig(learns=((r".*", 1.0),), steps=8, warm_up=1, learning_rate=3e-3),
        precision="float32",
        out=str(tmp_path / "run"),
        save_every=3,
    )


def test_a_toy_run_learns_to_guess_and_its_folder_is_an_encoder(toy: Config) -> None:
    main(toy)
    out = Path(toy.out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert all({"right", "codes_used", "codes_used_least"} <= line.keys() for line in lines)
    assert all(1 <= line["codes_used"] <= 8 for line in lines)
    assert sum(line["loss"] for line in lines[-3:]) < sum(line["loss"] for line in lines[:3])
    about = json.loads((out / "training.json").read_text())
    assert about["probe"].keys() == about["probe_untrained"].keys() == {"speaker_accuracy", "majority", "n"}
    encoder = SpeechEncoder(SpeechEncoderConfig(name=f"conformer/{out}"))
    heard = encoder.prepare(torch.from_numpy(hearing.noise(1)))
    assert encoder(heard, torch.tensor([len(heard)]))[0].shape == (10, 16)


def test_a_resumed_run_is_the_run_that_was_not_disturbed(toy: Config, tmp_path: Path) -> None:
    main(toy)
    half = replace(toy, out=str(tmp_path / "half"))
    main(half)
    # As if it had been killed after step 6: the newest state is gone, the folder is not finished.
    import shutil

    AcceleratorState._reset_state(reset_partial_state=True)
    shutil.rmtree(tmp_path / "half/state/step-00000008")
    (tmp_path / "half/training.json").unlink()
    main(replace(half, resume=True))
    one, other = ((Path(run) / "conformer.safetensors").read_bytes() for run in (toy.out, half.out))
    assert one == other


def test_a_folder_without_a_conformer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no Conformer"):
        SpeechEncoder(SpeechEncoderConfig(name=f"conformer/{tmp_path}"))


def test_the_papers_preset_has_the_papers_figures() -> None:
    paper = PRESETS["paper"]
    assert (paper.training.steps, paper.data.batch) == (500_000, 2048)
    assert (paper.best_rq.codebooks, paper.best_rq.codes, paper.best_rq.code_width) == (16, 8192, 16)
    assert (paper.best_rq.span, paper.best_rq.start, paper.best_rq.longest) == (32, 0.025, 6000)
    with torch.device("meta"):
        assert sum(weight.numel() for weight in Conformer(paper.encoder).parameters()) > 0.99e9
    assert from_json(Config, to_json(paper), name="paper") == paper
