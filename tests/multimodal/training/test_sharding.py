import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

PROGRAM = Path(__file__).with_name("sharded_program.py")


def weights_of(kind: str, processes: int, file: Path) -> dict[str, Tensor]:
    """What the real model's adapter learns in `processes` processes; a deadlock is a timeout."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    running = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment = {**common, **(place | address if processes > 1 else {})}
        running.append(subprocess.Popen([sys.executable, str(PROGRAM), kind, str(file)], env=environment))
    try:
        assert [process.wait(timeout=240) for process in running] == [0] * processes
    finally:
        for process in running:
            process.kill()
    return load_file(file)


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_real_model_learns_the_same_alone_on_two_processes_and_sharded_over_two(tmp_path: Path) -> None:
    # Every second step, the second process' batch has no pictures.
    alone = weights_of("whole", 1, tmp_path / "alone.safetensors")
    assert_close(weights_of("whole", 2, tmp_path / "two.safetensors"), alone)
    assert_close(weights_of("shard", 2, tmp_path / "sharded.safetensors"), alone)
