from pathlib import Path

import pytest

from multimodal.training.metrics import Metrics, read_metrics


def write(file: Path, steps: range, *, after: int = 0) -> None:
    with Metrics(file, after=after) as metrics:
        for step in steps:
            metrics.write(step=step, loss=1.0 / step)


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    file = tmp_path / "run" / "metrics.jsonl"
    write(file, range(1, 9))
    write(file, range(6, 11), after=5)
    assert [line["step"] for line in read_metrics(file)] == list(range(1, 11))


def test_a_line_that_a_kill_has_torn_goes(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, range(1, 4))
    file.write_text(file.read_text() + '{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(file)] == [1, 2, 3]
    write(file, range(4, 6), after=4)
    assert [line["step"] for line in read_metrics(file)] == [1, 2, 3, 4, 5]


def test_a_run_that_starts_anew_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, range(1, 9))
    write(file, range(1, 3))
    assert [line["step"] for line in read_metrics(file)] == [1, 2]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.write(step=1, loss=2.5)
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.5}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_null_for_json_has_none(tmp_path: Path, value: float) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.write(step=1, loss=value)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None}]


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
