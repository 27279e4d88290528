"""Turns a SwiGLU backbone's feed-forward into squared ReLU, layer by layer, by distillation on text.

    python recipes/relufy.py --backbone llama-3.2-1b --text corpus.txt --out llama-3.2-1b-relu2

The outcome is another text model: it has a fingerprint of its own, adapters trained on the old one are refused on it,
and what it lost is measured on text that was held out. Writes the backbone's folder, and relufy.json with the loss
before and after, each layer's remaining error and its zeros. A gate's product cannot be transferred to a form without
one, so that every layer starts anew and learns what the old one gives for the same input; how much that costs depends
on the text and the steps, which is why it is reported and not promised.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from kernels.sparse_relu2.module import ReLU2FeedForward, SparsityConfig, measure
from multimodal.checkpoint import text_fingerprint
from multimodal.training.publication import write_text
from text_backbone import TextBackbone, load_backbone, load_tokenizer
from text_backbone.checkpoint import save_backbone
from text_backbone.model import Block


@dataclass(frozen=True, kw_only=True)
class Config:
    """Distillation of each feed-forward."""

    backbone: str
    """Folder or hub id of the text model."""
    text: Path
    """A file of plain text; its last part is held out."""
    out: Path
    """Where the new backbone goes."""
    hidden: int = 0
    """Hidden width; 0 for as many parameters as there are (half as wide again)."""
    context: int = 256
    """Tokens of a row."""
    rows: int = 8
    """Rows of a step."""
    steps: int = 500
    """Steps a layer."""
    learning_rate: float = 1e-3
    held_out: float = 0.1
    """Part of the text that losses are measured on."""
    seed: int = 0


def relufy(text: TextBackbone, tokens: Tensor, c: Config) -> tuple[TextBackbone, dict[str, Any]]:
    """The new backbone and its report. tokens int64 [R, T], rows of text; the last ones are held out."""
    held = max(1, round(c.held_out * len(tokens)))
    if len(tokens) <= held:
        raise ValueError(f"the text gives {len(tokens)} rows of {tokens.shape[1]} tokens; at least 2 are needed")
    learn, test = tokens[:-held], tokens[-held:]
    config, dice = text.config, torch.Generator().manual_seed(c.seed)
    if config.squared_relu:
        raise ValueError("the backbone's feed-forward is squared ReLU already")
    hidden = c.hidden or -(-3 * config.feed_forward // 64) * 32
    with torch.random.fork_rng():
        torch.manual_seed(c.seed)
        student = TextBackbone(dataclasses.replace(config, feed_forward=hidden, squared_relu=True))
    kept = {name: weight for name, weight in text.state_dict().items() if ".mlp." not in name}
    student.load_state_dict(kept, strict=False)
    student.to(next(text.parameters()).dtype).eval().requires_grad_(False)
    layers = []
    for layer in range(config.layers):
        layers.append(_distil(text, student, layer, _batches(learn, c, dice), test[: c.rows], c))
        print(f"layer {layer}: {layers[-1]}", flush=True)
    before, after = (loss(model, test, c.rows) for model in (text, student))
    report = {
        "loss": {"before": before, "after": after, "difference": after - before, "tokens": test.numel()},
        "fingerprint": {"before": text_fingerprint(text), "after": text_fingerprint(student)},
        "hidden": {"before": config.feed_forward, "after": hidden},
        "layers": layers,
    }
    return student, report


def _distil(
    text: TextBackbone, student: TextBackbone, layer: int, batches: Iterator[Tensor], test: Tensor, c: Config
) -> dict[str, float]:
    """Teaches the student's feed-forward what the old one gives for the student's own residual stream, and puts it
    into the student. Returns the held-out relative error and fraction of zeros.
    """
    old = _block(text, layer).mlp
    width, dtype = student.config.width, next(text.parameters()).dtype
    new = ReLU2FeedForward(width, student.config.feed_forward, SparsityConfig(mode="dense")).train()
    optimizer = torch.optim.AdamW(new.parameters(), c.learning_rate, weight_decay=0.0)
    for step, batch in enumerate(batches):
        x = _inputs(student, layer, batch)
        with torch.no_grad():
            target = old(x).float()
        error = (new(x.float()) - target).square().mean() / target.square().mean().clamp(min=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = c.learning_rate * min(1.0, (step + 1) / 20) * (1 - step / c.steps)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    new.measured.zero_()
    new.to(dtype).eval().requires_grad_(False)
    _block(student, layer).mlp = new
    with torch.no_grad():
        x = _inputs(student, layer, test)
        target, given = old(x).float(), new(x).float()
        zeros, violating, _ = measure(new.up_proj(x)).tolist()
    error = float((given - target).norm() / target.norm())
    return {"relative_error": error, "zeros": zeros, "violating_groups": violating}


@torch.no_grad()
def _inputs(student: TextBackbone, layer: int, tokens: Tensor) -> Tensor:
    """What the feed-forward of this layer reads, in the student so far: [B, T, D]."""
    caught: list[Tensor] = []
    handle = _block(student, layer).mlp.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        student.run(student.embed(tokens), last=layer + 1)
    finally:
        handle.remove()
    return caught[0]


def _block(model: TextBackbone, layer: int) -> Block:
    block = model.model.layers[layer]
    assert isinstance(block, Block)
    return block


@torch.no_grad()
def loss(model: TextBackbone, tokens: Tensor, rows: int) -> float:
    """Mean negative log-likelihood a token, in nats."""
    total = 0.0
    for batch in tokens.split(rows):
        logits = model(batch)[:, :-1].float()
        total += float(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def _batches(tokens: Tensor, c: Config, dice: torch.Generator) -> Iterator[Tensor]:
    for _ in range(c.steps):
        yield tokens[torch.randint(len(tokens), (min(c.rows, len(tokens)),), generator=dice)]


def main(c: Config) -> None:
    text, tokenizer = load_backbone(c.backbone).eval(), load_tokenizer(c.backbone)
    ids = torch.tensor(tokenizer.encode(c.text.read_text()))
    tokens = ids[: len(ids) // c.context * c.context].view(-1, c.context)
    student, report = relufy(text, tokens, c)
    save_backbone(student, c.out)
    if Path(c.backbone).is_dir():
        for file in Path(c.backbone).glob("*token*"):
            shutil.copy(file, c.out / file.name)
    write_text(c.out / "relufy.json", json.dumps(report, indent=2) + "\n")
    told, prints = report["loss"], report["fingerprint"]
    print(f"loss {told['before']:.4f} -> {told['after']:.4f} ({told['difference']:+.4f} nats a token)")
    print(f"a new text model: fingerprint {prints['before'][:12]} -> {prints['after'][:12]}; {c.out}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
