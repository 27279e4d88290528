"""Which backend runs, and what is said when one cannot."""

import warnings

import pytest
import torch

from kernels.backend import choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_the_fast_path_of_the_device() -> None:
    assert choose("op", "auto", CPU, {}) == "cpu"
    assert choose("op", "auto", CUDA, {}) == "triton"
    assert choose("op", "auto", torch.device("meta"), {}) == "reference"


def test_a_backend_asked_for_by_name_runs_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert choose("op", "reference", CUDA, {}) == "reference"
    with pytest.raises(ValueError, match="op cannot run on backend 'triton': its tensors are on cpu"):
        choose("op", "triton", CPU, {})
    with pytest.raises(ValueError, match="op cannot run on backend 'cpu': its tensors are on cuda"):
        choose("op", "cpu", CUDA, {})
    with pytest.raises(ValueError, match="head width 7 is odd"):
        choose("op", "cpu", CPU, {"cpu": lambda: "head width 7 is odd"})
    with pytest.raises(ValueError, match="no backend 'gpu'; backends: auto, reference, triton, cpu"):
        choose("op", "gpu", CPU, {})


def test_the_interpreter_is_a_gpu_only_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("op", "triton", CPU, {}) == "triton"
    assert choose("op", "auto", CPU, {}) == "cpu"


def test_auto_says_once_why_the_reference_runs() -> None:
    obstacles = {"cpu": lambda: "this test has no compiler"}
    with pytest.warns(UserWarning, match="op of a test runs on its reference.*this test has no compiler"):
        assert choose("op of a test", "auto", CPU, obstacles) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("op of a test", "auto", CPU, obstacles) == "reference"
