"""The training loop as a generator of steps: the caller writes the `for`, and owns logging, evaluation and saving."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from multimodal.training.config import TrainingConfig
from multimodal.training.learns import learning
from multimodal.training.placement import check_processes, set_modes, sharded
from multimodal.training.random_state import seed_of
from multimodal.training.schedule import schedule
from multimodal.training.state import Position
from multimodal.training.stop import StopSignal

B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)

# Elements (256 MiB of float32) that are summed over the processes in one go.
_BUCKET = 2**26


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimizer step did, the same in every process."""

    index: int
    """Counted from 1."""
    loss: float
    """Mean over the target tokens of all processes, nats; 0 where there were none, NaN where it was."""
    targets: int
    samples: int
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    """Before the multipliers of `learns`."""
    seconds: float
    """From asking for the first batch to the updated weights; what the caller does between steps does not count."""
    position: Position
    """Where the run stands after this step; what `save_state` wants."""
    skipped: bool = False
    """The loss or the gradient was not finite: nothing was learned."""
    keys: tuple[str, ...] = ()
    """Of a skipped step: the samples of the batches that were not finite."""
    last: bool = False
    """Nothing comes after: all steps are done, or the process was asked to stop. Save now."""

    def metrics(self) -> dict[str, float]:
        """Numbers for metrics.jsonl and trackers."""
        return {
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.learning_rate,
            "targets": self.targets,
            "samples": self.position.samples,
            "samples_per_second": self.samples / self.seconds if self.seconds else 0.0,
            "seconds": self.seconds,
            "skipped": self.position.skipped,
        }


def train(
    accelerator: Accelerator,
    model: M,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[B | None],
    loss: Callable[[M, B], tuple[Tensor, int]],
    config: TrainingConfig,
    *,
    start: Position | None = None,
    stop: StopSignal | None = None,
    stand_in: Callable[[B | None], B] | None = None,
) -> Iterator[Step]:
    """Trains from `start` to `config.steps` and yields after each step; `model` and `optimizer` come from `prepare`.

    `batches` are this process' own from `start` on, `config.accumulate` of them a step; each may have `keys` (sample
    names) and `to(device)`; None is a batch whose samples were all bad. `loss(model, batch)` gives the *sum* over the
    batch's targets, and their number. Gradients are summed in float32 over batches and processes and divided once by
    the number of targets of them all: so one process, two processes and accumulation give the same step up to rounding.
    What is drawn in a step depends on `config.seed`, the step, and the batch's place in it alone.

    A step whose loss or gradient is not finite changes no weight; `config.patience` of them in a row raise
    FloatingPointError with the samples' keys. Under FSDP2 every process must run the same modules: there, `stand_in`
    gives a batch without media a picture that no token sees (plain data parallel needs none).
    """
    check_processes(accelerator)
    position = start or Position()
    for name, parameter in learning(model).items():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is to learn and is {parameter.dtype}; call `prepare`, which keeps what learns in float32"
            )
    source = iter(batches)
    shards = sharded(model)
    while position.step < config.steps:
        began = time.monotonic()
        set_modes(model)
        optimizer.zero_grad(set_to_none=True)
        index = position.step + 1
        local = _Sums()
        for place in range(config.accumulate):
            batch = _next(source, index, place, config)
            if shards and stand_in is not None:
                batch = stand_in(batch)
            if batch is None:
                continue
            batch = batch.to(accelerator.device) if hasattr(batch, "to") else batch  # type: ignore[attr-defined]
            torch.manual_seed(seed_of(config.seed, index, accelerator.process_index * config.accumulate + place))
            _accumulate(accelerator, model, batch, loss, local, index)
        total = _over_processes(accelerator, local, stop)
        _finish_gradients(accelerator, learning(model), total.targets, shards)
        norm = _norm(learning(model))
        rate = config.learning_rate * schedule(index, steps=config.steps, warm_up=config.warm_up, floor=config.floor)
        healthy = math.isfinite(total.loss) and math.isfinite(norm)
        if healthy:
            parameters = learning(model).values()
            torch.nn.utils.clip_grads_with_norm_(parameters, config.clip, torch.tensor(norm, device=accelerator.device))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["multiplier"]
            optimizer.step()
        keys = () if healthy else _keys_of_all(local)
        optimizer.zero_grad(set_to_none=True)
        position = Position(
            step=index,
            samples=position.samples + total.samples,
            skipped=position.skipped + (not healthy),
            skipped_in_a_row=0 if healthy else position.skipped_in_a_row + 1,
        )
        if position.skipped_in_a_row >= config.patience:
            raise FloatingPointError(
                f"{position.skipped_in_a_row} steps in a row (up to step {index}) had a loss or gradient that is not "
                f"finite; the last one's samples: {', '.join(keys[:8]) or 'unnamed'}. No weight was changed by them. "
                f"Lower the learning rate ({rate:.2g} now), or look at those samples"
            )
        yield Step(
            index=index,
            loss=total.loss / max(1, total.targets),
            targets=total.targets,
            samples=total.samples,
            gradient_norm=norm,
            learning_rate=rate,
            seconds=time.monotonic() - began,
            position=position,
            skipped=not healthy,
            keys=keys,
            last=total.stop or index == config.steps,
        )
        if total.stop:
            return


@dataclass
class _Sums:
    """What a step adds up; `keys` of all its batches, `bad` of those whose own loss was not finite."""

    loss: float = 0.0
    targets: int = 0
    samples: int = 0
    stop: bool = False
    keys: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()


def _next(source: Iterator[B | None], index: int, place: int, config: TrainingConfig) -> B | None:
    for batch in source:
        return batch
    raise ValueError(
        f"the data ended in step {index} of {config.steps}, after {place} of its {config.accumulate} batches; "
        "lower `steps`, or let the loader go on into the next epoch"
    )


def _accumulate(
    accelerator: Accelerator,
    model: M,
    batch: B,
    loss: Callable[[M, B], tuple[Tensor, int]],
    local: _Sums,
    index: int,
) -> None:
    """Forward and backward of one batch; its gradients add to those already there."""
    try:
        with accelerator.autocast():
            total, targets = loss(model, batch)
        # A batch whose loss no open parameter takes part in (text only) leaves no gradient: `_finish_gradients` knows.
        if total.requires_grad:
            accelerator.backward(total)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise MemoryError(
            f"out of memory in step {index} on a batch of {_shape(batch)}; make batches smaller and `accumulate` "
            "larger, or set `recompute`"
        ) from error
    keys = tuple(getattr(batch, "keys", ()))
    value = float(total.detach())
    local.loss += value
    local.targets += int(targets)
    local.samples += len(keys)
    local.keys += keys
    if not math.isfinite(value):
        local.bad += keys


def _over_processes(accelerator: Accelerator, local: _Sums, stop: StopSignal | None) -> _Sums:
    """The sums over all processes; one that was asked to stop stops all."""
    asked = stop is not None and stop.asked
    # float64 counts exactly; Apple's GPUs have none, and run as one process.
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    mine = torch.tensor(
        [local.loss, local.targets, local.samples, float(asked)], dtype=dtype, device=accelerator.device
    )
    loss, targets, samples, stops = accelerator.reduce(mine, reduction="sum").tolist()  # type: ignore[union-attr]
    return _Sums(loss=loss, targets=int(targets), samples=int(samples), stop=stops > 0)


def _finish_gradients(
    accelerator: Accelerator, open_now: Mapping[str, nn.Parameter], targets: int, shards: bool
) -> None:
    """Gradients of the mean over all targets, in every process; zeros where no batch reached a parameter."""
    for parameter in open_now.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in open_now.values() if parameter.grad is not None]
    if shards:
        # FSDP2 has summed them over the processes already, and divided by their number.
        factor = accelerator.num_processes / max(1, targets)
    else:
        if accelerator.num_processes > 1:
            for bucket in _buckets(gradients):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                torch.distributed.all_reduce(flat)
                parts = flat.split([gradient.numel() for gradient in bucket])
                for gradient, part in zip(bucket, parts, strict=True):
                    gradient.copy_(part.view_as(gradient))
        factor = 1.0 / max(1, targets)
    torch._foreach_mul_(gradients, factor)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and size + gradient.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


def _norm(open_now: Mapping[str, nn.Parameter]) -> float:
    """The norm of the whole gradient, over all shards."""
    norm = torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in open_now.values() if parameter.grad is not None]
    )
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _keys_of_all(local: _Sums) -> tuple[str, ...]:
    """The samples behind a step that was not finite, of every process: the bad batches', or all if none stands out."""
    everyone: list[tuple[tuple[str, ...], tuple[str, ...]]] = gather_object([(local.bad, local.keys)])
    bad = tuple(key for bad_keys, _ in everyone for key in bad_keys)
    return bad or tuple(key for _, keys in everyone for key in keys)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _shape(batch: Any) -> str:
    """The shapes of a batch's tensors, for a person who has to make it smaller."""
    values = {entry.name: getattr(batch, entry.name) for entry in fields(batch)} if is_dataclass(batch) else {}
    shapes = [f"{name} {list(value.shape)}" for name, value in values.items() if isinstance(value, Tensor)]
    return ", ".join(shapes) or type(batch).__name__
