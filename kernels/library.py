"""What the ops' C++ paths share: functions with their types, instruction sets, tensors as C takes them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import compiler

SETS = {"best": 0, "plain": 1, "avx2": 2, "avx512": 3}
"""The instruction sets of `instruction_sets.h`; one that the machine lacks becomes its best."""

POINTER, SIZE, INTEGER, REAL = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float


def declared(source: Path, functions: Mapping[str, tuple[Sequence[Any], Any]]) -> ctypes.CDLL:
    """The compiled source with the types of its functions: name -> (arguments, what is returned)."""
    library = compiler.load(source)
    for name, (arguments, returned) in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = list(arguments), returned
    return library


def set_of(number: int) -> str:
    """The name of an instruction set."""
    return next(name for name, value in SETS.items() if value == number)


def plain(x: Tensor) -> Tensor:
    """Contiguous float32 without a history; x itself where it is that already."""
    return x.detach().to(torch.float32).contiguous()


def addresses(*tensors: Tensor) -> tuple[int, ...]:
    """Where the tensors' numbers lie. Only for tensors that the caller holds on to."""
    return tuple(one.data_ptr() for one in tensors)
