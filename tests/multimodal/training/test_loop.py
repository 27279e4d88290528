import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from multimodal.fingerprint import fingerprint
from multimodal.training import Position, Step, StopSignal, TrainingConfig, learning, prepare, schedule, train

LEARNS = ((r"adapters\.image\..*", 1.0),)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"learns": LEARNS, "steps": 6, "warm_up": 2, "learning_rate": 1e-2, **changes})


def batches(program: ModuleType, rows: int, *, poison: tuple[int, ...] = (), media: bool = True) -> Iterator[Any]:
    begin = 0
    while True:
        yield program.rows_at(range(begin, begin + rows), without_media=not media, poison=poison)
        begin += rows


def run(program: ModuleType, accelerator: Accelerator, source: Any, c: TrainingConfig) -> tuple[nn.Module, list[Step]]:
    plain = program.tiny_model()
    plain.adapters["image"].dropout.p = 0.0
    model, optimizer = prepare(accelerator, plain, c)
    return model, list(train(accelerator, model, optimizer, source, program.tiny_loss, c))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learning(model).items()}


def assert_close(ours: nn.Module, theirs: nn.Module) -> None:
    for name, weight in weights(ours).items():
        torch.testing.assert_close(weight, weights(theirs)[name], rtol=1e-4, atol=1e-6)


def test_the_loss_falls(program: ModuleType, accelerator: Accelerator) -> None:
    _, steps = run(program, accelerator, batches(program, 32), config(steps=80))
    assert sum(step.loss for step in steps[-5:]) < 0.8 * sum(step.loss for step in steps[:5])


def test_each_step_tells_what_it_did(program: ModuleType, accelerator: Accelerator) -> None:
    c = config()
    _, steps = run(program, accelerator, batches(program, 8), c)
    assert [step.index for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.last for step in steps] == [False] * 5 + [True]
    assert [step.position.samples for step in steps] == [8, 16, 24, 32, 40, 48]
    assert [step.learning_rate for step in steps] == [
        1e-2 * schedule(i, steps=6, warm_up=2, floor=c.floor) for i in range(1, 7)
    ]
    first = program.rows_at(range(8), without_media=False)
    assert steps[0].targets == int((first.targets != -100).sum())
    assert set(steps[0].metrics()) >= {"loss", "gradient_norm", "learning_rate", "samples", "samples_per_second"}


def test_accumulated_batches_are_one_large_batch(program: ModuleType, accelerator: Accelerator) -> None:
    whole, steps = run(program, accelerator, batches(program, 12), config())
    parts, its_steps = run(program, accelerator, batches(program, 4), config(accumulate=3))
    assert [step.loss for step in its_steps] == pytest.approx([step.loss for step in steps], rel=1e-5)
    assert_close(parts, whole)


def test_a_first_step_is_what_plain_adamw_on_the_mean_loss_does(program: ModuleType, accelerator: Accelerator) -> None:
    ours, _ = run(program, accelerator, batches(program, 8), config(steps=1, warm_up=0, clip=0.01, floor=1.0))
    theirs = program.tiny_model()
    theirs.adapters["image"].dropout.p = 0.0
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(name.startswith("adapters.image"))
    total, count = program.tiny_loss(theirs, next(batches(program, 8)))
    (total / count).backward()
    torch.nn.utils.clip_grad_norm_(learning(theirs).values(), 0.01)
    matrices = [parameter for parameter in learning(theirs).values() if parameter.ndim >= 2]
    others = [parameter for parameter in learning(theirs).values() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95)).step()
    assert_close(ours, theirs)


def test_a_multiplier_of_learns_multiplies_the_learning_rate(program: ModuleType, accelerator: Accelerator) -> None:
    moved = []
    for multiplier in (1.0, 0.25):
        learns = ((r"adapters\.image\.gate", multiplier), *LEARNS)
        model, _ = run(program, accelerator, batches(program, 8), config(steps=1, warm_up=0, learns=learns))
        moved.append(float((learning(model)["adapters.image.gate"] - 0.5).abs().detach()))
    assert moved[1] == pytest.approx(0.25 * moved[0], rel=1e-3)


def test_a_batch_without_targets_gives_a_loss_of_zero_and_finite_weights(
    program: ModuleType, accelerator: Accelerator
) -> None:
    def source() -> Iterator[Any]:
        for i, batch in enumerate(batches(program, 8)):
            if i == 1:
                batch.targets.fill_(-100)
            yield batch

    model, steps = run(program, accelerator, source(), config())
    assert (steps[1].loss, steps[1].targets, steps[1].skipped) == (0.0, 0, False)
    assert all(weight.isfinite().all() for weight in weights(model).values())


def test_a_batch_without_media_or_without_any_sample_trains_on(program: ModuleType, accelerator: Accelerator) -> None:
    def source() -> Iterator[Any]:
        for i, batch in enumerate(batches(program, 8)):
            yield None if i == 2 else batch if i % 2 else program.rows_at(range(8), without_media=True)

    model, steps = run(program, accelerator, source(), config())
    assert [step.samples for step in steps] == [8, 8, 0, 8, 8, 8]
    assert steps[2].loss == 0.0
    assert steps[0].gradient_norm == 0.0
    assert steps[1].gradient_norm > 0.0
    assert not any(step.skipped for step in steps)
    assert all(weight.isfinite().all() for weight in weights(model).values())


def test_a_step_that_is_not_finite_is_skipped_and_names_its_samples(
    program: ModuleType, accelerator: Accelerator
) -> None:
    c = config(accumulate=2)
    model, optimizer = prepare(accelerator, program.tiny_model(), c)
    before: dict[str, Tensor] = {}
    source = batches(program, 4, poison=(21,))
    for step in train(accelerator, model, optimizer, source, program.tiny_loss, c):
        if step.index == 3:
            assert step.skipped
            # Its other batch, 16 to 19, was sound.
            assert step.keys == ("sample-20", "sample-21", "sample-22", "sample-23")
            assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())
        else:
            assert not step.skipped
            assert step.keys == ()
        before = weights(model)
    assert step.position == Position(step=6, samples=48, skipped=1)


def test_a_gradient_that_is_not_finite_skips_the_step_too(program: ModuleType, accelerator: Accelerator) -> None:
    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        total, count = program.tiny_loss(model, batch)
        gate = model.adapters["image"].gate.sum()  # type: ignore[union-attr, index, operator]
        return total + (gate - gate.detach()).abs().sqrt(), count

    c = config(steps=1, warm_up=0)
    model, optimizer = prepare(accelerator, program.tiny_model(), c)
    before = fingerprint(model)
    (step,) = train(accelerator, model, optimizer, batches(program, 8), loss, c)
    assert step.skipped
    assert step.loss > 0.0
    assert len(step.keys) == 8
    assert fingerprint(model) == before


def test_too_many_skipped_steps_in_a_row_stop_the_run_with_the_samples(
    program: ModuleType, accelerator: Accelerator
) -> None:
    source = batches(program, 8, poison=tuple(range(8, 1000, 8)))
    with pytest.raises(FloatingPointError, match=r"3 steps in a row \(up to step 4\).*sample-24, sample-25"):
        run(program, accelerator, source, config(patience=3))


def test_skipped_steps_apart_from_each_other_do_not(program: ModuleType, accelerator: Accelerator) -> None:
    _, steps = run(program, accelerator, batches(program, 8, poison=(8, 24, 40)), config(patience=2))
    assert steps[-1].position.skipped == 3


def test_what_a_step_draws_depends_on_its_number_and_not_on_the_past(
    program: ModuleType, accelerator: Accelerator
) -> None:
    results = []
    for disturb in (False, True):
        c = config()
        model, optimizer = prepare(accelerator, program.tiny_model(), c)
        model.adapters["image"].dropout.p = 0.5  # type: ignore[union-attr, index]
        for _ in train(accelerator, model, optimizer, batches(program, 8), program.tiny_loss, c):
            if disturb:
                torch.rand(7)
        results.append(fingerprint(learning(model)))
    assert results[0] == results[1]


def test_frozen_parts_stay_in_evaluation_mode(program: ModuleType, accelerator: Accelerator) -> None:
    c = config()
    model, optimizer = prepare(accelerator, program.tiny_model(), c)
    for _ in train(accelerator, model, optimizer, batches(program, 8), program.tiny_loss, c):
        assert model.adapters["image"].training  # type: ignore[union-attr, index]
        assert not model.adapters["video"].training  # type: ignore[union-attr, index]
        assert not model.text["head"].training  # type: ignore[union-attr, index]
        model.eval()


def test_a_stop_ends_the_loop_after_the_step_in_hand(program: ModuleType, accelerator: Accelerator) -> None:
    c = config()
    model, optimizer = prepare(accelerator, program.tiny_model(), c)
    stop = StopSignal()
    seen = []
    for step in train(accelerator, model, optimizer, batches(program, 8), program.tiny_loss, c, stop=stop):
        seen.append((step.index, step.last))
        if step.index == 2:
            stop.received = 15
    assert seen == [(1, False), (2, False), (3, True)]


def test_data_that_ends_too_early_is_an_error_that_says_where(program: ModuleType, accelerator: Accelerator) -> None:
    few = [program.rows_at(range(4), without_media=False)] * 5
    with pytest.raises(ValueError, match="the data ended in step 3 of 6, after 1 of its 2 batches"):
        run(program, accelerator, few, config(accumulate=2))


def test_running_out_of_memory_names_the_batch_and_the_way_out(program: ModuleType, accelerator: Accelerator) -> None:
    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    c = config()
    model, optimizer = prepare(accelerator, program.tiny_model(), c)
    with pytest.raises(
        MemoryError, match=r"step 1 on a batch of tokens \[8, 5\].*`accumulate` larger, or set `recompute`"
    ):
        next(train(accelerator, model, optimizer, batches(program, 8), loss, c))


def test_bf16_autocast_trains_float32_weights(program: ModuleType) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    half = program.tiny_model().to(torch.bfloat16)
    c = config(steps=60)
    model, optimizer = prepare(accelerator, half, c)
    steps = list(train(accelerator, model, optimizer, batches(program, 16), program.tiny_loss, c))
    assert {weight.dtype for weight in weights(model).values()} == {torch.float32}
    assert sum(step.loss for step in steps[-5:]) < 0.9 * sum(step.loss for step in steps[:5])


def result(folder: Path) -> dict[str, list[float]]:
    return json.loads((folder / "result.json").read_text())["weights"]


def test_two_processes_are_one_with_twice_the_batches_dropout_included(lives: Any, tmp_path: Path) -> None:
    tiny = {"steps": 12, "save_every": 50, "dropout": 0.2}
    assert lives.run(folder=tmp_path / "one", accumulate=2, **tiny) == [0]
    assert lives.run(folder=tmp_path / "two", processes=2, **tiny) == [0, 0], lives.errors()
    for name, values in result(tmp_path / "one").items():
        assert result(tmp_path / "two")[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    lines = [(tmp_path / "two" / f"metrics-{rank}.jsonl").read_text() for rank in (0, 1)]
    assert lines[0] == lines[1]


def test_a_process_whose_batches_hold_no_media_holds_nobody_up(lives: Any, tmp_path: Path) -> None:
    tiny = {"steps": 12, "save_every": 50, "dropout": 0.0, "text_only_rank": 1, "text_only_every": 4}
    assert lives.run(folder=tmp_path, processes=2, **tiny) == [0, 0], lives.errors()
    assert all(value == value for values in result(tmp_path).values() for value in values)


def test_a_signal_to_one_process_stops_and_saves_all(lives: Any, tmp_path: Path) -> None:
    pids = lives.begin(folder=tmp_path, processes=2, steps=2000, save_every=5000, pause=0.02)
    while not (tmp_path / "metrics-1.jsonl").exists() or not (tmp_path / "metrics-1.jsonl").read_text():
        pass
    os.kill(pids[1], 15)
    # The other process got no signal: it ends its loop with the others, its own exit is a plain one.
    assert lives.end() == [0, 143]
    assert list((tmp_path / "state").glob("step-*"))


@pytest.mark.slow
def test_the_launch_line_for_two_cpu_processes_gives_what_one_process_gives(lives: Any, tmp_path: Path) -> None:
    program = str(Path(__file__).with_name("program.py"))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", program]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    tiny = {"steps": 12, "save_every": 50, "dropout": 0.0}
    two = json.dumps({"folder": str(tmp_path / "two"), **tiny})
    subprocess.run([*launch, two], env=environment, check=True, timeout=240)
    assert lives.run(folder=tmp_path / "one", accumulate=2, **tiny) == [0]
    for name, values in result(tmp_path / "one").items():
        assert result(tmp_path / "two")[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    without = {name: value for name, value in environment.items() if name != "ACCELERATE_USE_CPU"}
    alone = subprocess.run([*launch, two], env=without, capture_output=True, text=True, timeout=240)
    if not torch.cuda.is_available():
        assert alone.returncode != 0
        assert "the launcher started 2 processes, but accelerate sees 1" in alone.stderr
