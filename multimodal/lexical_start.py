"""Where an image adapter's training begins: features mapped to the words of their captions, in closed form.

A gated adapter that starts at random spends most of its training on finding out which feature means which word. That
part has a closed form. The text model's own embedding table gives every word a code; a ridge regression takes a
picture's mean feature to the sum of its caption's codes, and because it is linear it does so for every patch too, at
its place. Names of single things, which no linear map of one example each can hold, are remembered as they are: a key
for each short caption (the mean direction of its pictures) whose value is the caption's words. The cross-attention's
keys, values and outputs start as a copy, so that what a patch shows is what the text is drawn to say; its queries start
as the words said so far, read off the text's stream: towards them where the block is to find the place of what was
said, away from them where it is to find what else there is. Training then makes sentences of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adapters import ImageAdapter
from adapters.recall import Recall, rooted
from multimodal.model import MultimodalModel
from text_backbone import TextBackbone, Tokenizer

_COMMON = 0.3
"""Words that stand in more than this share of the captions name nothing and are left out."""
_LINEAR_RIDGE = 0.1
_WHITENING = 0.1
_QUERY_RIDGE = 0.05
_FADING = 0.9
"""What is left of a said word with every token that follows."""
_PROBES = 384
"""Captions that the text model reads for the start of the queries."""
_FEWEST_GROUPS = 100
"""Captions with several pictures that it takes to know how pictures of one thing differ."""


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """One captioned picture: the mean of its patches, its whole features (one tile's), and its caption."""

    patches: Float[Tensor, "E"]
    whole: Float[Tensor, "W E"]
    caption: str


@torch.no_grad()
def lexical_start(model: MultimodalModel, tokenizer: Tokenizer, pictures: Iterable[Captioned]) -> None:
    """Sets the image adapter's projector, summary and attentions from captioned pictures.

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
    _start_linear(projector.out, torch.stack([one.patches for one in known]).float(), targets)
    if projector.summary is not None:
        whole = torch.stack([one.whole for one in known]).float()
        _start_linear(projector.summary.linear, whole.flatten(1), targets)
        names = [[*one, tokenizer.stops[0]] for one in said]
        _start_recall(projector.summary.recall, whole[:, -1], [one.caption for one in known], names, model.text)
    spread = said[:: max(1, len(said) // _PROBES)]
    _start_attention(model, spread, words, codes)


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


def _start_linear(layer: nn.Linear, features: Float[Tensor, "n E"], targets: Float[Tensor, "n D"]) -> None:
    """Ridge regression from standardised features, folded into the layer; outputs of about unit size."""
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    x = (features - mean) / deviation
    n, centred = len(x), targets - targets.mean(0)
    weight = torch.linalg.solve(x.T @ x / n + _LINEAR_RIDGE * torch.eye(x.shape[1]), x.T @ centred / n)  # E D
    # Rows of about unit size, as the noise and the code of places expect.
    scale = 1.0 / float((x @ weight).square().mean().sqrt().clamp(min=1e-6))
    layer.weight.copy_((weight / deviation[:, None]).T * scale)
    layer.bias.copy_(-(mean / deviation) @ weight * scale)


def _start_recall(
    recall: Recall,
    whole: Float[Tensor, "n E"],
    captions: Sequence[str],
    names: Sequence[Sequence[int]],
    text: TextBackbone,
) -> None:
    """Remembers the pictures of the shortest captions, which are names, under one key a caption."""
    U, J = recall.words.shape
    groups: dict[str, list[int]] = {}
    for i in sorted(range(len(names)), key=lambda i: (len(names[i]), i)):
        if len(names[i]) <= J:
            groups.setdefault(_plain(captions[i]), []).append(i)
    remembered = list(groups.values())[:U]
    rows = [i for group in remembered for i in group]
    x = rooted(whole[torch.tensor(rows)])
    recall.mean.copy_(x.mean(0))
    recall.whitening.copy_(_whitening(x - x.mean(0), [_plain(captions[i]) for i in rows]))
    # In the order in which they come: where there is no room for all, the words of the longest names are silent.
    words = list(dict.fromkeys(word for group in remembered for word in names[group[0]]))[: len(recall.codes) - 1]
    number = {word: 1 + i for i, word in enumerate(words)}
    for one in (recall.keys, recall.codes, recall.words):
        one.zero_()
    recall.codes[1 : 1 + len(words)] = word_codes(text, words) * text.config.width**0.5
    for at, group in enumerate(remembered):
        recall.keys[at] = recall.directions(whole[torch.tensor(group)]).sum(0)
        name = names[group[0]]
        recall.words[at, : len(name)] = torch.tensor([number.get(word, 0) for word in name])


def _start_attention(
    model: MultimodalModel, captions: Sequence[Sequence[int]], words: Sequence[int], codes: Float[Tensor, "W D"]
) -> None:
    """Keys, values and outputs as a copy of the words' directions; queries as the words said so far.

    The first of three blocks and more looks at what was said (where is it?) and copies nothing: its outputs start as
    they are. The others look away from it (what else is there?) with two heads of three, and copy.
    """
    adapter = model.adapters["image"]
    assert isinstance(adapter, ImageAdapter)
    column = {word: i for i, word in enumerate(words)}
    said = torch.cat([_said(caption, column, codes) for caption in captions])  # n D
    streams = _streams(model.text, captions, adapter.config.at)
    for number, (stream, block) in enumerate(zip(streams, adapter.attentions(), strict=True)):
        size = stream.square().mean(-1).sqrt()
        x = stream / size[:, None]
        gram = x.T @ x / len(x)
        ridge = _QUERY_RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        reading = torch.linalg.solve(gram + ridge, x.T @ said / len(x))  # D D
        directions = _leading(codes, block.kv_heads * block.head_width)
        where = number == 0 and len(adapter.config.at) > 2
        if not where:
            block.copy_directions(directions, size=float(size.mean()))
        block.look(directions, (reading @ directions.T).T, away=not where)


def _streams(text: TextBackbone, captions: Sequence[Sequence[int]], at: Sequence[int]) -> list[Float[Tensor, "n D"]]:
    """The residual stream ahead of each block at every token but each caption's first, whose stream is hundreds of
    times larger than the others' and no measure of anything.
    """
    longest = max(map(len, captions))
    tokens = torch.tensor([[*one, *[text.config.pad] * (longest - len(one))] for one in captions])
    counts = torch.arange(1, longest) < torch.tensor([len(one) for one in captions])[:, None]
    x, first, found = text.embed(tokens), 0, []
    for block in at:
        x, first = text.run(x, first=first, last=block), block
        found.append(x[:, 1:][counts].float())
    return found


def _said(caption: Sequence[int], column: dict[int, int], codes: Float[Tensor, "W D"]) -> Float[Tensor, "t1 D"]:
    """For each token but the first the words said up to it, older ones fainter."""
    rows, kept = [], torch.zeros(codes.shape[1])
    for token in caption:
        kept = _FADING * kept + (codes[column[token]] if token in column else 0)
        rows.append(kept)
    return torch.stack(rows[1:]) if len(rows) > 1 else torch.zeros(0, codes.shape[1])


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
