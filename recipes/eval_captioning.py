"""Scores what a run says of pictures it has never seen: CIDEr, BLEU, exact names, slots; controls, baseline, intervals.

    python recipes/eval_captioning.py --run runs/image_adapter
    python recipes/eval_captioning.py --run runs/image_adapter --tests 'mine=shards/test-*.tar'

Each test is asked three times: with its picture, with another sample's picture, with none. Writes eval_<test>.json for
each test and report.html into the run's folder, and prints the table; with --publish the figures go to docs/results
too.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from multimodal import Assistant, Image, load
from multimodal.batch import Batch
from multimodal.checkpoint import read_settings
from multimodal.data.feature_cache import FeatureCache
from multimodal.evaluation import Exchange, Result, evaluate, text_unchanged
from multimodal.evaluation.captioning_report import Tested, write_captioning_report
from multimodal.evaluation.pictures import Sample, likelihoods, nearest, read_samples, say
from multimodal.fingerprint import fingerprint

_KIT = "downloads/shards"
_TITLES = {
    "captioning": "Drawings never seen, of things learned in another style",
    "captioning_unseen": "Photographs of things never named in training",
    "captioning_scenes": "Composed scenes: combinations never seen",
    "captioning_backgrounds": "Composed scenes: backgrounds never seen",
    "captioning_sprites": "Composed scenes: things never seen",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which run is tested, and on what."""

    run: str = "runs/image_adapter"
    tests: tuple[str, ...] = (
        f"captioning={_KIT}/openmoji-unseen-half",
        f"captioning_unseen={_KIT}/tuxpaint-unseen",
        f"captioning_scenes={_KIT}/scenes-combinations",
        f"captioning_backgrounds={_KIT}/scenes-backgrounds",
        f"captioning_sprites={_KIT}/scenes-sprites",
    )
    """name=shards, one entry a test; results are written to eval_<name>.json."""
    likelihoods: tuple[str, ...] = ("captioning_unseen",)
    """Tests of which it is also measured how likely the true caption is."""
    most: int = 0
    """Samples of each test at most; 0: all."""
    publish: str = ""
    """Folder for the figures that the documentation claims: docs/results."""


def main(config: Config) -> None:
    run = Path(config.run)
    assistant = load(run)
    settings, training = read_settings(run), json.loads((run / "training.json").read_text())
    cache = FeatureCache(
        settings["data"]["cache"] or "runs/features",
        encoder=fingerprint(assistant.model.encoders["image"]),
        preprocessing=repr(assistant.model.encoders["image"].preprocess),
    )
    train = [one for shards in settings["data"]["train"] for one in read_samples(shards, opened=False)]
    gallery = [(one.picture, one.caption) for one in train]
    command = shlex.join(["python", "recipes/eval_captioning.py", *sys.argv[1:]])
    tested = []
    for entry in config.tests:
        name, _, shards = entry.partition("=")
        if shards.startswith(_KIT) and not Path(shards).is_dir():
            print(f"{name} is left out: the kit has no {shards} (its pictures could not be fetched)")
            continue
        began = time.monotonic()
        samples = read_samples(shards, most=config.most)
        said = say(assistant, samples)
        near = nearest(assistant, samples, gallery, cache)
        slots, nouns = [one.slots for one in samples], [one.noun for one in samples]
        result = evaluate(
            name,
            said.right,
            [one.captions for one in samples],
            data=Path(shards).name,
            command=command,
            nouns=[noun for noun in nouns if noun] if all(nouns) else None,
            slots=[slot for slot in slots if slot] if all(slots) else None,
            controls={"wrong_medium": said.wrong_medium, "no_medium": said.no_medium},
            baselines={"nearest_neighbour": near} if len(cache) else {},
            likelihoods=likelihoods(assistant, samples) if name in config.likelihoods else None,
            cost={
                "train_seconds": training["train_seconds"],
                "eval_seconds": round(time.monotonic() - began, 1),
                "trained_parameters": training["trained_parameters"],
            },
        )
        result.save(run)
        if config.publish:
            result.publish(Path(config.publish))
        print(table(result), flush=True)
        tested.append(Tested(title=_TITLES.get(name, name), samples=samples, said=said, neighbours=near, result=result))
    unchanged = text_unchanged(assistant.model, probe(assistant, tested[0].samples))
    page = write_captioning_report(
        run,
        tested,
        facts={
            "Text model": f"{settings['text']} (frozen)",
            "Image encoder": f"{settings['encoder']['name']} (frozen)",
            "Learned": f"{training['trained_parameters']:,} parameters in {training['steps']:,} steps",
        },
        unchanged=unchanged,
        frozen_tensors=training["frozen_tensors_unchanged"],
        several=interleaved(assistant, tested[-1].samples),
        cost=tested[0].result.cost,
    )
    worst = max(unchanged.values())
    print(f"text-only logits with the adapter attached: largest difference {worst:g} in {len(unchanged)} cases")
    print(f"report: {page}")


def probe(assistant: Assistant, samples: Sequence[Sample]) -> Batch:
    """A batch that mixes rows of text with rows of pictures, for the guarantee."""
    texts = ["The capital of France is", "Once upon a time, in a small village,", "2 + 2 ="]
    shown = [[Image(sample.picture), assistant.caption_prompt] for sample in samples[:3]]
    ahead = [["Look at this: ", Image(samples[0].picture), assistant.caption_prompt]]
    return assistant.prepared([*texts, *shown, *ahead], raw=True)


def interleaved(assistant: Assistant, samples: Sequence[Sample], count: int = 4) -> list[Exchange]:
    """Prompts of two captioned pictures, the first caption given: the answer must be about the second picture."""
    found = []
    for first, second in list(zip(samples[::2], samples[1::2], strict=False))[:count]:
        ask = assistant.caption_prompt
        prompt = [Image(first.picture), f"{ask} {first.caption} ", Image(second.picture), ask]
        opened = tuple(part.open() if isinstance(part, Image) else part for part in prompt)
        found.append(Exchange(prompt=opened, said=assistant.reply(prompt, raw=True, max_new=32), true=second.caption))
    return found


def table(result: Result) -> str:
    """The figures as lines of text: ours with the interval, the controls, the baseline."""
    others = [*result.controls, *result.baselines]
    lines = [
        f"\n{result.task} ({result.data}, n {result.n})",
        f"{'':18}{'ours':>8}  {'95% interval':17}" + "".join(f"{name:>19}" for name in others),
    ]
    for name, value in result.metrics.items():
        low, high = result.interval[name]
        figures = [{**result.controls, **result.baselines}[other].get(name) for other in others]
        cells = "".join(f"{'':19}" if figure is None else f"{figure:19.3f}" for figure in figures)
        lines.append(f"{name:18}{value:8.3f}  [{low:.3f}, {high:.3f}]   {cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
