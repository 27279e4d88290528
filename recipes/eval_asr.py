"""Scores what a run hears in recordings it was never trained on: word errors, of which kind, by whom, of what length.

    python recipes/eval_asr.py --run runs/speech_adapter
    python recipes/eval_asr.py --run runs/speech_adapter --shards 'shards/test-*.tar' --language Dutch --whisper ''

Each recording is transcribed; the controls get another's recording, and none at all; Whisper's own decoder, on the same
encoder, transcribes the same recordings in the same call. Writes eval_asr.json and report.html into the run's folder.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from multimodal import Assistant, Audio, load
from multimodal.checkpoint import read_settings
from multimodal.data.recordings import Recording
from multimodal.evaluation.guarantee import text_unchanged
from multimodal.evaluation.recordings import own_decoder, read_recordings, seconds, transcripts
from multimodal.evaluation.result import Result, measured
from multimodal.evaluation.speech_report import HearingTest, write_speech_report
from multimodal.evaluation.transcripts import METADATA, by_group, length_group, score_transcripts


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which run is tested, and on what."""

    run: str = "runs/speech_adapter"
    shards: str = "downloads/shards-speech/queen-test"
    language: str = "English"
    """Of the normalizer: recordings say their own."""
    whisper: str = "downloads/models/whisper-tiny-en"
    """A Whisper whose own decoder is measured beside; empty: none."""
    most: int = 0
    """Recordings at most; 0: all."""
    task: str = "asr"
    """The result's name: eval_<task>.json."""
    publish: str = ""
    """Folder for the figures that the documentation claims: docs/results."""


def main(config: Config) -> None:
    run = Path(config.run)
    assistant = load(run)
    settings, training = read_settings(run), json.loads((run / "training.json").read_text())
    samples = read_recordings(config.shards, most=config.most)
    references = [sample.text for sample in samples]
    began = time.monotonic()
    heard = transcripts(assistant, samples, references)
    spent = time.monotonic() - began
    length = [seconds(sample) for sample in samples]
    own = own_decoder(Path(config.whisper), samples) if config.whisper else []

    def scored(said: list[str]):
        return score_transcripts(said, references, language=config.language)

    ours = scored(heard.right)
    main_figure = "wer" if "wer" in ours else "cer"
    by = {
        "By speaker": by_group(ours[main_figure], [sample.speaker or "unknown" for sample in samples]),
        "By length": by_group(ours[main_figure], [length_group(one) for one in length]),
    }
    result = measured(
        config.task,
        ours,
        data=Path(config.shards).name,
        command=shlex.join(["python", "recipes/eval_asr.py", *sys.argv[1:]]),
        controls={"wrong_medium": scored(heard.wrong_medium), "no_medium": scored(heard.no_medium)},
        baselines={"own_decoder": scored(own)} if own else {},
        cost={
            "train_seconds": training["train_seconds"],
            "eval_seconds": round(spent, 1),
            "trained_parameters": training["trained_parameters"],
            "audio_seconds": round(sum(length), 1),
            "real_time_factor": round(spent / sum(length), 4),
            "threads": torch.get_num_threads(),
        },
        metadata=METADATA | {name.lower().replace(" ", "_"): found for name, found in by.items()},
    )
    result.save(run)
    if config.publish:
        result.publish(Path(config.publish))
    print(table(result))
    unchanged = text_unchanged(assistant.model, probe(assistant, samples))
    page = write_speech_report(
        run,
        [
            HearingTest(
                title=f"Recordings never heard: {Path(config.shards).name}",
                samples=samples,
                references=references,
                said=heard.right,
                baseline=own,
                baseline_name="Whisper's own decoder",
                ours=ours[main_figure],
                result=result,
            )
        ],
        lede="A frozen text model learned to hear. What it writes of recordings that it was never played.",
        facts={
            "Text model": f"{settings['text']} (frozen)",
            "Speech encoder": f"{settings['encoder']['name']} (frozen)",
            "Learned": f"{training['trained_parameters']:,} parameters in {training['start_steps']:,} steps of "
            f"reading and {training['steps']:,} through the text model",
        },
        by=by,
        unchanged=unchanged,
        frozen_tensors=training["frozen_tensors_unchanged"],
    )
    print(f"text-only logits with the adapter attached: largest difference {max(unchanged.values()):g}")
    print(f"report: {page}")


def probe(assistant: Assistant, samples: list[Recording]):
    """A batch that mixes rows of text with rows of speech, for the guarantee."""
    assert assistant.speech is not None
    asked = assistant.speech.prompt.format(language="English")
    texts = ["The capital of France is", "Once upon a time, in a small village,", "2 + 2 ="]
    return assistant.prepared([*texts, *[[asked, Audio(sample.sound)] for sample in samples[:3]]], raw=True)


def table(result: Result) -> str:
    """The figures as lines of text: ours with the interval, the controls, the baseline."""
    others = [*result.controls, *result.baselines]
    lines = [
        f"{result.task} ({result.data}, n {result.n})",
        f"{'':15}{'ours':>8}  {'95% interval':17}" + "".join(f"{name:>15}" for name in others),
    ]
    for name, value in result.metrics.items():
        low, high = result.interval[name]
        figures = [{**result.controls, **result.baselines}[other][name] for other in others]
        lines.append(
            f"{name:15}{value:8.3f}  [{low:.3f}, {high:.3f}]   " + "".join(f"{figure:15.3f}" for figure in figures)
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
