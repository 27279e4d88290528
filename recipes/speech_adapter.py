"""Teaches a frozen text model to hear: trains a speech adapter (Llama 3 paper, section 8).

    accelerate launch recipes/speech_adapter.py                       # the demo's preset, on the demo's kit
    accelerate launch recipes/speech_adapter.py llama3-8b --data.train 'shards/{0000..0999}.tar'
    accelerate launch recipes/speech_adapter.py --resume              # goes on where a killed run stood

Two courses, one after the other. The first (`start`, see multimodal.reading_start) lets the adapter's rows become text
that the model can read, without running it; the second trains the adapter through the frozen text model. Writes into
the run's folder: config.json, parts.json, adapters.speech.safetensors, metrics.jsonl (and metrics-start.jsonl),
training.json, and the training's state under state/, from which --resume continues bit for bit.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from adapters import SpeechAdapter, SpeechAdapterConfig
from encoders import SpeechEncoder, SpeechEncoderConfig
from multimodal.checkpoint import describe, load_weights, save_parts, save_weights
from multimodal.command_line import parse
from multimodal.composition import start_delimiters, with_speech
from multimodal.data.loader import Loader
from multimodal.data.speech import SpeechData, fill_speech, speech_loader, speech_sources
from multimodal.model import MultimodalModel
from multimodal.pieces import choose_pieces
from multimodal.precision import Precision, chosen
from multimodal.prompt import PromptReader
from multimodal.reading_start import Reading, reading_loss, spread_features
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
    save_state,
    token_loss,
    train,
    use_cores,
)
from multimodal.training.claim import claim
from multimodal.training.distillation import distillation_loss
from multimodal.training.publication import write_text
from multimodal.training.state import newest_state
from text_backbone import TextBackbone, Tokenizer, load_backbone, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The first course: the adapter alone learns to write the text model's tokens."""

    steps: int = 0
    """0 leaves it out, as the paper does."""
    learning_rate: float = 2e-3
    warm_up: int = 50
    weight_decay: float = 0.01
    batch: int = 32
    pieces: int = 12
    """How often a token must stand in the training text to be learned as a whole."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of adapter training."""

    text: str = "downloads/models/smollm2-135m-instruct"
    """The backbone: a folder in Hugging Face's or Meta's layout, or a hub id."""
    precision: Precision = "auto"
    """Of the frozen parts, and of what is multiplied while training; what learns is kept in float32."""
    begin: str = ""
    """A run whose adapter (and encoder, if that learned) this one begins with; its optimizer begins anew."""
    encoder: SpeechEncoderConfig
    adapter: SpeechAdapterConfig
    data: SpeechData
    start: StartConfig = StartConfig()
    training: TrainingConfig
    distil: float = 0.0
    """Share of the loss that is the distance to the frozen text model reading the transcript; the rest are tokens."""
    out: str = "runs/speech_adapter"
    resume: bool = False
    """Go on from the newest whole state in the run's folder."""
    save_every: int = 50
    """Steps between two states."""
    trackers: tuple[str, ...] = ()
    """accelerate's trackers beside metrics.jsonl: tensorboard, wandb, ..."""


_KIT = "downloads/shards-speech"
_DEMO = Config(
    encoder=SpeechEncoderConfig(name="hf/downloads/models/whisper-tiny-en"),
    adapter=SpeechAdapterConfig(stack=2, width=512, heads=8, feed_forward=1024, dropout=0.2),
    data=SpeechData(train=(f"{_KIT}/queen-train",), cache="runs/features", speeds=(0.9, 1.1), masks=0.2, batch=16),
    start=StartConfig(steps=1500),
    training=TrainingConfig(
        learns=((r"adapters\.speech\.delimiters", 5.0), (r"adapters\.speech\..*", 1.0)),
        steps=300,
        learning_rate=6e-4,
        warm_up=20,
        floor=0.03,
        weight_decay=0.01,
        betas=(0.9, 0.98),
    ),
)


def paper(text: str, *, steps: int, batch: int, learning_rate: float) -> Config:
    """The paper's settings (section 8.2.2): encoder and adapter learn, the text model does not."""
    return Config(
        text=text,
        encoder=SpeechEncoderConfig(name="conformer/runs/speech_encoder"),
        adapter=SpeechAdapterConfig(),
        data=SpeechData(train=("shards/train-*.tar",), batch=batch, longest=60.0, written=True),
        training=TrainingConfig(
            learns=((r"encoders\.speech\..*", 1.0), (r"adapters\.speech\..*", 1.0)),
            steps=steps,
            learning_rate=learning_rate,
            warm_up=2000,
            recompute=False,
        ),
    )


PRESETS = {
    "demo": _DEMO,
    "translate": replace(
        _DEMO,
        encoder=SpeechEncoderConfig(name="hf/downloads/models/whisper-base"),
        data=replace(
            _DEMO.data,
            train=(f"{_KIT}/fillets-train", f"{_KIT}/tuxpaint-train"),
            tasks=(("translate", 1.0),),
            speeds=(),
        ),
        out="runs/speech_translation",
    ),
    "llama3-8b": paper("meta-llama/Llama-3.1-8B", steps=650_000, batch=512, learning_rate=1e-4),
    "llama3-70b": paper("meta-llama/Llama-3.1-70B", steps=600_000, batch=768, learning_rate=4e-5),
}


def build(config: Config, text: TextBackbone | None = None) -> MultimodalModel:
    """The frozen text model (loaded unless given), the speech encoder and a fresh adapter."""
    if text is None:
        text = load_backbone(config.text, dtype=chosen(config.precision))
    return with_speech(text, config.encoder, config.adapter)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What both courses share."""

    config: Config
    accelerator: Accelerator
    model: MultimodalModel
    tokenizer: Tokenizer
    identity: dict[str, str]
    stop: StopSignal

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    def loader(self, data: SpeechData, *, scripted: bool = False) -> Loader:
        encoder, adapter = self.model.encoders["speech"], self.model.adapters["speech"]
        assert isinstance(encoder, SpeechEncoder)
        assert isinstance(adapter, SpeechAdapter)
        has = self.model.text.config
        return speech_loader(
            data,
            speech_sources(data),
            PromptReader(tokenizer=self.tokenizer, vocabulary=has.vocabulary),
            encoder,
            adapter,
            pad=has.pad,
            accumulate=self.config.training.accumulate,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            scripted=scripted,
        )


def main(config: Config) -> None:
    began = time.monotonic()
    accelerator = Accelerator(
        mixed_precision="bf16" if chosen(config.precision) == torch.bfloat16 else "no",
        log_with=list(config.trackers) or None,
        project_dir=config.out,
    )
    check_processes(accelerator)
    use_cores(accelerator)
    claim(accelerator, config, Path(config.out), begun=begun, resume=config.resume)
    recordings = speech_sources(config.data)
    torch.manual_seed(config.training.seed)
    tokenizer = load_tokenizer(config.text)
    model = build(config)
    start_delimiters(model, tokenizer)
    parts = described(config, model)
    assert parts.speech is not None
    with StopSignal() as stop:
        encoder = model.encoders["speech"].to(accelerator.device)
        assert isinstance(encoder, SpeechEncoder)
        # Ahead of `prepare`, so that the cache knows of an encoder that is to learn.
        open_parameters(model, config.training.learns)
        if config.data.cache:
            rank, ranks = accelerator.process_index, accelerator.num_processes
            for done in fill_speech(config.data, recordings, encoder, rank=rank, ranks=ranks):
                if stop.asked:
                    return
                accelerator.print(f"features: {done.stored} made, {done.found} found, {done.skipped.total()} broken")
            accelerator.wait_for_everyone()
        if config.begin:
            load_weights(Path(config.begin), model)
        identity = {
            "backbone": parts.text_fingerprint,
            "encoder": parts.speech.encoder_fingerprint,
        }
        run = Run(
            config=config, accelerator=accelerator, model=model, tokenizer=tokenizer, identity=identity, stop=stop
        )
        # Once the second course has a state, the first is over: the adapter comes out of that state.
        if config.start.steps and newest_state(Path(config.out) / "state") is None:
            read_first(run)
            if stop.asked:
                return
        frozen, left_out = through_the_text(run)
        if accelerator.is_main_process and not stop.asked:
            finish(run, frozen=frozen, left_out=left_out, seconds=time.monotonic() - began)


def read_first(run: Run) -> None:
    """The first course: the adapter's rows become the embeddings of what is said."""
    config, model = run.config, run.model
    data = replace(config.data, batch=config.start.batch)
    recordings = speech_sources(data)
    encoder, adapter = model.encoders["speech"], model.adapters["speech"]
    assert isinstance(encoder, SpeechEncoder)
    assert isinstance(adapter, SpeechAdapter)
    loader = run.loader(data)
    pieces = choose_pieces(run.tokenizer, answers(data, recordings), least=config.start.pieces)
    reading = Reading(adapter, encoder, model.text, run.tokenizer, pieces)
    reading.start()
    # The same parts under the names that they have here; the delimiters stand around what is read and wait.
    renamed = [
        (name.replace(r"adapters\.speech", "adapter").replace(r"encoders\.speech", "encoder"), rate)
        for name, rate in config.training.learns
        if "delimiters" not in name
    ]
    training = replace(
        config.training,
        learns=((r"pause|sharpness|bias", 1.0), (r"adapter\.delimiters", 0.0), *renamed),
        steps=config.start.steps,
        learning_rate=config.start.learning_rate,
        warm_up=config.start.warm_up,
        weight_decay=config.start.weight_decay,
    )
    spread_features(adapter, (loaded.batch for loaded in loader.batches(0, stop=data.batch * 16)), encoder)
    reading, optimizer = prepare(run.accelerator, reading, training)
    course(run, "start", reading, optimizer, loader, reading_loss, training, data.batch)


def through_the_text(run: Run) -> tuple[int, Counter[str]]:
    """The second course: how many tensors stayed as they were, and the samples that were left out."""
    config = run.config
    loader = run.loader(config.data, scripted=config.distil > 0)
    model, optimizer = prepare(run.accelerator, run.model, config.training)
    frozen = frozen_digests(model)
    loss = partial(distillation_loss, share=config.distil) if config.distil else token_loss
    course(run, "", model, optimizer, loader, loss, config.training, config.data.batch)
    check_frozen(model, frozen)
    return len(frozen), loader.tolerance.skipped


def course(run: Run, name: str, model, optimizer, loader: Loader, loss, training: TrainingConfig, batch: int) -> None:
    """Trains from the newest state of this course to its end, or until the process is asked to stop."""
    accelerator, out = run.accelerator, run.out
    folder = out / "state" / name if name else out / "state"
    # What only the second course depends on may be changed while the first runs.
    lasting = begun(run.config) if not name else first_of(run.config)
    identity = run.identity | {"course": name or "text", "config": to_json(lasting)}
    start = Position()
    if run.config.resume:
        start = load_state(accelerator, folder, model, optimizer, identity=identity)
    steps = train(
        accelerator,
        model,
        optimizer,
        (loaded.batch for loaded in loader.batches(start.step * batch)),
        loss,
        training,
        start=start,
        stop=run.stop,
    )
    main_process = accelerator.is_main_process
    file = out / (f"metrics-{name}.jsonl" if name else "metrics.jsonl")
    accelerator.init_trackers("scion")
    with (
        LiveProgress(training.steps, quiet=not main_process) as progress,
        Metrics(file, after=start.step) if main_process else nullcontext() as metrics,
    ):
        for step in steps:
            progress.show(step)
            accelerator.log(step.metrics(), step=step.index)
            if metrics is not None:
                metrics.write(step=step.index, **step.metrics())
            if step.index % run.config.save_every == 0 or step.last:
                save_state(accelerator, folder, model, optimizer, step.position, identity=identity)
    if not name:
        accelerator.end_training()


def answers(data: SpeechData, recordings) -> list[str]:
    """What is to be said of every recording, for the choice of pieces."""
    found = []
    for source in recordings:
        for index in range(len(source)):
            one = source.get(index)
            if one is not None:
                said = {"transcribe": [one.text], "translate": [one.translations.get(name, "") for name in data.into]}
                found += [text for task, _ in data.tasks for text in said.get(task, [one.reply])]
    return found


def described(config: Config, model: MultimodalModel):
    """The parts of the run, with the words that its adapter is asked in."""
    parts = describe(model, text=config.text)
    assert parts.speech is not None
    asked = replace(parts.speech, prompt=config.data.prompt, translation_prompt=config.data.translation_prompt)
    return replace(parts, speech=asked)


def begun(config: Config) -> Config:
    """What of a config must stay between a run's beginning and its resumption: all but where and how it is run."""
    data = replace(config.data, cache="", reading=type(config.data.reading)())
    training = replace(config.training, accumulate=1, recompute=False)
    plain = Config(text="", encoder=config.encoder, adapter=config.adapter, data=data, training=training)
    return replace(plain, precision=config.precision, begin=config.begin, start=config.start, distil=config.distil)


def first_of(config: Config) -> Config:
    """What of a config the first course depends on."""
    plain = replace(config.training, steps=1, warm_up=0, learning_rate=1.0, weight_decay=0.0, recompute=False)
    return replace(begun(config), training=replace(plain, accumulate=1), distil=0.0)


def finish(run: Run, *, frozen: int, left_out: Counter[str], seconds: float) -> None:
    """Writes the adapter, what it was composed with, and what the run cost and left untouched."""
    config, model = run.config, run.model
    save_weights(run.out, model)
    # Described as it is now: an encoder that learned is another one than it was.
    save_parts(run.out, described(config, model))
    about = {
        "steps": config.training.steps,
        "start_steps": config.start.steps,
        "train_seconds": round(trained_seconds(run.out), 1),
        "last_call_seconds": round(seconds, 1),
        "trained_parameters": sum(weight.numel() for weight in learning(model).values()),
        "frozen_tensors_unchanged": frozen,
        "left_out": dict(left_out),
    }
    write_text(run.out / "training.json", json.dumps(about, indent=2) + "\n")


def trained_seconds(out: Path) -> float:
    """The seconds of all steps of both courses, over all interruptions."""
    lines = [line for file in sorted(out.glob("metrics*.jsonl")) for line in file.read_text().splitlines()]
    return sum(json.loads(line).get("seconds", 0.0) for line in lines)


if __name__ == "__main__":
    main(parse(PRESETS, about=__doc__ or ""))
