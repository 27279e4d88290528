"""Lives of a tiny run in processes of their own, to be killed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from accelerate.state import AcceleratorState

from tests.lives import Lives

PROGRAM = Path(__file__).with_name("program.py")


@pytest.fixture(autouse=True)
def _one_accelerator_a_test() -> Iterator[None]:
    """accelerate keeps its settings for the process; each test may ask for its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    server = Lives(PROGRAM, tmp_path_factory.mktemp("lives") / "stderr")
    yield server
    server.close()


@pytest.fixture(scope="session")
def program() -> ModuleType:
    """program.py as a module: its tiny model, batches and loss."""
    spec = importlib.util.spec_from_file_location("training_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_program"] = module
    spec.loader.exec_module(module)
    return module
