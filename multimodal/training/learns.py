"""What learns: name patterns and learning-rate multipliers turned into parameter groups; what none names is frozen."""

from __future__ import annotations

import re

import torch
from torch import nn

from multimodal.settings import did_you_mean

Learns = tuple[tuple[str, float], ...]
"""(pattern, learning-rate multiplier): the first pattern that matches a parameter's whole name decides."""


def open_parameters(model: nn.Module, learns: Learns) -> dict[str, float]:
    """Opens what `learns` names, freezes the rest, and gives each open parameter's multiplier by its name.

    What learns is kept in float32, also in a model loaded in bfloat16: a step of 1e-5 is lost in bfloat16, whose
    neighbours of 1 are 0.4% apart. Autocast brings the copies it multiplies with back to bfloat16. A multiplier of 0
    freezes, so that an exception can stand before a wider pattern. ValueError for a pattern that matches nothing, or
    that earlier ones leave nothing to.
    """
    if not learns:
        raise ValueError(
            "learns is empty, so nothing would learn; name at least one part, for example ('adapters\\\\..*', 1.0)"
        )
    patterns = [_compiled(pattern, multiplier) for pattern, multiplier in learns]
    named = dict(model.named_parameters())
    matches = [0] * len(learns)
    chosen = [0] * len(learns)
    multipliers: dict[str, float] = {}
    for name, parameter in named.items():
        matching = [i for i, pattern in enumerate(patterns) if pattern.fullmatch(name)]
        for i in matching:
            matches[i] += 1
        multiplier = learns[matching[0]][1] if matching else 0.0
        if matching:
            chosen[matching[0]] += 1
        parameter.requires_grad_(multiplier > 0)
        if multiplier > 0:
            multipliers[name] = multiplier
            if parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()
    _refuse_idle(learns, matches, chosen, list(named))
    if not multipliers:
        raise ValueError(f"every multiplier in learns is 0, so nothing would learn: {learns}")
    return multipliers


def groups(model: nn.Module, multipliers: dict[str, float], *, weight_decay: float) -> list[dict]:
    """Parameter groups for a torch optimizer: one per multiplier and decay, with `names` and `multiplier` beside them.

    Weight decay is for matrices only: gates, norms and biases (fewer than two dimensions) are left alone.
    """
    sorted_out: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if name not in multipliers:
            continue
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        empty = {"params": [], "names": [], "multiplier": multipliers[name], "weight_decay": decay}
        group = sorted_out.setdefault((multipliers[name], decay), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(sorted_out.values())


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """The open parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def noted(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers by name that training itself writes, in modules that learn: a module names its own in `notes`."""
    return {
        f"{prefix}.{name}" if prefix else name: module.get_buffer(name)
        for prefix, module in model.named_modules()
        if isinstance(getattr(module, "notes", None), tuple) and any(p.requires_grad for p in module.parameters())
        for name in module.notes  # pyright: ignore[reportGeneralTypeIssues]
    }


def recompute(model: nn.Module, on: bool) -> int:
    """Turns gradient checkpointing on or off in every part with the switch (`recompute`); how many those were."""
    parts = [module for module in model.modules() if isinstance(getattr(module, "recompute", None), bool)]
    for part in parts:
        part.recompute = on  # type: ignore[assignment]
    if on and not parts:
        raise ValueError(f"no part of {type(model).__name__} has a `recompute` switch; train with recompute=False")
    return len(parts)


def _compiled(pattern: str, multiplier: float) -> re.Pattern[str]:
    if not 0 <= multiplier < float("inf"):
        raise ValueError(f"the learning-rate multiplier of {pattern!r} must be 0 or more and finite, got {multiplier}")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} in learns is not a regular expression: {error}") from error


def _refuse_idle(learns: Learns, matches: list[int], chosen: list[int], names: list[str]) -> None:
    idle = [pattern for (pattern, _), count in zip(learns, matches, strict=True) if not count]
    if idle:
        plain = idle[0].replace("\\", "").removesuffix(".*")
        hint = did_you_mean(plain, _beginnings(names))
        parts = list(dict.fromkeys(name.split(".")[0] for name in names))
        raise ValueError(f"no parameter matches {idle}{hint}{' The' if hint else '; the'} model's parts are {parts}")
    shadowed = [pattern for (pattern, _), count in zip(learns, chosen, strict=True) if not count]
    if shadowed:
        raise ValueError(f"{shadowed} match only parameters that earlier patterns already took; the first match wins")


def _beginnings(names: list[str]) -> list[str]:
    """Every dotted beginning of a name: what a pattern may have meant to name."""
    found = dict.fromkeys(".".join(name.split(".")[:k]) for name in names for k in range(1, name.count(".") + 2))
    return list(found)
