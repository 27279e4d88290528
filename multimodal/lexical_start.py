"""Where an image adapter's training begins: features mapped to the words of their captions, in closed form.

A gated adapter that starts at random spends most of its training on finding out which feature means which word. That
part has a closed form. The text model's own embedding table gives every word a code; a ridge regression takes a
picture's mean feature to the sum of its caption's codes, and because it is linear it does so for every patch too, at
its place. Names of single things, which no linear map of one example each can hold, are remembered as they are: a key
for each short caption (the mean direction of its pictures) whose value is the caption's code. The cross-attention's
values and outputs start as a copy, so that what a patch shows is what the text is drawn to say. Training then learns
when to look where, and how to make a sentence of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from adapters import ImageAdapter
from adapters.projector import Projector
from adapters.recall import Recall, rooted
from multimodal.model import MultimodalModel
from text_backbone import TextBackbone, Tokenizer

_COMMON = 0.3
"""Words that stand in more than this share of the captions name nothing and are left out."""
_LINEAR_RIDGE = 0.1
_WHITENING = 0.1
_FEWEST_GROUPS = 100
"""Captions with several pictures that it takes to know how pictures of one thing differ."""


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """One captioned picture: the mean of its patches, the feature of its whole, and its caption."""

    patches: Float[Tensor, "E"]
    whole: Float[Tensor, "E"]
    caption: str


@torch.no_grad()
def lexical_start(model: MultimodalModel, tokenizer: Tokenizer, pictures: Iterable[Captioned]) -> None:
    """Sets the image adapter's projector, recall, values and outputs from captioned pictures.

    Takes seconds for some thousand pictures. ValueError for fewer than two different captions, or for a projector of
    two layers, which has no closed form.
    """
    adapter = model.adapters["image"]
    assert isinstance(adapter, ImageAdapter)
    known = list(pictures)
    if len({one.caption for one in known}) < 2:
        raise ValueError(
            f"a lexical start needs captions that differ, got {len(known)} pictures of one caption or none"
        )
    projector = adapter.projector
    if projector.hidden is not None or projector.norm is not None:
        raise ValueError(
            "a lexical start is for a linear projector without a norm; set projector_hidden and projector_norm off"
        )
    said = [tokenizer.encode(f" {one.caption}") for one in known]
    words = content_words(said)
    codes = word_codes(model.text, words)
    targets = _bags(said, words) @ codes  # n D
    centre = targets.mean(0)
    patches = torch.stack([one.patches for one in known]).float()
    scale = _start_linear(projector, patches, targets - centre)
    if projector.recall is not None:
        whole = torch.stack([one.whole for one in known]).float()
        _start_recall(projector.recall, whole, targets * scale, [one.caption for one in known], said)
    stream = _stream_scale(model, said[:32])
    for block, size in zip(adapter.attentions(), stream, strict=True):
        block.copy_directions(_leading(codes, block.kv_heads * block.head_width), size=size)


def content_words(captions: Sequence[Sequence[int]]) -> list[int]:
    """The tokens of captions, rising, without those that stand in almost every one."""
    counts = Counter(token for caption in captions for token in set(caption))
    kept = [token for token, count in counts.items() if count <= _COMMON * len(captions)]
    return sorted(kept or counts)


def word_codes(text: TextBackbone, words: Sequence[int]) -> Float[Tensor, "W D"]:
    """For each word the direction that is read back as this word and as no other through the embedding table.

    These are the table's dual rows: (covariance + ridge)^-1 (row - mean), of unit length. The plain rows lie close
    together, and sums of them blur.
    """
    table = text.model.embed_tokens.weight.float()
    mean, covariance = table.mean(0), torch.cov(table.T)
    ridge = 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))
    rows = table[torch.tensor(words)] - mean
    return F.normalize(torch.linalg.solve(covariance + ridge, rows.T).T, dim=-1)


def _bags(captions: Sequence[Sequence[int]], words: Sequence[int]) -> Float[Tensor, "n W"]:
    """Which words each caption has, as rows of unit length."""
    column = {word: i for i, word in enumerate(words)}
    bags = torch.zeros(len(captions), len(words))
    for row, caption in enumerate(captions):
        for token in caption:
            if token in column:
                bags[row, column[token]] = 1
    return F.normalize(bags, dim=-1)


def _start_linear(projector: Projector, patches: Float[Tensor, "n E"], targets: Float[Tensor, "n D"]) -> float:
    """Ridge regression from standardised mean features, folded into the linear layer; the scale its output was
    given.
    """
    mean, deviation = patches.mean(0), patches.std(0) + 1e-3
    x = (patches - mean) / deviation
    n = len(x)
    weight = torch.linalg.solve(x.T @ x / n + _LINEAR_RIDGE * torch.eye(x.shape[1]), x.T @ targets / n)  # E D
    # Rows of about unit size, as the noise and the code of places expect.
    scale = 1.0 / float((x @ weight).square().mean().sqrt().clamp(min=1e-6))
    projector.out.weight.copy_((weight / deviation[:, None]).T * scale)
    projector.out.bias.copy_(-(mean / deviation) @ weight * scale)
    return scale


def _start_recall(
    recall: Recall,
    whole: Float[Tensor, "n E"],
    targets: Float[Tensor, "n D"],
    captions: Sequence[str],
    said: Sequence[Sequence[int]],
) -> None:
    """Remembers the pictures of the shortest captions, which are names, under one key a caption."""
    groups: dict[str, list[int]] = {}
    for i in sorted(range(len(said)), key=lambda i: (len(said[i]), i)):
        groups.setdefault(_plain(captions[i]), []).append(i)
    remembered = dict(list(groups.items())[: len(recall.keys)])
    rows = [i for group in remembered.values() for i in group]
    x = rooted(whole[torch.tensor(rows)])
    recall.mean.copy_(x.mean(0))
    recall.whitening.copy_(_whitening(x - x.mean(0), [_plain(captions[i]) for i in rows]))
    recall.keys.zero_()
    recall.values.zero_()
    for number, group in enumerate(remembered.values()):
        recall.keys[number] = recall.directions(whole[torch.tensor(group)]).sum(0)
        recall.values[number] = targets[group[0]]


def _plain(caption: str) -> str:
    """A caption's words, so that "A cow." and "cow" are one thing."""
    return caption.lower().strip(" .!").removeprefix("a ").removeprefix("an ")


def _whitening(x: Float[Tensor, "n E"], captions: Sequence[str]) -> Float[Tensor, "E E"]:
    """Makes small the directions in which pictures of one caption differ; of all pictures, where few share a
    caption.
    """
    groups: dict[str, list[int]] = {}
    for row, caption in enumerate(captions):
        groups.setdefault(caption, []).append(row)
    several = [torch.tensor(rows) for rows in groups.values() if len(rows) > 1]
    enough = len(several) >= _FEWEST_GROUPS
    within = torch.cat([x[rows] - x[rows].mean(0) for rows in several]) if enough else x
    variances, directions = torch.linalg.eigh(within.T @ within / len(within))
    small = _WHITENING if enough else 10 * _WHITENING
    return directions * (variances.clamp(min=0) / variances.mean() + small).rsqrt() @ directions.T


def _leading(codes: Float[Tensor, "W D"], count: int) -> Float[Tensor, "count D"]:
    """The directions along which the words' codes differ most."""
    basis = torch.linalg.svd(codes, full_matrices=False).Vh[:count]
    return F.pad(basis, (0, 0, 0, count - len(basis)))


def _stream_scale(model: MultimodalModel, captions: Sequence[Int[Tensor, "t"] | Sequence[int]]) -> list[float]:
    """The residual stream's root mean square ahead of each block the adapter stands before."""
    adapter = model.adapters["image"]
    assert isinstance(adapter, ImageAdapter)
    sizes = []
    for at in adapter.config.at:
        # The first token's stream is hundreds of times larger than the others' and no measure of anything.
        streams = [model.text.run(model.text.embed(torch.tensor([[*one]])), last=at)[0, 1:] for one in captions]
        sizes.append(float(torch.cat(streams).float().square().mean(-1).sqrt().mean()))
    return sizes
