"""Teaches a frozen text model to see: trains an image adapter (Llama 3 paper, sections 7.1 to 7.3).

    accelerate launch recipes/image_adapter.py                       # the demo's preset, on the demo's kit
    accelerate launch recipes/image_adapter.py llama3-8b --data.train 'shards/{0000..0999}.tar'
    accelerate launch recipes/image_adapter.py --resume              # goes on where a killed run stood

Writes into the run's folder: config.json, parts.json, adapters.image.safetensors, metrics.jsonl, training.json, and the
training's state under state/, from which --resume continues bit for bit.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from adapters import ImageAdapterConfig
from adapters.feed_forward import sparsity
from encoders import ImageEncoder, ImageEncoderConfig
from multimodal.batch import Batch, stand_in
from multimodal.checkpoint import describe, load_weights, save_parts, save_weights
from multimodal.command_line import parse
from multimodal.composition import start_placeholder, with_image
from multimodal.data.augmentation import augment
from multimodal.data.pictures import PictureData, captioned, fill, picture_loader, sources, starting
from multimodal.frozen_stream import FrozenStream
from multimodal.lexical_start import lexical_start
from multimodal.model import MultimodalModel
from multimodal.precision import Precision, chosen
from multimodal.prompt import PromptReader
from multimodal.settings import to_json
from multimodal.training import (
    LiveProgress,
    Metrics,
    Position,
    StopSignal,
    TrainingConfig,
    check_frozen,
    check_processes,
    frozen_digests,
    learning,
    load_state,
    open_parameters,
    prepare,
    sampled_token_loss,
    save_state,
    token_loss,
    train,
    use_cores,
)
from multimodal.training.claim import claim
from multimodal.training.publication import write_text
from text_backbone import TextBackbone, load_backbone, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of adapter training."""

    text: str = "downloads/models/smollm2-135m-instruct"
    """The backbone: a folder in Hugging Face's or Meta's layout, or a hub id."""
    precision: Precision = "auto"
    """Of the frozen parts, and of what is multiplied while training; what learns is kept in float32."""
    begin: str = ""
    """A run whose adapter (and encoder, if that learned) this one begins with; its optimizer begins anew."""
    start: Literal["lexical", "random"] = "random"
    """lexical: projector, values and outputs begin in closed form (multimodal.lexical_start); needs the cache."""
    encoder: ImageEncoderConfig
    adapter: ImageAdapterConfig
    data: PictureData
    training: TrainingConfig
    out: str = "runs/image_adapter"
    resume: bool = False
    """Go on from the newest whole state in the run's folder."""
    save_every: int = 100
    """Steps between two states."""
    stream: float = 1.0
    """GiB for the text's stream below the first adapter block, remembered for rows that come again; 0 turns it off."""
    compare: int = 0
    """Tokens that the loss compares beside the targets and the frequent ones (a sampled softmax); 0: all."""
    trackers: tuple[str, ...] = ()
    """accelerate's trackers beside metrics.jsonl: tensorboard, wandb, ..."""


_KIT = "downloads/shards"
_FROZEN = ("placeholder", r"projector\.out\..*", r"projector\.summary\.(linear|recall)\..*")
"""Of the demo's adapter: a word's embedding (so that the text's stream below can be remembered), and closed forms."""
_DEMO = Config(
    start="lexical",
    compare=1024,
    encoder=ImageEncoderConfig(name="timm/downloads/models/efficientnet-lite0", layers=(4, "final"), pooled=True),
    adapter=ImageAdapterConfig(
        at=(26, 27, 28), kv_heads=9, feed_forward=576, gate=0.5, recall=2560, positions="fourier", mixer=256, noise=0.3
    ),
    data=PictureData(
        train=(f"{_KIT}/train", f"{_KIT}/train-cartoons", f"{_KIT}/scenes"),
        weights=(0.15, 0.15, 0.7),
        start=(f"{_KIT}/train", f"{_KIT}/train-cartoons", f"{_KIT}/scenes-start"),
        batch=32,
        cache="runs/features",
    ),
    training=TrainingConfig(
        learns=(*((rf"adapters\.image\.{name}", 0.0) for name in _FROZEN), (r"adapters\.image\..*", 1.0)),
        steps=350,
        learning_rate=2e-3,
        warm_up=10,
        floor=0.03,
        weight_decay=0.01,
        betas=(0.9, 0.98),
    ),
)


def paper(text: str, blocks: int, *, annealing: bool) -> Config:
    """The paper's settings (section 7.4.1) for a text model of so many blocks: a cross-attention before every fourth.

    Initial pretraining sees about 6B pairs at up to four tiles of 336 pixels with a learning rate of 1e-3; annealing
    about 500M pictures at a higher resolution (448, as the smaller released model) with a new optimizer, warmed up to
    2e-5.
    Batch 16,384 and weight decay 0.01 are the paper's; how many steps that makes is arithmetic.
    """
    batch = 16_384
    return Config(
        text=text,
        begin="runs/image_adapter" if annealing else "",
        encoder=ImageEncoderConfig(
            name="llama-vision",
            layers=(4, 8, 16, 24, 31, "final"),
            pixels=448 if annealing else 336,
            tiles=4,
            global_layers=8,
        ),
        adapter=ImageAdapterConfig(at=tuple(range(3, blocks, 4))),
        data=PictureData(train=("shards/train-*.tar",), batch=batch, caption_prompt=""),
        training=TrainingConfig(
            learns=((r"encoders\.image\..*", 1.0), (r"adapters\.image\..*", 1.0)),
            steps=(500_000_000 if annealing else 6_000_000_000) // batch,
            learning_rate=2e-5 if annealing else 1e-3,
            warm_up=1000,
            floor=0.0,
            weight_decay=0.01,
            recompute=True,
        ),
        out="runs/image_adapter_annealed" if annealing else "runs/image_adapter",
        save_every=500,
        stream=0.0,
    )


_8B, _70B = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"
PRESETS = {
    "demo": _DEMO,
    "hour": replace(_DEMO, training=replace(_DEMO.training, steps=1500)),
    "llama3-8b": paper(_8B, 32, annealing=False),
    "llama3-8b-annealing": paper(_8B, 32, annealing=True),
    "llama3-70b": paper(_70B, 80, annealing=False),
    "llama3-70b-annealing": paper(_70B, 80, annealing=True),
}


def build(config: Config, text: TextBackbone | None = None) -> MultimodalModel:
    """The frozen text model (loaded unless given), the image encoder and a fresh adapter."""
    if text is None:
        text = load_backbone(config.text, dtype=chosen(config.precision))
    return with_image(text, config.encoder, config.adapter)


def main(config: Config) -> None:
    out, began = Path(config.out), time.monotonic()
    accelerator = Accelerator(
        mixed_precision="bf16" if chosen(config.precision) == torch.bfloat16 else "no",
        log_with=list(config.trackers) or None,
        project_dir=config.out,
    )
    check_processes(accelerator)
    use_cores(accelerator)
    claim(accelerator, config, Path(config.out), begun=begun, resume=config.resume)
    examples = sources(config.data)
    torch.manual_seed(config.training.seed)
    tokenizer = load_tokenizer(config.text)
    model = build(config)
    start_placeholder(model, tokenizer)
    parts = describe(model, text=config.text, caption_prompt=config.data.caption_prompt)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    with (
        StopSignal() as stop,
        LiveProgress(config.training.steps, quiet=not accelerator.is_main_process) as progress,
    ):
        encoder = model.encoders["image"].to(accelerator.device)
        assert isinstance(encoder, ImageEncoder)
        # Ahead of `prepare`, so that the cache knows of an encoder that is to learn.
        open_parameters(model, config.training.learns)
        if config.data.cache:
            first = starting(config.data) if config.start == "lexical" else []
            for done in fill(config.data, [*examples, *first], encoder, augment=augment, rank=rank, ranks=ranks):
                if stop.asked:
                    return
                progress.note(f"features: {done.stored} made, {done.found} found, {done.skipped.total()} broken")
            accelerator.wait_for_everyone()
        if config.begin:
            load_weights(Path(config.begin), model)
        if config.start == "lexical":
            lexical_start(model, tokenizer, captioned(config.data, starting(config.data), encoder))
        model, optimizer = prepare(accelerator, model, config.training)
        frozen = frozen_digests(model)
        assert parts.image is not None
        identity = {
            "backbone": parts.text_fingerprint,
            "encoder": parts.image.encoder_fingerprint,
            "config": to_json(begun(config)),
        }
        start = Position()
        if config.resume:
            start = load_state(accelerator, out / "state", model, optimizer, identity=identity)
        reader = PromptReader(tokenizer=tokenizer, vocabulary=model.text.config.vocabulary)
        pad, accumulate = model.text.config.pad, config.training.accumulate
        loader = picture_loader(
            config.data, examples, reader, encoder, pad=pad, accumulate=accumulate, rank=rank, ranks=ranks
        )
        side = encoder.preprocess.size
        stream = FrozenStream(model, capacity=int(config.stream * 2**30)) if config.stream else None
        steps = train(
            accelerator,
            model,
            optimizer,
            (loaded.batch for loaded in loader.batches(start.step * config.data.batch)),
            partial(loss, stream=stream, compare=config.compare),
            config.training,
            start=start,
            stop=stop,
            stand_in=partial(stand_in, tile=(3, side, side), places=encoder.places((1, 1)), pad=pad),
        )
        accelerator.init_trackers("scion")
        main_process = accelerator.is_main_process
        with Metrics(out / "metrics.jsonl", after=start.step) if main_process else nullcontext() as metrics:
            for step in steps:
                progress.show(step)
                accelerator.log(step.metrics(), step=step.index)
                if metrics is not None:
                    metrics.write(step=step.index, **step.metrics(), **sparsity(model))
                if step.index % config.save_every == 0 or step.last:
                    save_state(accelerator, out / "state", model, optimizer, step.position, identity=identity)
        accelerator.end_training()
        check_frozen(model, frozen)
        if main_process and not stop.asked:
            seconds = time.monotonic() - began
            finish(config, model, frozen=len(frozen), left_out=loader.tolerance.skipped, seconds=seconds)


def loss(model: MultimodalModel, batch: Batch, stream: FrozenStream | None, compare: int) -> tuple[torch.Tensor, int]:
    """The captions' cross-entropy; the text's stream below the adapter comes from memory where it is known."""
    known = None if stream is None else stream(batch)
    if not compare:
        return token_loss(model, batch, stream=known)
    return sampled_token_loss(model, batch, vocabulary=model.text.config.vocabulary, drawn=compare, stream=known)


def begun(config: Config) -> Config:
    """What of a config must stay between a run's beginning and its resumption: all but where and how it is run."""
    data = replace(config.data, cache="", reading=type(config.data.reading)())
    training = replace(config.training, accumulate=1, recompute=False)
    plain = Config(text="", encoder=config.encoder, adapter=config.adapter, data=data, training=training)
    return replace(plain, precision=config.precision, begin=config.begin, start=config.start, compare=config.compare)


def finish(config: Config, model: MultimodalModel, *, frozen: int, left_out: Counter[str], seconds: float) -> None:
    """Writes the adapter, what it was composed with, and what the run cost and left untouched."""
    out = Path(config.out)
    save_weights(out, model)
    # Described as it is now: an encoder that learned is another one than it was.
    save_parts(out, describe(model, text=config.text, caption_prompt=config.data.caption_prompt))
    about = {
        "steps": config.training.steps,
        "train_seconds": round(seconds, 1),
        "trained_parameters": sum(weight.numel() for weight in learning(model).values()),
        "frozen_tensors_unchanged": frozen,
        "left_out": dict(left_out),
    }
    write_text(out / "training.json", json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main(parse(PRESETS, about=__doc__ or ""))
