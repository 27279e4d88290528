"""Which number format a machine multiplies fast."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "bfloat16", "float32"]


def chosen(precision: Precision) -> torch.dtype:
    """The dtype that `precision` names; auto is bfloat16 where the machine has instructions for it.

    Without them (processors before AVX512-BF16 or AMX) PyTorch emulates it at a tenth of float32's speed.
    """
    if precision != "auto":
        return getattr(torch, precision)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16") else torch.float32
