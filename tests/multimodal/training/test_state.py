import json
import os
import random
import resource
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from multimodal.fingerprint import fingerprint
from multimodal.training import Position, TrainingConfig, learning, load_state, newest_state, prepare, save_state, train
from multimodal.training.publication import fault

# More calls of fsync, rename and unlink than a save of `program.py` makes: each is an instant to die at.
CALLS_OF_A_SAVE = 40


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def trained(
    program: ModuleType, accelerator: Accelerator, steps: int
) -> tuple[nn.Module, torch.optim.Optimizer, Position]:
    config = TrainingConfig(learns=((r"adapters\.image\..*", 1.0),), steps=steps, warm_up=0, learning_rate=1e-2)
    model, optimizer = prepare(accelerator, program.tiny_model(), config)
    source = (program.rows_at(range(8 * i, 8 * i + 8), without_media=False) for i in range(steps))
    position = Position()
    for step in train(accelerator, model, optimizer, source, program.tiny_loss, config):
        position = step.position
    return model, optimizer, position


def untrained(program: ModuleType, accelerator: Accelerator) -> tuple[nn.Module, torch.optim.Optimizer]:
    config = TrainingConfig(learns=((r"adapters\.image\..*", 1.0),), steps=9, warm_up=0)
    return prepare(accelerator, program.tiny_model(seed=5), config)


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def same_metrics(one: Path, other: Path) -> bool:
    return (one / "metrics-0.jsonl").read_text() == (other / "metrics-0.jsonl").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_bit_for_bit(program: ModuleType, accelerator: Accelerator, tmp_path: Path) -> None:
    model, optimizer, position = trained(program, accelerator, 4)
    save_state(accelerator, tmp_path, model, optimizer, position, identity={"text": "9f3c"})
    drawn = torch.rand(2), np.random.rand()  # noqa: NPY002
    again, its_optimizer = untrained(program, accelerator)
    assert load_state(accelerator, tmp_path, again, its_optimizer, identity={"text": "9f3c"}) == position
    assert fingerprint(learning(again)) == fingerprint(learning(model))
    moments = zip(optimizer.state.values(), its_optimizer.state.values(), strict=True)
    assert all(torch.equal(ours[kind], theirs[kind]) for ours, theirs in moments for kind in ours)
    assert torch.equal(torch.rand(2), drawn[0])
    assert np.random.rand() == drawn[1]  # noqa: NPY002


def test_a_state_holds_what_learns_and_nothing_frozen(
    program: ModuleType, accelerator: Accelerator, tmp_path: Path
) -> None:
    model, optimizer, position = trained(program, accelerator, 2)
    state = save_state(accelerator, tmp_path, model, optimizer, position)
    assert names(state) == [
        "manifest.json",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
        "weights.safetensors",
    ]
    assert (state / "weights.safetensors").stat().st_size < 4 * sum(p.numel() for p in learning(model).values()) + 1000


def test_a_run_without_a_state_starts_at_the_beginning(
    program: ModuleType, accelerator: Accelerator, tmp_path: Path
) -> None:
    model, optimizer = untrained(program, accelerator)
    assert load_state(accelerator, tmp_path / "nothing", model, optimizer) == Position()


def test_only_the_newest_are_kept(program: ModuleType, accelerator: Accelerator, tmp_path: Path) -> None:
    model, optimizer, _ = trained(program, accelerator, 1)
    for step in (3, 6, 9, 12):
        save_state(accelerator, tmp_path, model, optimizer, Position(step=step), keep=2)
    assert names(tmp_path) == ["step-00000009", "step-00000012"]


def test_a_run_that_went_back_leaves_no_later_state_of_its_former_course(
    program: ModuleType, accelerator: Accelerator, tmp_path: Path
) -> None:
    model, optimizer, _ = trained(program, accelerator, 1)
    for step in (6, 9, 8):
        save_state(accelerator, tmp_path, model, optimizer, Position(step=step))
    assert names(tmp_path) == ["step-00000006", "step-00000008"]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
def test_a_damaged_newest_state_is_passed_over_with_a_line_that_says_so(
    program: ModuleType, accelerator: Accelerator, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    model, optimizer, _ = trained(program, accelerator, 1)
    for step in (3, 6):
        newest = save_state(accelerator, tmp_path, model, optimizer, Position(step=step))
    content = bytearray((newest / file).read_bytes())
    content[-3] ^= 1
    (newest / file).write_bytes(content)
    assert load_state(accelerator, tmp_path, model, optimizer) == Position(step=3)
    said = capsys.readouterr().out
    assert f"{newest} is damaged ({file} does not have the sha256 of the manifest)" in said
    assert "going back to step-00000003" in said


def test_states_that_are_all_damaged_stop_the_run(
    program: ModuleType, accelerator: Accelerator, tmp_path: Path
) -> None:
    model, optimizer, _ = trained(program, accelerator, 1)
    (save_state(accelerator, tmp_path, model, optimizer, Position(step=3)) / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"none can be resumed from; remove .* to start over"):
        load_state(accelerator, tmp_path, model, optimizer)


def test_a_state_of_another_backbone_is_refused_with_both_fingerprints(
    program: ModuleType, accelerator: Accelerator, tmp_path: Path
) -> None:
    model, optimizer, position = trained(program, accelerator, 1)
    save_state(accelerator, tmp_path, model, optimizer, position, identity={"backbone": "9f3c"})
    with pytest.raises(ValueError, match="saved with backbone 9f3c, this run has 41ab"):
        load_state(accelerator, tmp_path, model, optimizer, identity={"backbone": "41ab"})


def test_a_state_where_other_parameters_learned_is_refused(
    program: ModuleType, accelerator: Accelerator, tmp_path: Path
) -> None:
    model, optimizer, position = trained(program, accelerator, 1)
    save_state(accelerator, tmp_path, model, optimizer, position)
    config = TrainingConfig(learns=((r"adapters\.video\..*", 1.0),), steps=9, warm_up=0)
    model, optimizer = prepare(accelerator, program.tiny_model(), config)
    with pytest.raises(ValueError, match=r"other parameters than learn now: \['adapters.image"):
        load_state(accelerator, tmp_path, model, optimizer)


def test_a_full_disk_leaves_the_state_before_and_the_run_may_go_on(
    program: ModuleType, accelerator: Accelerator, tmp_path: Path
) -> None:
    model, optimizer, _ = trained(program, accelerator, 1)
    save_state(accelerator, tmp_path, model, optimizer, Position(step=3))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"state of step 6 could not be written .*too large.*; the state before it is intact"
        ):
            save_state(accelerator, tmp_path, model, optimizer, Position(step=6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert names(tmp_path) == ["step-00000003"]
    assert load_state(accelerator, tmp_path, model, optimizer) == Position(step=3)
    save_state(accelerator, tmp_path, model, optimizer, Position(step=6))
    assert newest_state(tmp_path) == tmp_path / "step-00000006"


def test_a_run_whose_last_step_is_saved_has_nothing_left_to_do(lives: Any, tmp_path: Path) -> None:
    assert lives.run(folder=tmp_path, steps=7) == [0]
    before, metrics = result(tmp_path), (tmp_path / "metrics-0.jsonl").read_text()
    states = {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("*")}
    assert lives.run(folder=tmp_path, steps=7) == [0]
    assert result(tmp_path) == before
    assert (tmp_path / "metrics-0.jsonl").read_text() == metrics
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("*")} == states


def survive(lives: Any, undisturbed: Path, folder: Path, *, kills: int, seed: int, **tiny: Any) -> int:
    """Kills a run at random instants `kills` times, lets it finish, and compares; how many states stood."""
    chance = random.Random(seed)
    hits = whole = 0
    while hits < kills:
        (pid,) = lives.begin(folder=folder, **tiny)
        _wait_for_steps(folder, _steps(folder) + chance.randrange(8))
        time.sleep(chance.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        hits += lives.end() == [-signal.SIGKILL]
        states = list((folder / "state").glob("step-*")) if (folder / "state").is_dir() else []
        assert all(fault(state) is None for state in states), "a kill left a torn state under a state's name"
        whole += len(states)
        if (folder / "result.json").exists():
            # It got to its end between the kills: another run goes on being killed.
            assert result(folder) == result(undisturbed)
            for path in folder.glob("*.json*"):
                path.unlink()
            (folder / "state").rename(folder / f"finished-{hits}-{whole}")
    assert lives.run(folder=folder, **tiny) == [0]
    assert result(folder) == result(undisturbed)
    assert same_metrics(folder, undisturbed)
    return whole


def _steps(folder: Path) -> int:
    file = folder / "metrics-0.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def _wait_for_steps(folder: Path, steps: int) -> None:
    """Until the run has written so many lines, or is done."""
    until = time.monotonic() + 60
    while _steps(folder) < steps and not (folder / "result.json").exists():
        assert time.monotonic() < until, "the run makes no steps"
        time.sleep(0.002)


def test_kills_at_random_instants_change_no_bit_of_the_result(lives: Any, tmp_path: Path) -> None:
    tiny = {"steps": 45, "save_every": 2}
    assert lives.run(folder=tmp_path / "undisturbed", **tiny) == [0]
    assert survive(lives, tmp_path / "undisturbed", tmp_path / "killed", kills=8, seed=1, **tiny)


def test_a_kill_inside_the_save_changes_no_bit_of_the_result(lives: Any, tmp_path: Path) -> None:
    # A few of the instants at which a save changes the disk; the slow test takes all.
    _die_in_the_save(lives, tmp_path, range(CALLS_OF_A_SAVE, 2 * CALLS_OF_A_SAVE, 11))


@pytest.mark.slow
def test_a_kill_at_every_instant_of_a_save_changes_no_bit_of_the_result(lives: Any, tmp_path: Path) -> None:
    _die_in_the_save(lives, tmp_path, range(1, 3 * CALLS_OF_A_SAVE))


def _die_in_the_save(lives: Any, tmp_path: Path, instants: range) -> None:
    tiny = {"steps": 12, "save_every": 2}
    assert lives.run(folder=tmp_path / "undisturbed", **tiny) == [0]
    for instant in instants:
        folder = tmp_path / f"died-at-{instant}"
        assert lives.run(folder=folder, die_at=instant, **tiny) == [-signal.SIGKILL]
        assert lives.run(folder=folder, **tiny) == [0]
        assert result(folder) == result(tmp_path / "undisturbed")
        assert same_metrics(folder, tmp_path / "undisturbed")
        # Killed between the last state's publication and the pruning, a run keeps one state more: no save follows.
        left, expected = names(folder / "state"), names(tmp_path / "undisturbed" / "state")
        assert left[-2:] == expected, "a killed save left litter"
        assert left[:-2] in ([], ["step-00000008"])


@pytest.mark.slow
def test_two_hundred_kills_at_random_instants_change_no_bit_of_the_result(lives: Any, tmp_path: Path) -> None:
    tiny = {"steps": 150, "save_every": 2}
    assert lives.run(folder=tmp_path / "undisturbed", **tiny) == [0]
    for seed in range(10):
        survive(lives, tmp_path / "undisturbed", tmp_path / f"killed-{seed}", kills=20, seed=seed, **tiny)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits_and_the_run_goes_on_bit_for_bit(
    lives: Any, tmp_path: Path, number: int, code: int
) -> None:
    tiny = {"steps": 30, "save_every": 1000}
    assert lives.run(folder=tmp_path / "undisturbed", **tiny) == [0]
    folder = tmp_path / "stopped"
    (pid,) = lives.begin(folder=folder, pause=0.05, **tiny)
    _wait_for_steps(folder, 3)
    os.kill(pid, number)
    assert lives.end() == [code]
    saved = newest_state(folder / "state")
    assert saved is not None
    assert 3 <= int(saved.name[-8:]) < 30
    assert lives.run(folder=folder, **tiny) == [0]
    assert result(folder) == result(tmp_path / "undisturbed")
    assert same_metrics(folder, tmp_path / "undisturbed")


def test_a_run_goes_on_with_another_number_of_processes(lives: Any, tmp_path: Path) -> None:
    tiny = {"steps": 12, "save_every": 6, "dropout": 0.0}
    assert lives.run(folder=tmp_path / "alone", **tiny) == [0]
    assert lives.run(folder=tmp_path / "changed", **{**tiny, "steps": 12, "stop_after": 6}) == [0]
    assert lives.run(folder=tmp_path / "changed", processes=2, **tiny) == [0, 0]
    alone, changed = result(tmp_path / "alone")["weights"], result(tmp_path / "changed")["weights"]
    for name, values in alone.items():
        assert changed[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
