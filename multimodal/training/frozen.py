"""The promise that what was frozen is, after training, bit for bit what it was."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from multimodal.fingerprint import digests, fingerprint, state_of
from multimodal.training.learns import learning, noted


def frozen_digests(model: nn.Module) -> dict[str, str]:
    """The sha256 of every tensor that does not learn: frozen parameters and persistent buffers (also statistics, but
    not what modules that learn note down).

    Take it after `prepare`: sharding may change how frozen weights are kept.
    """
    open_now = learning(model).keys() | noted(model).keys()
    return digests({name: tensor for name, tensor in state_of(model).items() if name not in open_now})


def frozen_fingerprint(model: nn.Module) -> str:
    """One fingerprint of all that does not learn, for reports."""
    open_now = learning(model).keys() | noted(model).keys()
    return fingerprint({name: tensor for name, tensor in state_of(model).items() if name not in open_now})


def check_frozen(model: nn.Module, before: Mapping[str, str]) -> None:
    """RuntimeError with the first tensor that is no longer what `frozen_digests` saw."""
    now = frozen_digests(model)
    if now.keys() != before.keys():
        differing = sorted(now.keys() ^ before.keys())
        raise RuntimeError(f"other tensors are frozen than before the run, for example {differing[0]!r}")
    changed = [name for name in now if now[name] != before[name]]
    if changed:
        raise RuntimeError(
            f"{changed[0]!r} was frozen and has changed in the run ({len(changed)} of {len(now)} frozen tensors have); "
            "something wrote to it in place: the adapters of this run belong to no backbone"
        )
