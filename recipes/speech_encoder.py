"""Teaches a speech encoder to listen without a single transcript: BEST-RQ (Llama 3 paper, section 8.2).

    accelerate launch recipes/speech_encoder.py                       # a small Conformer, on the demo's kit
    accelerate launch recipes/speech_encoder.py paper --data.train 'shards/{0000..9999}.tar'
    accelerate launch recipes/speech_encoder.py --resume

Writes into the run's folder: config.json, conformer.json and conformer.safetensors (what `conformer/<folder>` names in
recipes/speech_adapter.py), metrics.jsonl with the share of right guesses and the codes in use, training.json with a
linear probe beside the same encoder untrained, and the training's state under state/.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from encoders import BestRQ, BestRQConfig, Conformer, ConformerConfig
from encoders.best_rq import Guess
from encoders.conformer import save_conformer
from encoders.mel import log_mel
from multimodal.command_line import parse
from multimodal.data.buckets import Buckets
from multimodal.data.loader import Loader, LoaderConfig
from multimodal.data.order import Mixture, Turns
from multimodal.data.recordings import Recording, ShardRecordings
from multimodal.data.speech import opened
from multimodal.evaluation.probe import Probed, linear_probe, pooled
from multimodal.precision import Precision, chosen
from multimodal.settings import to_json
from multimodal.training import (
    LiveProgress,
    Metrics,
    Position,
    StopSignal,
    TrainingConfig,
    check_processes,
    load_state,
    prepare,
    save_state,
    train,
    use_cores,
)
from multimodal.training.claim import claim
from multimodal.training.publication import write_text


@dataclass(frozen=True, kw_only=True)
class ListeningData:
    """Which recordings are listened to; their texts are not looked at."""

    train: tuple[str, ...]
    """WebDataset shards of recordings, one entry a source."""
    test: tuple[str, ...] = ()
    """Shards that the probe is tested on; none: no probe."""
    batch: int = 16
    """Recordings of one optimizer step, over all processes."""
    bucket: int = 16
    """Batches among which recordings are sorted by length."""
    longest: float = 3600.0
    """Seconds; longer recordings are bad samples (what is longer than BestRQConfig.longest is cropped)."""
    measured: int = 256
    """Recordings from which the bands' mean and deviation are taken."""
    seed: int = 0
    reading: LoaderConfig = field(default_factory=LoaderConfig)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of self-supervised training."""

    encoder: ConformerConfig = field(default_factory=ConformerConfig)
    best_rq: BestRQConfig = field(default_factory=BestRQConfig)
    data: ListeningData
    training: TrainingConfig
    precision: Precision = "auto"
    out: str = "runs/speech_encoder"
    resume: bool = False
    save_every: int = 100


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Log-mel frames of several recordings."""

    heard: list[Tensor]
    keys: tuple[str, ...]

    def to(self, device: torch.device) -> Frames:
        return replace(self, heard=[one.to(device) for one in self.heard])


_KIT = "downloads/shards-speech"
PRESETS = {
    "demo": Config(
        encoder=ConformerConfig(width=192, layers=6, heads=4, feed_forward=512),
        best_rq=BestRQConfig(codebooks=4, codes=512),
        data=ListeningData(train=(f"{_KIT}/queen-train",), test=(f"{_KIT}/queen-test",)),
        training=TrainingConfig(learns=((r".*", 1.0),), steps=2000, learning_rate=1e-3, warm_up=100),
    ),
    "paper": Config(
        data=ListeningData(train=("shards/train-*.tar",), batch=2048),
        training=TrainingConfig(
            learns=((r".*", 1.0),), steps=500_000, learning_rate=1e-4, warm_up=10_000, recompute=True
        ),
    ),
}


class Listen:
    """Makes frames of recordings; runs in loader workers."""

    def __init__(self, longest: float, bands: int) -> None:
        self.longest, self.bands = longest, bands

    def __call__(self, recording: Recording, random: torch.Generator) -> tuple[str, Tensor]:
        return recording.key, log_mel(opened(recording.sound, self.longest, recording.key), self.bands)


def main(config: Config) -> None:
    out = Path(config.out)
    accelerator = Accelerator(mixed_precision="bf16" if chosen(config.precision) == torch.bfloat16 else "no")
    check_processes(accelerator)
    use_cores(accelerator)
    claim(accelerator, config, out, begun=begun, resume=config.resume)
    torch.manual_seed(config.training.seed)
    sources = [ShardRecordings(pattern) for pattern in config.data.train]
    model = BestRQ(Conformer(config.encoder), config.best_rq)
    listen = Listen(config.data.longest, config.encoder.bands)
    model.encoder.measure(some_frames(sources, listen, config.data.measured))
    untrained = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    loader = listening_loader(config, sources, listen, accelerator)
    seen: list[Guess] = []
    with StopSignal() as stop:
        model, optimizer = prepare(accelerator, model, config.training)
        identity = {"config": to_json(begun(config))}
        start = Position()
        if config.resume:
            start = load_state(accelerator, out / "state", model, optimizer, identity=identity)

        def loss(model: BestRQ, batch: Frames) -> tuple[Tensor, int]:
            guess = model(batch.heard)
            seen.append(guess)
            return guess.loss, guess.masked

        steps = train(
            accelerator,
            model,
            optimizer,
            (loaded.batch for loaded in loader.batches(start.step * config.data.batch)),
            loss,
            config.training,
            start=start,
            stop=stop,
        )
        first = accelerator.is_main_process
        with (
            LiveProgress(config.training.steps, quiet=not first) as progress,
            Metrics(out / "metrics.jsonl", after=start.step) if first else nullcontext() as metrics,
        ):
            for step in steps:
                progress.show(step)
                if metrics is not None:
                    metrics.write(step=step.index, **step.metrics(), **guessed(seen))
                seen.clear()
                if step.index % config.save_every == 0 or step.last:
                    save_state(accelerator, out / "state", model, optimizer, step.position, identity=identity)
        if first and not stop.asked:
            finish(config, model, untrained, sources, listen, loader.tolerance.skipped)


def listening_loader(
    config: Config, sources: list[ShardRecordings], listen: Listen, accelerator: Accelerator
) -> Loader[tuple[str, Tensor], Frames]:
    data = config.data
    mixture = Mixture(sources=tuple(tuple(one.sizes) for one in sources), seed=data.seed)
    ordered = Buckets(mixture, [one.lengths for one in sources], rows=data.batch, batches=data.bucket)
    turns = Turns(
        rows=data.batch,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
        micro=config.training.accumulate,
    )
    return Loader(list(sources), ordered, turns, prepare=listen, collate=together, config=data.reading)


def together(items: list[tuple[str, Tensor]]) -> Frames:
    return Frames(heard=[frames for _, frames in items], keys=tuple(key for key, _ in items))


def some_frames(sources: list[ShardRecordings], listen: Listen, most: int) -> list[Tensor]:
    """Frames of the first recordings of each source, for the bands' mean and deviation."""
    share = max(1, most // len(sources))
    chosen_ones = (one for source in sources for i in range(min(share, len(source))) if (one := source.get(i)))
    return [listen(one, torch.Generator())[1] for one in chosen_ones]


def guessed(guesses: list[Guess]) -> dict[str, float]:
    """What metrics.jsonl says beside the loss: right guesses, and how many codes are in use (perplexity)."""
    masked = sum(one.masked for one in guesses)
    if not masked:
        return {}
    used = torch.stack([one.used for one in guesses]).mean(0)
    return {
        "right": sum(float(one.right) for one in guesses) / masked,
        "codes_used": float(used.mean()),
        "codes_used_least": float(used.min()),
    }


def probe(config: Config, conformer: Conformer, sources: list[ShardRecordings], listen: Listen) -> Probed:
    """Who speaks, read off the mean features: the ten commonest speakers of training."""
    tests = [ShardRecordings(pattern) for pattern in config.data.test]
    parts = [
        [one for source in part for i in range(len(source)) if (one := source.get(i))] for part in (sources, tests)
    ]
    counts = Counter(one.speaker for one in parts[0] if one.speaker)
    known = {name for name, _ in counts.most_common(10)}
    rows, labels = [], []
    for part in parts:
        kept = [one for one in part if one.speaker in known]
        with torch.no_grad():
            features = [conformer([listen(one, torch.Generator())[1]])[0] for one in kept]
        rows.append(pooled(features))
        labels.append([one.speaker for one in kept])
    return linear_probe(rows[0], labels[0], rows[1], labels[1])


def begun(config: Config) -> Config:
    """What of a config must stay between a run's beginning and its resumption."""
    training = replace(config.training, accumulate=1, recompute=False)
    data = replace(config.data, reading=LoaderConfig())
    return Config(
        encoder=config.encoder, best_rq=config.best_rq, data=data, training=training, precision=config.precision
    )


def finish(
    config: Config,
    model: BestRQ,
    untrained: dict[str, Tensor],
    sources: list[ShardRecordings],
    listen: Listen,
    left_out: Counter[str],
) -> None:
    """Writes the encoder and what a linear probe reads off it, beside the same encoder as it began."""
    out = Path(config.out)
    conformer = model.encoder.cpu().eval()
    save_conformer(conformer, out)
    about: dict = {
        "steps": config.training.steps,
        "trained_parameters": sum(weight.numel() for weight in model.parameters()),
        "encoder_parameters": sum(weight.numel() for weight in conformer.parameters()),
        "left_out": dict(left_out),
    }
    if config.data.test:
        fresh = Conformer(config.encoder).eval()
        fresh.load_state_dict(untrained)
        for name, one in (("probe", conformer), ("probe_untrained", fresh)):
            found = probe(config, one, sources, listen)
            about[name] = {"speaker_accuracy": found.accuracy, "majority": found.majority, "n": found.n}
    write_text(out / "training.json", json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main(parse(PRESETS, about=__doc__ or ""))
