"""The random generators of a process (python, numpy, torch) as bytes of a fixed length, and back."""

from __future__ import annotations

import hashlib
import random
import struct

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

_PYTHON = struct.Struct("<625QBd")
_NUMPY = struct.Struct("<624IQBd")


def random_state() -> UInt8[Tensor, " n"]:
    """The state of python's, numpy's and torch's global generators, a device's own included where there is one."""
    _, words, gauss = random.getstate()
    python = _PYTHON.pack(*words, gauss is not None, gauss or 0.0)
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (the global one is what libraries use)
    numpy = _NUMPY.pack(*(int(key) for key in keys), int(position), bool(has_gauss), float(cached))
    states = [torch.frombuffer(bytearray(python + numpy), dtype=torch.uint8), torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def restore_random_state(state: UInt8[Tensor, " n"]) -> None:
    """Puts the generators back where `random_state` found them; ValueError for a state of another kind of machine."""
    expected = len(random_state())
    if len(state) != expected:
        raise ValueError(
            f"the random state has {len(state)} bytes, this machine's has {expected}; resume on the same kind"
        )
    raw = bytes(state.cpu().numpy())
    *words, has_gauss, gauss = _PYTHON.unpack_from(raw)
    random.setstate((3, tuple(words), gauss if has_gauss else None))
    *keys, position, has_cached, cached = _NUMPY.unpack_from(raw, _PYTHON.size)
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, int(has_cached), cached))  # noqa: NPY002
    start = _PYTHON.size + _NUMPY.size
    length = len(torch.get_rng_state())
    torch.set_rng_state(state[start : start + length].cpu().clone())
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state[start + length :].cpu().clone())


def seed_of(*parts: int) -> int:
    """A seed for torch out of several numbers, the same everywhere: neighbouring numbers give unrelated seeds."""
    digest = hashlib.sha256(" ".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
