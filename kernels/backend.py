"""Which backend a call of an op takes, and why."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch

Backend = Literal["auto", "reference", "triton", "cpu"]
"""What a caller may ask for."""

Chosen = Literal["reference", "triton", "cpu"]
"""What runs."""

Obstacle = Callable[[], str | None]
"""Why a backend cannot take this call, as the end of a sentence; None when it can."""

BACKENDS: tuple[Backend, ...] = ("auto", "reference", "triton", "cpu")


def choose(op: str, asked: Backend, device: torch.device, obstacles: Mapping[str, Obstacle]) -> Chosen:
    """The backend that runs `op` on tensors of `device`.

    "auto" takes Triton on a GPU and the C++ path on a CPU, and the reference where that one cannot run, said once for
    each reason. A backend that was asked for by name runs or raises ValueError with the reason. `obstacles` are the
    op's own reasons by backend, asked only of a backend that the device allows.
    """
    if asked not in BACKENDS:
        raise ValueError(f"{op} has no backend {asked!r}; backends: {', '.join(BACKENDS)}")
    wanted = _fastest(device) if asked == "auto" else asked
    if wanted == "reference":
        return "reference"
    reason = _device_obstacle(wanted, device) or obstacles.get(wanted, _nothing)()
    if reason is None:
        return cast(Chosen, wanted)
    if asked != "auto":
        raise ValueError(f"{op} cannot run on backend {asked!r}: {reason}")
    _say_once(f"{op} runs on its reference, which is slow: backend {wanted!r} cannot run because {reason}")
    return "reference"


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, which takes CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _fastest(device: torch.device) -> Backend:
    # The interpreter is for tests: it is never what "auto" means.
    return {"cuda": "triton", "cpu": "cpu"}.get(device.type, "reference")  # pyright: ignore[reportReturnType]


def _device_obstacle(backend: str, device: torch.device) -> str | None:
    if backend == "cpu":
        return None if device.type == "cpu" else f"its tensors are on {device}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cuda" and torch.version.hip is None:
        return None
    if device.type == "cpu" and interpreted():
        return None
    return f"its tensors are on {device}, and Triton needs an NVIDIA GPU (or TRITON_INTERPRET=1 for its interpreter)"


def _nothing() -> None:
    return None


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
