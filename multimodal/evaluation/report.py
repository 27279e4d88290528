"""report.html: what was trained, what it scores and what it says, in one file that needs nothing else.

A report is a list of sections, each a function that gives an HTML fragment, put together by `write_report`. Every text
is escaped, pictures are embedded, there is no script.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from multimodal.evaluation.plot import curve, escaped, track
from multimodal.evaluation.result import Result
from multimodal.evaluation.style import CSS
from multimodal.training.publication import write_text

_LABELS = {
    "cider": "CIDEr",
    "bleu": "BLEU-4",
    "exact": "Exact caption",
    "exact_noun": "Exact noun",
    "word_f1": "Word F1",
    "slots": "All slots",
    "wer": "Word error rate",
    "cer": "Character error rate",
    "chrf": "chrF",
    "wrong_audio": "wrong recording",
    "no_audio": "no recording",
    "own_decoder": "Whisper's own decoder",
    "wrong_medium": "wrong picture",
    "no_medium": "no picture",
    "nearest_neighbour": "nearest neighbour",
}
_TOPS = {"cider": 10.0}
_PIXELS = 320


@dataclass(frozen=True, kw_only=True)
class Example:
    """Pictures, what the model said of them and what is true."""

    pictures: tuple[Image.Image, ...]
    said: str
    true: str
    right: bool
    note: str = ""
    """A few words in small type, such as the question or the nearest neighbour's answer."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """A recording, what the model heard and what was said."""

    sound: bytes
    """Ogg Vorbis."""
    said: str
    true: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A prompt of texts and pictures in any order, the answer, and the true one where there is one."""

    prompt: tuple[str | Image.Image, ...]
    said: str
    true: str = ""


def write_report(path: Path, title: str, sections: Sequence[str]) -> None:
    """Writes one self-contained page of HTML fragments; empty ones leave no trace. `title` is the browser's."""
    body = "\n".join(part for part in sections if part)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing may be fetched and nothing run, whatever a caption holds.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escaped(title)}</title><style>{CSS}</style></head><body><main>\n{body}\n"
        "<footer>Written by Scion. This page is one file and loads nothing.</footer></main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def header(title: str, lede: str, facts: Mapping[str, str], *, kicker: str = "Scion report") -> str:
    """The head of the page: what was trained, in one line and in a few named facts."""
    rows = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in facts.items())
    listed = f'<dl class="facts">{rows}</dl>' if rows else ""
    return (
        f'<header><p class="kicker">{escaped(kicker)}</p><h1>{escaped(title)}</h1>'
        f'<p class="lede">{escaped(lede)}</p>{listed}</header>'
    )


def scores(result: Result, *, title: str, note: str = "", tops: Mapping[str, float | int] | None = None) -> str:
    """Every metric with its 95% interval, beside its controls and baselines, and drawn; `tops`: ends of tracks (1)."""
    others = [*result.controls, *result.baselines]
    heads = "".join(f'<th class="number" scope="col">{escaped(_label(name))}</th>' for name in others)
    drawn = {**_TOPS, **(tops or {})}
    rows = ""
    for name, value in result.metrics.items():
        controls = {_label(other): figures[name] for other, figures in result.controls.items() if name in figures}
        baselines = {_label(other): figures[name] for other, figures in result.baselines.items() if name in figures}
        span = result.interval.get(name)
        top = drawn.get(name, 1.0)
        if name not in (tops or {}) and name in _TOPS:
            # CIDEr has no natural end that scores come near: the track ends a little beyond what is on it.
            top = min(top, 1.15 * max(value, *(span or (0.0,)), *controls.values(), *baselines.values()))
        seen = [{**result.controls, **result.baselines}[other].get(name) for other in others]
        cells = "".join(
            f'<td class="number" data-label="{escaped(_label(other))}">'
            f"{'' if figure is None else escaped(_figure(figure))}{_gap(result, other, name)}</td>"
            for other, figure in zip(others, seen, strict=True)
        )
        ranged = (
            f'<span class="range">{escaped(_figure(span[0]))} to {escaped(_figure(span[1]))}</span>' if span else ""
        )
        drawing = track(value, top=top, interval=span, controls=controls, baselines=baselines)
        rows += (
            f'<tr><th scope="row">{escaped(_label(name))}{_how(result, name)}</th>'
            f'<td class="number"><span class="score">{escaped(_figure(value))}</span>{ranged}</td>'
            f'<td class="plot">{drawing}</td>{cells}</tr>'
        )
    key = "<li><i></i>this model, band: 95% interval</li>"
    key += '<li class="control"><i></i>controls</li>' if result.controls else ""
    key += '<li class="baseline"><i></i>baseline</li>' if result.baselines else ""
    key += "<li>small figures: ours minus theirs on the same samples, 95% interval</li>" if result.differences else ""
    told = note or f"{result.data}, {result.n:,} samples."
    return (
        f'<section><h2>{escaped(title)}</h2><p class="note">{escaped(told)}</p>'
        f'<table class="figures"><thead><tr><th scope="col">Metric</th><th class="number" scope="col">Score</th>'
        f'<th class="plot"></th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        f'<ul class="key">{key}</ul><pre>{escaped(result.command)}</pre></section>'
    )


def loss_curve(metrics: Sequence[Mapping[str, Any]], *, key: str = "loss", title: str = "Loss") -> str:
    """The curve of `key` over steps from the lines of metrics.jsonl; "" where there are fewer than two."""
    points = [
        (float(line["step"]), float(line[key]))
        for line in metrics
        if isinstance(line.get("step"), int | float) and isinstance(line.get(key), int | float)
    ]
    drawn = curve(points, label=f"{title} over {len(points)} steps")
    if not drawn:
        return ""
    ending = (
        f"From {points[0][1]:.3f} to {points[-1][1]:.3f} over {points[-1][0]:,.0f} steps; the heavy line is smoothed."
    )
    return f'<section><h2>{escaped(title)}</h2><p class="note">{ending}</p>{drawn}</section>'


def examples(found: Sequence[Example], *, title: str, note: str = "") -> str:
    """A grid of pictures with what the model says beside what is true."""
    if not found:
        return ""
    cards = ""
    for one in found:
        shown = "".join(_image(picture, one.true) for picture in one.pictures)
        mark = '<span class="mark right">right</span>' if one.right else '<span class="mark">not right</span>'
        extra = f'<p class="true">{escaped(one.note)}</p>' if one.note else ""
        cards += (
            f'<figure><div class="shown">{shown}</div><figcaption>{mark}<p class="said">{_said(one.said)}</p>'
            f'<p class="true">True: {escaped(one.true)}</p>{extra}</figcaption></figure>'
        )
    told = f'<p class="note">{escaped(note)}</p>' if note else ""
    return f'<section><h2>{escaped(title)}</h2>{told}<div class="grid">{cards}</div></section>'


def recordings(found: Sequence[Played], *, title: str, note: str = "") -> str:
    """Players, with what the model heard beside what was said."""
    cards = ""
    for one in found:
        source = f"data:audio/ogg;base64,{base64.b64encode(one.sound).decode()}"
        extra = f'<p class="true">{escaped(one.note)}</p>' if one.note else ""
        cards += (
            f'<div class="exchange"><audio controls preload="none" src="{source}"></audio>'
            f'<p class="said">{_said(one.said)}</p><p class="true">True: {escaped(one.true)}</p>{extra}</div>'
        )
    told = f'<p class="note">{escaped(note)}</p>' if note else ""
    return f"<section><h2>{escaped(title)}</h2>{told}{cards}</section>" if cards else ""


def groups(found: Mapping[str, Mapping[str, float | int]], *, title: str, note: str = "") -> str:
    """A score by group: {"score", "n"} of each."""
    rows = "".join(
        f"<div><dt>{escaped(name)} ({one['n']:,.0f})</dt><dd>{escaped(_figure(one['score']))}</dd></div>"
        for name, one in found.items()
    )
    told = f'<p class="note">{escaped(note)}</p>' if note else ""
    return f'<section><h2>{escaped(title)}</h2>{told}<dl class="facts">{rows}</dl></section>' if rows else ""


def exchanges(found: Sequence[Exchange], *, title: str, note: str = "") -> str:
    """Prompts with several pictures, and the answers."""
    if not found:
        return ""
    cards = ""
    for one in found:
        asked = "".join(f"<p>{escaped(part)}</p>" if isinstance(part, str) else _image(part, "") for part in one.prompt)
        true = f'<p class="true">True: {escaped(one.true)}</p>' if one.true else ""
        cards += (
            f'<div class="exchange"><div class="asked">{asked}</div><p class="said">{_said(one.said)}</p>{true}</div>'
        )
    told = f'<p class="note">{escaped(note)}</p>' if note else ""
    return f"<section><h2>{escaped(title)}</h2>{told}{cards}</section>"


def guarantees(differences: Mapping[str, float | int], *, frozen_tensors: int, changed: Sequence[str] = ()) -> str:
    """That text stayed text: the largest difference of logits, case by case, and the frozen tensors that changed."""
    lines = "".join(
        _held(f"Text-only logits, {name.replace('_', ' ')}", f"max difference {value:g}", value == 0)
        for name, value in differences.items()
    )
    kept = f"{frozen_tensors - len(changed):,} of {frozen_tensors:,} unchanged"
    lines += _held("Frozen tensors, sha256 before and after the run", kept, not changed)
    lines += "".join(_held(f"{name} was frozen and has changed", "changed", False) for name in changed)
    return (
        '<section><h2>What did not change</h2><p class="note">The text model was not touched: its text-only logits '
        "with adapters attached are compared, bit for bit, with the bare model's on the same batch shapes.</p>"
        f"{lines}</section>"
    )


def costs(cost: Mapping[str, float | int], *, title: str = "Cost", note: str = "") -> str:
    """What it took: seconds as time, everything else as numbers."""
    rows = "".join(
        f"<div><dt>{escaped(_label(name.removesuffix('_seconds')))}</dt>"
        f"<dd>{_duration(value) if name.endswith('seconds') else f'{value:,.10g}'}</dd></div>"
        for name, value in cost.items()
    )
    told = f'<p class="note">{escaped(note)}</p>' if note else ""
    return f'<section><h2>{escaped(title)}</h2>{told}<dl class="facts">{rows}</dl></section>' if rows else ""


def pick_random(keys: Sequence[str], count: int, *, seed: int = 0) -> list[int]:
    """Numbers of `count` samples, by a hash of seed and key: fixed before anything was said, so nothing is picked."""
    return sorted(range(len(keys)), key=lambda i: hashlib.blake2b(f"{seed} {keys[i]}".encode()).digest())[:count]


def pick_worst(keys: Sequence[str], scored: Sequence[float | int], count: int, *, seed: int = 0) -> list[int]:
    """Numbers of the `count` samples with the lowest scores; ties in the order of `pick_random`."""
    if len(keys) != len(scored):
        raise ValueError(f"{len(keys)} keys for {len(scored)} scores")
    return sorted(pick_random(keys, len(keys), seed=seed), key=lambda i: scored[i])[:count]


def _gap(result: Result, other: str, name: str) -> str:
    """Ours minus a control's or a baseline's figure, with its interval, in small type; "" where it was not measured."""
    if name not in result.differences.get(other, {}):
        return ""
    gap, low, high = result.differences[other][name]
    return f'<span class="range">{gap:+.3f} ({low:.3f} to {high:.3f})</span>'


def _held(what: str, figure: str, held: bool) -> str:
    state = ("held", "&#10003;") if held else ("held broken", "&#10007;")
    return f'<div class="{state[0]}"><b>{state[1]}</b><span>{escaped(what)}</span><em>{escaped(figure)}</em></div>'


def _how(result: Result, name: str) -> str:
    how = result.metadata.get(name)
    tokenizer = how.get("tokenizer") if isinstance(how, Mapping) else None
    return f"<small>{escaped(str(tokenizer))} tokenizer</small>" if tokenizer else ""


def _image(picture: Image.Image, alternative: str) -> str:
    """An <img> with the picture inside it, small; whichever of JPEG and PNG is shorter."""
    small = picture.convert("RGBA")
    small.thumbnail((_PIXELS, _PIXELS), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", small.size, "white")
    flat.paste(small, mask=small.getchannel("A"))
    written = []
    for kind, options in (("jpeg", {"quality": 84, "optimize": True}), ("png", {"optimize": True})):
        buffer = io.BytesIO()
        flat.save(buffer, kind, **options)
        written.append((buffer.getvalue(), kind))
    data, kind = min(written, key=lambda one: len(one[0]))
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{escaped(alternative)}" width="{flat.width}" height="{flat.height}">'


def _said(text: str) -> str:
    return escaped(text) if text.strip() else "<em>(nothing)</em>"


def _label(name: str) -> str:
    plain = name.removeprefix("slot_").replace("_", " ")
    return _LABELS.get(name, plain[:1].upper() + plain[1:])


def _figure(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 0.0005:
        return "<0.001" if value > 0 else ">-0.001"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
