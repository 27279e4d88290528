"""Runs in processes of their own, to be killed: a server that forks them, so that no life pays for the imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Lives:
    """Starts runs of a program that ends in `serve`, one after the other."""

    def __init__(self, program: Path, log: Path) -> None:
        environment = {
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._log = log.open("w+")
        self._server = subprocess.Popen(
            [sys.executable, str(program), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def begin(self, **asked: Any) -> list[int]:
        """Starts a run; the pids of its processes."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(asked, default=str) + "\n")
        self._server.stdin.flush()
        return self._line()

    def end(self) -> list[int]:
        """Waits for the run; the exit codes of its processes (minus the signal for a killed one)."""
        return self._line()

    def run(self, **asked: Any) -> list[int]:
        self.begin(**asked)
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


def serve(live: Callable[..., None]) -> None:
    """Forks a life, `live(**asked)`, for each line of JSON; prints the pids, then the ends.

    With "processes": n it forks n ranks of one run; with "die_at": n the life ends at its n-th change of the disk.
    """
    for number, line in enumerate(sys.stdin):
        asked = json.loads(line)
        processes, die_at = asked.pop("processes", 1), asked.pop("die_at", 0)
        port = 29500 + (os.getpid() + number) % 2000
        children = [_fork(live, asked, rank, processes, port=port, die_at=die_at) for rank in range(processes)]
        print(json.dumps(children), flush=True)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(ends), flush=True)


def _fork(live: Callable[..., None], asked: dict, rank: int, processes: int, *, port: int, die_at: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    # What a run prints is no answer to who drives the server.
    os.dup2(2, 1)
    try:
        if processes > 1:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(processes))
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        if die_at:
            _die_at(die_at)
        live(**asked)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _die_at(call: int) -> None:
    """The process kills itself at its `call`-th fsync, rename or unlink: wherever a save changes the disk."""
    left = [call]

    def deadly(original):
        def counted(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return counted

    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, deadly(getattr(os, name)))
