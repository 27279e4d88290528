"""Lives of a tiny run in processes of their own, to be killed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accelerate.state import AcceleratorState

PROGRAM = Path(__file__).with_name("program.py")


class Lives:
    """Starts runs of program.py, one after the other, by fork: no life pays for the imports."""

    def __init__(self, log: Path) -> None:
        environment = {
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._log = log.open("w+")
        self._server = subprocess.Popen(
            [sys.executable, str(PROGRAM), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def begin(self, **tiny: Any) -> list[int]:
        """Starts a run; the pids of its processes."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(tiny, default=str) + "\n")
        self._server.stdin.flush()
        return self._line()

    def end(self) -> list[int]:
        """Waits for the run; the exit codes of its processes (minus the signal for a killed one)."""
        return self._line()

    def run(self, **tiny: Any) -> list[int]:
        self.begin(**tiny)
        return self.end()

    def errors(self) -> str:
        """What the lives so far said on stderr."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._log.close()

    def _line(self) -> list[int]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, f"the server of lives has died: {self.errors()}"
        return json.loads(line)


@pytest.fixture(autouse=True)
def _one_accelerator_a_test() -> Iterator[None]:
    """accelerate keeps its settings for the process; each test may ask for its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    server = Lives(tmp_path_factory.mktemp("lives") / "stderr")
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
