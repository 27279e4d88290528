"""A name for the exact content of weights: sha256 over names, dtypes, shapes and bytes, the same in every process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def fingerprint(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """64 hex digits that change when any name, dtype, shape or byte of `weights` does.

    A module counts with what its `state_dict` holds: parameters and persistent buffers. The order of the names does not
    matter; the dtype does: one model loaded in bfloat16 and in float32 has two fingerprints, for it gives two answers.
    """
    tensors = state_of(weights)
    total = hashlib.sha256()
    for name, digest in digests(tensors).items():
        shape = "x".join(str(size) for size in tensors[name].shape)
        total.update(f"{name} {tensors[name].dtype} {shape} {digest}\n".encode())
    return total.hexdigest()


def digests(weights: nn.Module | Mapping[str, Tensor]) -> dict[str, str]:
    """The sha256 of each tensor's bytes, by name, sorted; a sharded tensor counts with the part this process holds."""
    tensors = state_of(weights)
    names = sorted(tensors)
    # hashlib lets go of the interpreter while it hashes: a thread a core reads an 8B model in seconds.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(name, tensors[name]), names), strict=True))


def state_of(weights: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Names and tensors of a module or of what already is a state dict, without a copy."""
    return weights.state_dict(keep_vars=True) if isinstance(weights, nn.Module) else weights


def _digest(name: str, tensor: Tensor) -> str:
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    if tensor.is_meta:
        raise ValueError(f"{name!r} is on the meta device and has no bytes to hash; load the weights first")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # numpy knows no bfloat16: every dtype is read as bytes, in place.
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
