import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from encoders import SpeechEncoderConfig
from multimodal import Audio, load
from multimodal.data.loader import LoaderConfig
from multimodal.data.shards import write_shard
from multimodal.data.speech import SpeechData
from multimodal.settings import from_json, to_json
from multimodal.training import TrainingConfig
from recipes.eval_asr import Config as EvalConfig
from recipes.eval_asr import main as evaluate
from recipes.speech_adapter import PRESETS, Config, StartConfig, main
from tests.encoders import speech_making
from tests.lives import Lives
from tests.multimodal import hearing, tiny

STEPS, START = 10, 40
WORDS = ("ann", "bob", "cat", "dog", "eve", "fan", "gag", "hat")


@pytest.fixture(autouse=True)
def _one_accelerator_a_test() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    server = Lives(Path(__file__).with_name("speech_lives.py"), tmp_path_factory.mktemp("lives") / "stderr")
    yield server
    server.close()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of seconds: recordings of a word each, one that is broken, and a dialogue."""
    folder = tmp_path_factory.mktemp("toy")
    samples: list[dict] = [
        {"__key__": f"{i}", "wav": hearing.wav(i, 0.3 + 0.1 * (i % 3)), "json": json.dumps({"text": word})}
        for i, word in enumerate(WORDS)
    ]
    samples.append({"__key__": "talk", "wav": hearing.wav(99), "json": json.dumps({"text": "hi", "reply": "ho"})})
    samples.append({"__key__": "wrong", "wav": b"no sound", "txt": "broken"})
    (folder / "train").mkdir()
    write_shard(folder / "train/shard.tar", samples)
    return Config(
        text=str(tiny.text_folder(folder / "text")),
        precision="float32",
        encoder=SpeechEncoderConfig(name=f"hf/{speech_making.whisper(folder / 'whisper')}"),
        adapter=replace(hearing.ADAPTER, dropout=0.1),
        data=SpeechData(
            train=(str(folder / "train"),),
            batch=4,
            bucket=2,
            cache=str(folder / "features"),
            masks=0.2,
            reading=LoaderConfig(workers=0, max_bad_share=0.3),
        ),
        start=StartConfig(steps=START, batch=4, pieces=1, warm_up=2, learning_rate=1e-2),
        training=TrainingConfig(learns=((r"adapters\.speech\..*", 1.0),), steps=STEPS, warm_up=2, learning_rate=1e-2),
        save_every=3,
    )


@pytest.fixture(scope="module")
def finished(toy: Config, lives: Lives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never disturbed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert lives.run(args=words(toy, out)) == [0], lives.errors()
    return out


def words(config: Config, out: Path, *more: Any) -> list[str]:
    file = out.parent / f"{out.name}.json"
    file.write_text(to_json(config))
    return ["--config", str(file), "--out", str(out), *map(str, more)]


def same(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(run / "adapters.speech.safetensors") for run in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def losses(run: Path, course: str = "") -> list[float]:
    file = run / (f"metrics-{course}.jsonl" if course else "metrics.jsonl")
    return [json.loads(line)["loss"] for line in file.read_text().splitlines()]


def test_a_toy_run_learns_in_both_courses_and_its_folder_hears(toy: Config, tmp_path: Path) -> None:
    out = tmp_path / "run"
    main(replace(toy, out=str(out)))
    for course, steps in (("start", START), ("", STEPS)):
        found = losses(out, course)
        assert len(found) == steps
        assert sum(found[-3:]) < 0.9 * sum(found[:3]), course
    about = json.loads((out / "training.json").read_text())
    assert about["left_out"].keys() == {"not_cached"}
    assistant = load(out)
    [text] = assistant.transcribe([Audio(hearing.noise(1), hearing.RATE)])
    assert isinstance(text, str)
    adapter = assistant.model.adapters["speech"]
    assert about["trained_parameters"] == sum(weight.numel() for weight in adapter.parameters())


def test_a_run_killed_in_either_course_goes_on_bit_for_bit(
    toy: Config, lives: Lives, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for file, resume in (("metrics-start.jsonl", ()), ("metrics.jsonl", ("--resume",))):
        (pid,) = lives.begin(args=words(toy, out, *resume))
        while not ((out / file).is_file() and (out / file).read_text().count("\n") >= 4):
            time.sleep(0.002)
        os.kill(pid, signal.SIGTERM)
        assert lives.end() == [143], lives.errors()
        assert not (out / "training.json").exists()
    assert lives.run(args=words(toy, out, "--resume")) == [0], lives.errors()
    assert same(out, finished)
    assert losses(out) == losses(finished)
    assert losses(out, "start") == losses(finished, "start")


def test_workers_change_nothing(toy: Config, finished: Path, lives: Lives, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert lives.run(args=words(toy, out, "--data.reading.workers", 2)) == [0], lives.errors()
    assert same(out, finished)


def test_recordings_encoded_as_they_come_give_the_same_up_to_the_caches_rounding(toy: Config, tmp_path: Path) -> None:
    short = replace(
        toy, start=StartConfig(), training=replace(toy.training, steps=2), data=replace(toy.data, masks=0.0)
    )
    short = replace(short, adapter=replace(toy.adapter, dropout=0.0))
    main(replace(short, out=str(tmp_path / "cached")))
    AcceleratorState._reset_state(reset_partial_state=True)
    main(replace(short, out=str(tmp_path / "heard"), data=replace(short.data, cache="")))
    assert losses(tmp_path / "heard") == pytest.approx(losses(tmp_path / "cached"), rel=0.05)


def test_an_encoder_that_learns_is_saved_with_the_run(toy: Config, tmp_path: Path) -> None:
    learns = ((r"encoders\.speech\..*", 0.1), (r"adapters\.speech\..*", 1.0))
    training = replace(toy.training, learns=learns, steps=2)
    main(replace(toy, out=str(tmp_path / "run"), training=training, data=replace(toy.data, cache=""), distil=0.5))
    assert (tmp_path / "run" / "encoders.speech.safetensors").is_file()
    assert load(tmp_path / "run").transcribe([Audio(hearing.noise(1), hearing.RATE)]) != []


def test_another_config_cannot_be_resumed(toy: Config, finished: Path) -> None:
    other = replace(toy, out=str(finished), resume=True, start=replace(toy.start, learning_rate=1.0))
    with pytest.raises(SystemExit, match=r"begun with start\.learning_rate 0\.01, not 1\.0"):
        main(other)


def test_a_run_is_scored_with_its_controls_and_reported(
    finished: Path, toy: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hearing.shard(tmp_path / "test", WORDS, speaker="ann")
    evaluate(EvalConfig(run=str(finished), shards=str(tmp_path / "test"), whisper="", publish=str(tmp_path / "docs")))
    result = json.loads((tmp_path / "docs" / "asr.json").read_text())
    assert result["n"] == 8
    assert {"wer", "cer", "insertions", "deletions", "substitutions"} == result["metrics"].keys()
    assert result["controls"].keys() == {"wrong_medium", "no_medium"}
    assert result["metadata"]["by_speaker"]["ann"]["n"] == 8
    page = (finished / "report.html").read_text()
    assert page.count("<audio controls") == 14
    assert "media-src data:" in page


def test_every_preset_is_a_config_that_goes_to_json_and_back() -> None:
    for name, preset in PRESETS.items():
        assert from_json(Config, to_json(preset), name=name) == preset


def test_the_papers_presets_have_the_papers_figures() -> None:
    small, large = PRESETS["llama3-8b"], PRESETS["llama3-70b"]
    assert (small.training.steps, small.data.batch, small.training.learning_rate) == (650_000, 512, 1e-4)
    assert (large.training.steps, large.data.batch, large.training.learning_rate) == (600_000, 768, 4e-5)
    assert (small.adapter.width, small.adapter.feed_forward, small.adapter.stack) == (3072, 4096, 1)
    assert small.start.steps == 0
