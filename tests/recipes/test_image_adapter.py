import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from multimodal import Image, load
from multimodal.data.loader import LoaderConfig
from multimodal.data.pictures import PictureData
from multimodal.data.shards import write_shard
from multimodal.data.tolerance import TooManyBadSamples
from multimodal.settings import to_json
from multimodal.training import TrainingConfig
from recipes.image_adapter import PRESETS, Config, main
from tests.lives import Lives
from tests.multimodal import tiny

LEARNS = ((r"adapters\.image\.placeholder", 0.0), (r"adapters\.image\..*", 1.0))
STEPS = 12


@pytest.fixture(autouse=True)
def _one_accelerator_a_test() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    server = Lives(Path(__file__).with_name("adapter_lives.py"), tmp_path_factory.mktemp("lives") / "stderr")
    yield server
    server.close()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of seconds: pictures with captions, a conversation without a picture, a sample that is broken."""
    folder = tmp_path_factory.mktemp("toy")
    samples: list[dict] = [
        {"__key__": f"{n:02d}", "png": tiny.png(n), "txt": f"number {'abcdefghijklmn'[n]}"} for n in range(14)
    ]
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    samples.append({"__key__": "talk", "json": json.dumps({"messages": turns})})
    samples.append({"__key__": "wrong", "png": b"no picture", "txt": "broken"})
    write_shard(folder / "train.tar", samples)
    return Config(
        text=str(tiny.text_folder(folder / "text")),
        precision="float32",
        encoder=tiny.eye(folder / "eye"),
        adapter=replace(tiny.ADAPTER, noise=0.1),
        data=PictureData(
            train=(str(folder / "train.tar"),),
            batch=4,
            cache=str(folder / "features"),
            reading=LoaderConfig(workers=0, max_bad_share=0.2),
        ),
        training=TrainingConfig(learns=LEARNS, steps=STEPS, warm_up=2, learning_rate=1e-2),
        save_every=3,
    )


@pytest.fixture(scope="module")
def finished(toy: Config, lives: Lives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never disturbed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert lives.run(args=words(toy, out)) == [0], lives.errors()
    return out


def words(config: Config, out: Path, *more: Any) -> list[str]:
    """The command line of a run into `out`."""
    file = out.parent / f"{out.name}.json"
    file.write_text(to_json(config))
    return ["--config", str(file), "--out", str(out), *map(str, more)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapters.image.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_toy_run_learns_and_its_folder_answers(toy: Config, tmp_path: Path) -> None:
    out = tmp_path / "run"
    main(replace(toy, out=str(out)))
    found = losses(out)
    assert len(found) == STEPS
    assert sum(found[-3:]) < 0.9 * sum(found[:3])
    about = json.loads((out / "training.json").read_text())
    assert about["steps"] == STEPS
    assert about["left_out"] == {"not_cached": 3}
    assistant = load(out)
    answer = assistant.reply([Image(tiny.photo(1)), "what"], max_new=5)
    assert answer == load(toy.text, adapters=[out]).reply([Image(tiny.photo(1)), "what"], max_new=5)
    trained = sum(
        w.numel() for name, w in assistant.model.adapters["image"].named_parameters() if name != "placeholder"
    )
    assert about["trained_parameters"] == trained


def test_an_adapter_of_squared_relu_trains_logs_its_zeros_and_loads(toy: Config, tmp_path: Path) -> None:
    out = tmp_path / "relu2"
    main(replace(toy, out=str(out), adapter=replace(toy.adapter, activation="relu2")))
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    zeros = {name: value for name, value in last.items() if name.endswith("feed_forward.zeros")}
    assert len(zeros) == len(toy.adapter.at)
    assert all(0.2 < value < 0.9 for value in zeros.values())
    notes = {name: note for name, note in weights(out).items() if name.endswith("measured")}
    assert [int(note[0]) for note in notes.values()] == [STEPS] * len(toy.adapter.at)
    assert load(out).reply([Image(tiny.photo(1)), "what"], max_new=3) is not None


def test_a_run_in_the_process_is_the_run_of_the_command_line(toy: Config, finished: Path, tmp_path: Path) -> None:
    main(replace(toy, out=str(tmp_path / "run")))
    assert same(tmp_path / "run", finished)


def test_workers_change_nothing(toy: Config, finished: Path, lives: Lives, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert lives.run(args=words(toy, out, "--data.reading.workers", 2)) == [0], lives.errors()
    assert same(out, finished)
    assert losses(out) == losses(finished)


def test_pictures_encoded_as_they_come_give_the_same_up_to_the_caches_rounding(toy: Config, tmp_path: Path) -> None:
    """And conversations, text only batches and the frozen stream turned off."""
    short = replace(toy, training=replace(toy.training, steps=2), stream=0.0)
    main(replace(short, out=str(tmp_path / "cached")))
    AcceleratorState._reset_state(reset_partial_state=True)
    main(replace(short, out=str(tmp_path / "seen"), data=replace(toy.data, cache="")))
    assert losses(tmp_path / "seen") == pytest.approx(losses(tmp_path / "cached"), rel=0.05)


def test_an_existing_run_is_refused_without_resume_and_left_as_it_is(toy: Config, finished: Path) -> None:
    config = (finished / "config.json").read_bytes()
    with pytest.raises(SystemExit, match=r"holds a run already; go on with --resume"):
        main(replace(toy, out=str(finished), save_every=5))
    assert (finished / "config.json").read_bytes() == config


def test_another_config_cannot_be_resumed_and_leaves_the_run_as_it_is(toy: Config, finished: Path) -> None:
    config = (finished / "config.json").read_bytes()
    other = replace(toy, out=str(finished), resume=True, training=replace(toy.training, learning_rate=1.0))
    with pytest.raises(SystemExit, match=r"begun with training\.learning_rate 0\.01, not 1\.0"):
        main(other)
    assert (finished / "config.json").read_bytes() == config


def test_a_finished_run_that_is_resumed_stays_finished(toy: Config, lives: Lives, finished: Path) -> None:
    before = weights(finished)
    assert lives.run(args=words(toy, finished, "--resume")) == [0], lives.errors()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(finished).items())
    assert len(losses(finished)) == STEPS


def test_an_encoder_that_learns_is_no_encoder_to_cache(toy: Config, tmp_path: Path) -> None:
    learns = (*LEARNS, (r"encoders\.image\.tower\.model\.conv_head\..*", 0.1))
    open_eye = replace(toy, out=str(tmp_path / "run"), training=replace(toy.training, learns=learns, steps=2))
    with pytest.raises(ValueError, match=r"its features cannot be cached; leave --data\.cache empty"):
        main(open_eye)
    AcceleratorState._reset_state(reset_partial_state=True)
    seeing = replace(open_eye, data=replace(toy.data, cache=""), out=str(tmp_path / "seen"))
    main(seeing)
    loaded = load(tmp_path / "seen")
    assert loaded.reply([Image(tiny.photo(1)), "what"], max_new=2) is not None
    assert (tmp_path / "seen" / "encoders.image.safetensors").is_file()


def test_too_many_broken_samples_stop_the_run_with_their_reasons(toy: Config, tmp_path: Path) -> None:
    bad = [{"__key__": f"{n:03d}", "png": b"no picture", "txt": "x"} for n in range(120)]
    write_shard(tmp_path / "bad.tar", bad)
    data = replace(toy.data, train=(str(tmp_path / "bad.tar"),), cache="")
    with pytest.raises(TooManyBadSamples, match=r"100 bad samples one behind the other: .* 100"):
        main(replace(toy, out=str(tmp_path / "run"), data=data, training=replace(toy.training, steps=60)))


def test_sigterm_saves_and_the_run_goes_on_bit_for_bit(
    toy: Config, lives: Lives, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (pid,) = lives.begin(args=words(toy, out, "--save-every", 1000))
    metrics = out / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.005)
    os.kill(pid, signal.SIGTERM)
    assert lives.end() == [143], lives.errors()
    assert not (out / "training.json").exists()
    assert len(list((out / "state").iterdir())) == 1
    assert 2 <= len(losses(out)) <= STEPS
    assert lives.run(args=words(toy, out, "--resume")) == [0], lives.errors()
    assert same(out, finished)
    assert losses(out) == losses(finished)


def survive(toy: Config, lives: Lives, out: Path, instants: list[int]) -> None:
    """A life that ends at each instant (the so-many-th change of the disk), and one that goes to the end."""
    for instant in instants:
        ended = lives.run(args=words(toy, out, "--resume"), die_at=instant)
        assert ended in ([-signal.SIGKILL], [0]), lives.errors()
    assert lives.run(args=words(toy, out, "--resume")) == [0], lives.errors()


def test_a_run_killed_within_its_saves_goes_on_bit_for_bit(
    toy: Config, lives: Lives, finished: Path, tmp_path: Path
) -> None:
    # 9 changes of the disk and more belong to each save; the first go to the folder and its config.
    survive(toy, lives, tmp_path / "run", [13, 24])
    assert same(tmp_path / "run", finished)
    assert losses(tmp_path / "run") == losses(finished)


@pytest.mark.slow
def test_a_run_killed_at_any_instant_goes_on_bit_for_bit(
    toy: Config, lives: Lives, finished: Path, tmp_path: Path
) -> None:
    chance = random.Random(0)
    for trial in range(3):
        out = tmp_path / str(trial)
        fresh = replace(toy, data=replace(toy.data, cache=str(tmp_path / f"features-{trial}")))
        survive(fresh, lives, out, [chance.randrange(1, 60) for _ in range(6)])
        assert same(out, finished)
    for trial in range(6):
        out = tmp_path / f"timed-{trial}"
        for _ in range(4):
            (pid,) = lives.begin(args=words(toy, out, "--resume"))
            time.sleep(chance.uniform(0.2, 4.0))
            # A fast machine may be done by then.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            assert lives.end() in ([-signal.SIGKILL], [0])
        assert lives.run(args=words(toy, out, "--resume")) == [0], lives.errors()
        assert same(out, finished)
        assert losses(out) == losses(finished)


@pytest.mark.slow
def test_two_processes_are_one_up_to_rounding(toy: Config, lives: Lives, finished: Path, tmp_path: Path) -> None:
    """What is drawn depends on a batch's place in its step: without noise it is the same whoever draws."""
    still = replace(toy, adapter=replace(toy.adapter, noise=0.0))
    one, two = tmp_path / "one", tmp_path / "two"
    assert lives.run(args=words(still, one)) == [0], lives.errors()
    assert lives.run(args=words(still, two), processes=2) == [0, 0], lives.errors()
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    ours, theirs = weights(one), weights(two)
    for name, weight in ours.items():
        torch.testing.assert_close(
            theirs[name], weight, rtol=1e-2, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_every_preset_is_a_config_that_goes_to_json_and_back(tmp_path: Path) -> None:
    from multimodal.settings import from_json

    for name, preset in PRESETS.items():
        assert from_json(Config, to_json(preset), name=name) == preset
