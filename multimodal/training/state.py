"""A run's state on disk (what learns, optimizer, generators, position): a killed run goes on as if it had not been."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from multimodal.training.learns import learning, noted
from multimodal.training.publication import fault, publish, sweep, write_safetensors
from multimodal.training.random_state import random_state, restore_random_state

__all__ = ["Position", "load_state", "newest_state", "save_state", "write_safetensors"]

_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: everything about the past that the next step depends on and that is not a tensor."""

    step: int = 0
    """Steps done, the skipped ones too."""
    samples: int = 0
    """Samples that all processes together have learned from."""
    skipped: int = 0
    """Steps left out because their loss or gradient was not finite."""
    skipped_in_a_row: int = 0


def save_state(
    accelerator: Accelerator,
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    *,
    identity: Mapping[str, str] | None = None,
    keep: int = 2,
) -> Path:
    """Writes `folder`/step-N and then prunes to the newest `keep`; every process calls it, the main one writes.

    `identity` names what the state belongs to (fingerprints of backbone and encoder, the config): `load_state` refuses
    another. A kill at any instant leaves the states before intact; so does a full disk, which raises OSError in every
    process: the run may go on and save later.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    weights = {name: _whole(parameter) for name, parameter in _kept(model).items()}
    moments = {name: _whole(value) for name, value in _moments(optimizer).items()}
    generators = accelerator.gather(random_state().to(accelerator.device)[None])
    assert isinstance(generators, Tensor)
    about = {"position": asdict(position), "identity": dict(identity or {}), "processes": accelerator.num_processes}
    target = folder / f"step-{position.step:08d}"
    problem: Exception | None = None
    if accelerator.is_main_process:

        def write(partial: Path) -> None:
            save_file(_on_cpu(weights), partial / "weights.safetensors")
            save_file(_on_cpu(moments), partial / "optimizer.safetensors")
            save_file({"processes": generators.cpu()}, partial / "random.safetensors")
            (partial / "state.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

        try:
            sweep(folder)
            publish(target, write)
            _prune(folder, position.step, keep)
        except (OSError, SafetensorError) as error:
            problem = error
    _agree(accelerator, problem, f"the state of step {position.step} could not be written to {folder}")
    return target


def load_state(
    accelerator: Accelerator,
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    identity: Mapping[str, str] | None = None,
) -> Position:
    """Brings back the newest state that verifies, and where it stood; the start of a run where there is none.

    A damaged state is passed over with a line that says so. ValueError where states exist but none verifies, or where
    the state belongs to another backbone, encoder or config, or other parameters learn.
    """
    step, problem = -1, None
    if accelerator.is_main_process:
        try:
            sweep(folder)
            found = newest_state(folder, say=accelerator.print)
            step = -1 if found is None else _step(found)
        except ValueError as error:
            problem, step = error, -2
    agreed = accelerator.reduce(torch.tensor(step if accelerator.is_main_process else 0, device=accelerator.device))
    assert isinstance(agreed, Tensor)
    step = int(agreed)
    if step == -2:
        raise problem or ValueError(f"no state in {folder} can be read; the main process says why")
    if step == -1:
        return Position()
    chosen = folder / f"step-{step:08d}"
    about = json.loads((chosen / "state.json").read_text(encoding="utf-8"))
    _refuse_other(chosen, about["identity"], identity or {})
    _load_weights(chosen, model)
    _load_moments(chosen, optimizer)
    generators = load_file(chosen / "random.safetensors")["processes"]
    if len(generators) == accelerator.num_processes:
        restore_random_state(generators[accelerator.process_index])
    else:
        accelerator.print(
            f"{chosen} was saved by {len(generators)} processes, now there are {accelerator.num_processes}: "
            "the random generators start anew (the steps' own draws depend on seed and step alone and stay the same)"
        )
    return Position(**about["position"])


def newest_state(folder: Path, *, say: Callable[[str], None] = print) -> Path | None:
    """The newest state in `folder` whose manifest verifies; None where there is none at all.

    Each damaged one is named through `say`. ValueError where there are states and all are damaged: to start over in
    silence would throw a run away.
    """
    found = _states(folder)
    faults: list[str] = []
    for state in reversed(found):
        wrong = fault(state)
        if wrong is None:
            for line in faults:
                say(f"{line}; going back to {state.name}")
            return state
        faults.append(f"{state} is damaged ({wrong})")
    if faults:
        raise ValueError(f"{'; '.join(faults)}: none can be resumed from; remove {folder} to start over")
    return None


def _states(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _prune(folder: Path, step: int, keep: int) -> None:
    """Removes all but the newest `keep`; states past `step` are of a course that the run has gone back behind."""
    states = _states(folder)
    past = [state for state in states if _step(state) > step]
    for state in past + [state for state in states if _step(state) <= step][:-keep]:
        # Renamed first: a kill in the middle of the removal leaves no torn folder under a state's name.
        doomed = folder / f".partial-{state.name}"
        state.rename(doomed)
        shutil.rmtree(doomed)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: `exp_avg/adapters.image...`."""
    named: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for kind, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    named[f"{kind}/{name}"] = value
                elif value is not None:
                    raise ValueError(
                        f"{type(optimizer).__name__} keeps {kind!r} as {type(value).__name__}, not as a tensor"
                    )
    return named


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """What learns, and what modules that learn note down."""
    return {**learning(model), **noted(model)}


def _load_weights(state: Path, model: nn.Module) -> None:
    weights = load_file(state / "weights.safetensors")
    open_now = _kept(model)
    extra, missing = sorted(weights.keys() - open_now.keys()), sorted(open_now.keys() - weights.keys())
    if extra or missing:
        raise ValueError(
            f"{state} holds other parameters than learn now: {extra[:3]} do not learn now, {missing[:3]} did not then; "
            "resume with the `learns` and the adapter that the run began with"
        )
    with torch.no_grad():
        for name, parameter in open_now.items():
            if parameter.shape != weights[name].shape:
                raise ValueError(
                    f"{name} is {list(weights[name].shape)} in {state} and {list(parameter.shape)} in the model"
                )
            parameter.copy_(_like(weights[name], parameter))


def _load_moments(state: Path, optimizer: torch.optim.Optimizer) -> None:
    values: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(state / "optimizer.safetensors").items():
        kind, name = key.split("/", 1)
        values.setdefault(name, {})[kind] = value
    restored: dict[int, dict[str, Tensor]] = {}
    index = 0
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            own = values.get(name, {})
            if own:
                restored[index] = {
                    kind: _like(value, parameter) if value.shape == parameter.shape else value
                    for kind, value in own.items()
                }
            index += 1
    # torch decides per optimizer where its step counters live (fused: beside the parameter).
    optimizer.load_state_dict({"state": restored, "param_groups": optimizer.state_dict()["param_groups"]})


def _refuse_other(state: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name in sorted(then.keys() | now.keys()):
        before, after = then.get(name, "none"), now.get(name, "none")
        if before != after:
            raise ValueError(
                f"{state} was saved with {name} {_short(before)}, this run has {_short(after)}; "
                "resume with what it began with, or choose another folder"
            )


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}..."


def _whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes (each must call), any other as it is."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """`tensor` on the device of `pattern`, and sharded as it is."""
    tensor = tensor.to(pattern.device)
    if isinstance(pattern, DTensor):
        return distribute_tensor(tensor, pattern.device_mesh, pattern.placements)
    return tensor


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _agree(accelerator: Accelerator, problem: Exception | None, what: str) -> None:
    """Waits for all processes; a problem of one is raised in all, so that none waits for another for ever."""
    failed = accelerator.reduce(torch.tensor(0 if problem is None else 1, device=accelerator.device))
    assert isinstance(failed, Tensor)
    if problem is not None:
        raise OSError(f"{what}: {problem}; the state before it is intact") from problem
    if failed.item():
        raise OSError(f"{what}: the main process says why")
