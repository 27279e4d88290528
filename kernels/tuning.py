"""Tile choices of Triton kernels: a short list, tried once on the GPU at hand, the pick kept on the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import triton

from kernels.backend import interpreted

Fits = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
"""Whether a configuration's compile-time arguments make sense for a call's arguments."""


def tuned(
    kernel: Any,
    configurations: Sequence[triton.Config],
    *,
    key: Sequence[str],
    fits: Fits | None = None,
    added_to: Sequence[str] = (),
) -> Any:
    """`kernel`, launched with the fastest of `configurations` for each set of values of the arguments in `key`.

    The first is the one that is taken where nothing may be tried (the interpreter) or nothing else fits. `added_to`
    names tensors that the kernel adds to: a trial must not leave anything in them. Triton keeps the timings in its
    cache folder, so that a later process makes the same choice, and two runs on one machine give the same bits.
    """
    listed = list(configurations[:1] if interpreted() else configurations)

    def pruned(configs: list[triton.Config], given: Mapping[str, Any], **more: Any) -> list[triton.Config]:
        call = {**given, **more}
        return [one for one in configs if fits is None or fits(one.kwargs, call)] or configs[:1]

    return triton.autotune(
        listed,
        key=list(key),
        prune_configs_by={"early_config_prune": pruned},
        reset_to_zero=list(added_to) or None,
        cache_results=True,
    )(kernel)
