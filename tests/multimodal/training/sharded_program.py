"""One process of a run of the real model on batches with and without pictures: `sharded_program.py shard|whole FILE`.

With `shard` its weights are spread over the processes by FSDP2, as accelerate does it on GPUs (on CPUs it does not).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from adapters import ImageAdapter, ImageAdapterConfig
from adapters.cross_attention import CrossAttention
from multimodal.batch import NO_TARGET, Batch
from multimodal.model import MultimodalModel
from multimodal.training import TrainingConfig, check_frozen, frozen_digests, learning, prepare, token_loss, train
from multimodal.training.placement import gather_at_entrances
from text_backbone import LlamaConfig, TextBackbone
from text_backbone.model import Block

STEPS, ROWS, T, M, E = 5, 4, 6, 3, 8


def model() -> MultimodalModel:
    torch.manual_seed(0)
    text = TextBackbone(
        LlamaConfig(vocabulary=20, width=16, layers=4, heads=2, kv_heads=1, head_width=8, feed_forward=24, tied=True)
    )
    adapter = ImageAdapter(
        ImageAdapterConfig(
            at=(1, 3), width=16, features=E, heads=2, kv_heads=1, head_width=8, feed_forward=24, gate=0.5
        )
    )
    for block in adapter.blocks:
        # FSDP2 takes no scalars.
        for name in ("attention_gate", "feed_forward_gate"):
            setattr(block, name, nn.Parameter(getattr(block, name).detach().reshape(1)))
    return MultimodalModel(text, {}, {"image": adapter})


def batch_of(rows: range, *, pictures: bool) -> Batch:
    chance = torch.Generator().manual_seed(rows.start)
    B = len(rows)
    tokens = torch.randint(20, (B, T), generator=chance)
    features, sees = torch.randn(B * M, E, generator=chance), torch.ones(B, T, M, dtype=torch.bool)
    sees[:, :2] = False
    plain = Batch(
        tokens=tokens,
        lengths=torch.full((B,), T),
        targets=torch.where(torch.rand(B, T, generator=chance) < 0.5, (tokens * 3 + 1) % 20, NO_TARGET),
        places=torch.zeros(0, 3),
        owners=torch.zeros(0, dtype=torch.long),
        index=torch.zeros(B, 0, dtype=torch.long),
        sees=torch.zeros(B, T, 0, dtype=torch.bool),
        keys=tuple(str(row) for row in rows),
    )
    index = torch.arange(B * M).reshape(B, M)
    if not pictures:
        return plain
    owners = torch.arange(B).repeat_interleave(M)
    return replace(plain, places=torch.zeros(B * M, 3), owners=owners, index=index, sees=sees, features=features)


def batches(rank: int, ranks: int, accumulate: int) -> Iterator[Batch]:
    """The last half of every second step has no pictures: with two processes, that is the second process."""
    for step in range(STEPS):
        each = ROWS // (ranks * accumulate)
        for place in range(accumulate):
            begin = step * ROWS + (rank * accumulate + place) * each
            half = begin % ROWS >= ROWS // 2
            yield batch_of(range(begin, begin + each), pictures=not (half and step % 2))


def blank(batch: Batch | None) -> Batch:
    """A batch without pictures with one more row, of which nothing is learned, that looks at a blank picture."""
    assert batch is not None
    if batch.has_media:
        return batch
    more = batch_of(range(1), pictures=True)
    none = torch.zeros(len(batch.tokens), T, M, dtype=torch.bool)
    return replace(
        batch,
        tokens=torch.cat([batch.tokens, more.tokens]),
        lengths=torch.cat([batch.lengths, more.lengths]),
        targets=torch.cat([batch.targets, torch.full_like(more.targets, NO_TARGET)]),
        places=more.places,
        owners=more.owners,
        features=torch.zeros(M, E),
        index=torch.cat([torch.full((len(batch.tokens), M), -1), more.index]),
        sees=torch.cat([none, more.sees]),
    )


def main(kind: str, file: str) -> None:
    accelerator = Accelerator()
    ranks = accelerator.num_processes
    accumulate = 1 if ranks == 2 else 2
    config = TrainingConfig(steps=STEPS, warm_up=0, learning_rate=1e-2, accumulate=accumulate)
    net, optimizer = prepare(accelerator, model(), config)
    if kind == "shard":
        mesh = init_device_mesh("cpu", (ranks,))
        names = {name: group for group in optimizer.param_groups for name in group["names"]}
        for module in net.modules():
            if isinstance(module, Block | CrossAttention):
                fully_shard(module, mesh=mesh)
        fully_shard(net, mesh=mesh)
        gather_at_entrances(net)
        for name, parameter in learning(net).items():
            group = names[name]
            group["params"][group["names"].index(name)] = parameter
    before = frozen_digests(net)
    source = batches(accelerator.process_index, ranks, accumulate)
    for step in train(accelerator, net, optimizer, source, token_loss, config, stand_in=blank):
        accelerator.print(step.index, step.loss, step.gradient_norm)
    check_frozen(net, before)
    weights = {name: weight.detach() for name, weight in learning(net).items()}
    whole = {name: weight.full_tensor() if isinstance(weight, DTensor) else weight for name, weight in weights.items()}
    assert kind != "shard" or any(isinstance(weight, DTensor) for weight in weights.values())
    if accelerator.is_main_process:
        save_file({name: weight.contiguous() for name, weight in whole.items()}, file)
    if ranks > 1:
        dist.barrier()
    accelerator.end_training()


if __name__ == "__main__":
    assert os.environ["ACCELERATE_USE_CPU"] == "true"
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2])
