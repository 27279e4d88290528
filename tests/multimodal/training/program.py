"""A tiny run, to be killed: `program.py '{...}'` runs once, `program.py serve` forks a run for each line it reads."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from multimodal.fingerprint import fingerprint
from multimodal.training import (
    Metrics,
    Position,
    StopSignal,
    TrainingConfig,
    check_frozen,
    frozen_digests,
    learning,
    load_state,
    prepare,
    save_state,
    train,
)
from tests.lives import serve

WIDTH, WORDS, ROWS = 16, 11, 8


@dataclass(frozen=True)
class TinyBatch:
    tokens: Tensor
    targets: Tensor
    media: Tensor | None
    keys: tuple[str, ...]


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.gate = nn.Parameter(torch.full((1,), 0.5))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, media: Tensor) -> Tensor:
        return x + self.gate.tanh() * self.enter(self.dropout(x + media))


class TinyModel(nn.Module):
    """The shape of the real one: frozen text, an adapter that only batches with media reach."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.ModuleDict({"embed": nn.Embedding(WORDS, WIDTH), "head": nn.Linear(WIDTH, WORDS)})
        self.adapters = nn.ModuleDict({"image": Adapter(), "video": Adapter()})

    def forward(self, batch: TinyBatch) -> Tensor:
        x = self.text["embed"](batch.tokens)
        if batch.media is not None:
            x = self.adapters["image"](x, batch.media)
        return self.text["head"](x)


def tiny_model(seed: int = 0) -> TinyModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyModel()


def rows_at(positions: range, *, without_media: bool, poison: tuple[int, ...] = ()) -> TinyBatch:
    """A batch that depends on its positions alone."""
    samples = []
    for position in positions:
        random = torch.Generator().manual_seed(position)
        tokens = torch.randint(WORDS, (5,), generator=random)
        targets = torch.where(torch.rand(5, generator=random) < 0.4, (tokens * 3 + 1) % WORDS, -100)
        samples.append((tokens, targets, torch.randn(5, WIDTH, generator=random)))
    media = torch.stack([sample[2] for sample in samples])
    for position in set(poison) & set(positions):
        media[positions.index(position)] = float("nan")
    return TinyBatch(
        tokens=torch.stack([sample[0] for sample in samples]),
        targets=torch.stack([sample[1] for sample in samples]),
        media=None if without_media else media,
        keys=tuple(f"sample-{position}" for position in positions),
    )


def tiny_loss(model: nn.Module, batch: TinyBatch) -> tuple[Tensor, int]:
    at = batch.targets != -100
    return F.cross_entropy(model(batch).float()[at], batch.targets[at], reduction="sum"), int(at.sum())


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What a run does; every field has a meaning in one of the tests."""

    folder: str
    steps: int = 40
    save_every: int = 3
    rows: int = ROWS
    accumulate: int = 1
    dropout: float = 0.1
    mixed_precision: str = "no"
    text_only_rank: int = -1
    """A process whose batches never hold media."""
    text_only_every: int = 0
    """Every so many-th step holds no media in any process."""
    pause: float = 0.0
    """Seconds between steps."""
    stop_after: int = 0
    """Ends after this step, as if it had been asked to."""


def batches(tiny: Tiny, accelerator: Accelerator, first: int, accumulate: int):
    each = tiny.rows // (accelerator.num_processes * accumulate)
    step = first
    while True:
        begin = step * tiny.rows + accelerator.process_index * each * accumulate
        no_media = accelerator.process_index == tiny.text_only_rank
        no_media = no_media or (tiny.text_only_every > 0 and step % tiny.text_only_every == 0)
        for place in range(accumulate):
            yield rows_at(range(begin + place * each, begin + (place + 1) * each), without_media=no_media)
        step += 1


def run(tiny: Tiny) -> None:
    accelerator = Accelerator(mixed_precision=tiny.mixed_precision)
    folder = Path(tiny.folder)
    model = tiny_model()
    model.adapters["image"].dropout.p = tiny.dropout
    config = TrainingConfig(
        learns=((r"adapters\.image\.gate", 5.0), (r"adapters\.image\..*", 1.0)),
        steps=tiny.steps,
        warm_up=5,
        learning_rate=1e-2,
        accumulate=tiny.accumulate,
    )
    model, optimizer = prepare(accelerator, model, config)
    before = frozen_digests(model)
    start = load_state(accelerator, folder / "state", model, optimizer, identity={"text": fingerprint(model.text)})
    source = batches(tiny, accelerator, start.step, tiny.accumulate)
    with (
        StopSignal() as stop,
        Metrics(folder / f"metrics-{accelerator.process_index}.jsonl", after=start.step) as metrics,
    ):
        for step in train(accelerator, model, optimizer, source, tiny_loss, config, start=start, stop=stop):
            metrics.write(step=step.index, loss=step.loss, samples=step.position.samples)
            if step.index % tiny.save_every == 0 or step.last:
                save(accelerator, tiny, model, optimizer, step.position)
            if step.index == tiny.stop_after:
                break
            if tiny.pause:
                time.sleep(tiny.pause)
    check_frozen(model, before)
    if accelerator.is_main_process:
        weights = {name: parameter.flatten().tolist() for name, parameter in learning(model).items()}
        result = {"fingerprint": fingerprint(learning(model)), "weights": weights}
        (folder / "result.json").write_text(json.dumps(result))
    accelerator.end_training()


def save(
    accelerator: Accelerator, tiny: Tiny, model: nn.Module, optimizer: torch.optim.Optimizer, at: Position
) -> None:
    identity = {"text": fingerprint(model.text)}  # type: ignore[arg-type]
    save_state(accelerator, Path(tiny.folder) / "state", model, optimizer, at, identity=identity)


def live(**tiny: Any) -> None:
    """A life of a run."""
    run(Tiny(**tiny))


def _warm() -> None:
    """The first step of an optimizer imports half of torch; done here, no life has to do it."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], fused=True).step()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "serve":
        _warm()
        serve(live)
    else:
        run(Tiny(**json.loads(sys.argv[1])))
