"""A model made ready to learn on however many processes there are: what learns opened, the optimizer, sharding."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from multimodal.training.config import TrainingConfig
from multimodal.training.learns import groups, learning, open_parameters, recompute

ModelT = TypeVar("ModelT", bound=nn.Module)

CPU_LAUNCH = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 recipes/..."

_UNSUPPORTED = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)
# Parts of the model that are called by these names, not by calling the module, gather their shards there too.
_ENTRANCES = ("embed", "run", "head", "remember")


def check_processes(accelerator: Accelerator) -> None:
    """ValueError where the launcher started more processes than accelerate sees: each would train for itself."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ValueError(
            f"the launcher started {started} processes, but accelerate sees {accelerator.num_processes}: each would "
            f"train alone and write the same folder; on a machine without a GPU launch with: {CPU_LAUNCH}"
        )


def use_cores(accelerator: Accelerator) -> int:
    """Lets torch use this process' share of the machine's cores, and says how many threads that are.

    accelerate's launcher gives a process on CPUs one thread (OMP_NUM_THREADS=1) unless it is told otherwise; another
    number is somebody's wish and stays.
    """
    if accelerator.device.type == "cpu" and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        together = int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // together))
    return torch.get_num_threads()


def prepare(accelerator: Accelerator, model: ModelT, config: TrainingConfig) -> tuple[ModelT, torch.optim.Optimizer]:
    """Opens what learns, moves the model to its device, shards it where accelerate's config says FSDP2, makes AdamW.

    There is no DistributedDataParallel around the model: `train` sums the gradients itself, once a step, so that every
    process takes part in the same collectives whatever its batches hold. ValueError for what cannot be trained so.

    For FSDP2 accelerate's config names what to shard (`fsdp_transformer_layer_cls_to_wrap: Block,CrossAttention`);
    scalar parameters it takes only as vectors of one number.
    """
    check_processes(accelerator)
    if accelerator.distributed_type in _UNSUPPORTED:
        raise ValueError(f"accelerate is set to {accelerator.distributed_type.value}; use plain data parallel or FSDP2")
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(f"mixed_precision is {accelerator.mixed_precision!r}; training knows 'bf16' and 'no'")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"gradient_accumulation_steps is {accelerator.gradient_accumulation_steps} in accelerate; leave it at 1, "
            "and set `accumulate` in the training config, which divides by the targets of all batches together"
        )
    recompute(model, config.recompute)
    multipliers = open_parameters(model, config.learns)
    fsdp = accelerator.distributed_type == DistributedType.FSDP
    if not fsdp:
        model = model.to(accelerator.device)
    fused = accelerator.device.type in ("cpu", "cuda") and not fsdp
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        groups(model, multipliers, weight_decay=config.weight_decay),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=fused,
    )
    if fsdp:
        if not accelerator.is_fsdp2:
            raise ValueError("accelerate is set to FSDP version 1; set fsdp_version: 2 in its config")
        model, wrapped = accelerator.prepare(model, optimizer)
        optimizer = wrapped.optimizer
        gather_at_entrances(model)
    return model, optimizer


def gather_at_entrances(model: nn.Module) -> None:
    """Lets the sharded parts of a model be entered through their own methods as well as by a call."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            for name in _ENTRANCES:
                if hasattr(module, name):
                    register_fsdp_forward_method(module, name)


def sharded(model: nn.Module) -> bool:
    """Whether the parameters that learn are spread over the processes (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in learning(model).values())


def set_modes(model: nn.Module) -> None:
    """Training mode for the parts that learn; wholly frozen parts evaluate: no dropout, no new statistics."""
    model.train()
    for module in model.modules():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()
