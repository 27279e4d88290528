"""Where a speech adapter's training begins: rows that the text model can read, learned without running it.

Every row of a recording is either one of the text model's own tokens or a pause, and which is where is found by
connectionist temporal classification. A row's score for a token falls with the square of its distance to the token's
embedding, so what is learned is not a class but the embedding itself: the rows come out as text that the model could
have been given. That costs the adapter alone; the text model, some ten times as large and as often run as there are
tokens, comes in when little is left to be learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from adapters import SpeechAdapter
from multimodal.batch import NO_TARGET, Batch
from multimodal.pieces import Pieces
from text_backbone import TextBackbone, Tokenizer

_STRAYING = 0.05
"""Nats that a row costs for each unit of squared distance to where it says it is. Without it rows run away from the
embeddings, whose directions alone decide which is nearest: six times as long as any, they were no text."""


class Reading(nn.Module):
    """A speech adapter and what its rows are read with: the frozen embeddings of pieces, and a pause that learns."""

    def __init__(
        self, adapter: SpeechAdapter, encoder: nn.Module, text: TextBackbone, tokenizer: Tokenizer, pieces: Pieces
    ) -> None:
        super().__init__()
        self.adapter, self.encoder = adapter, encoder
        self.pieces, self.tokenizer = pieces, tokenizer
        self.table: Tensor
        table = text.model.embed_tokens.weight.detach()[torch.tensor(pieces.tokens)].float()
        self.register_buffer("table", table, persistent=False)
        self.pause = nn.Parameter(table.mean(0))
        # So sharp that two tokens which lie as far apart as most do are told apart.
        self.sharpness = nn.Parameter(torch.tensor(math.log(16.0 / float(table.var(0).sum()))))
        self.bias = nn.Parameter(torch.zeros(len(pieces.tokens) + 1))

    def start(self) -> None:
        """Lets the adapter's rows begin around the mean of the embeddings, as far from it as they are."""
        with torch.no_grad():
            self.adapter.out.weight.mul_(self.table.std(0).mean())
            self.adapter.out.bias.copy_(self.table.mean(0))

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "K W"], Float[Tensor, "K"], list[int]]:
        """Of the rows of all recordings: log probabilities of the pause (first) and of every piece; the squared
        distance to where they say they are; and how many rows each recording has.
        """
        features, sizes = batch.speech, batch.sizes
        assert sizes is not None
        if features is None:
            assert batch.heard is not None
            features, sizes = self.encoder(batch.heard, sizes)
        between = self.adapter.between(features, sizes)
        rows = torch.cat(between).float()
        read = torch.cat([self.pause[None], self.table])
        nearness = rows @ read.T - 0.5 * read.square().sum(-1)
        scores = (self.sharpness.exp() * nearness + self.bias).log_softmax(-1)
        strays = rows.square().sum(-1) - 2 * (scores.detach().exp() * nearness).sum(-1)
        return scores, strays, [len(one) for one in between]

    def answers(self, batch: Batch) -> list[str]:
        """What is to be learned in each row of the batch, without its stop token."""
        return [self.tokenizer.decode(row[row != NO_TARGET].tolist()[:-1]) for row in batch.targets]

    def read(self, batch: Batch) -> list[str]:
        """What each recording says, by the likeliest piece of every row: the text model has no part in it."""
        scores, _, counts = self(batch)
        said = [torch.unique_consecutive(one).tolist() for one in scores.argmax(-1).split(counts)]
        return [self.pieces.text(piece - 1 for piece in row if piece) for row in said]


def reading_loss(model: Reading, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """The summed loss (nats) of the answers' pieces, and their number; rows too short for their text count nothing."""
    scores, strays, counts = model(batch)
    answers = model.answers(batch)
    assert len(counts) == len(answers), "reading is for rows of one recording each"
    wanted = [torch.tensor(model.pieces.of(answer), dtype=torch.long) + 1 for answer in answers]
    kept = [i for i, text in enumerate(wanted) if len(text) and _needs(text) <= counts[i]]
    if not kept:
        return scores.sum() * 0.0, 0
    parts, astray = scores.split(counts), strays.split(counts)
    padded = nn.utils.rnn.pad_sequence([parts[i] for i in kept])  # K B W
    lengths = torch.tensor([len(wanted[i]) for i in kept])
    total = F.ctc_loss(
        padded,
        torch.cat([wanted[i] for i in kept]).to(padded.device),
        torch.tensor([counts[i] for i in kept]),
        lengths,
        reduction="sum",
    )
    return total + _STRAYING * torch.cat([astray[i] for i in kept]).sum(), int(lengths.sum())


def _needs(text: Int[Tensor, "U"]) -> int:
    """Rows that a text takes at least: a pause stands between equal neighbours."""
    return len(text) + int((text[1:] == text[:-1]).sum())


@torch.no_grad()
def spread_features(adapter: SpeechAdapter, batches: Iterable[Batch | None], encoder: nn.Module) -> None:
    """Lets every column of the encoder's features count alike: the adapter's norm takes them to mean 0, deviation 1.

    What speech models give has a few columns far larger than all others, behind which the rest would hardly be seen.
    """
    found = []
    for batch in batches:
        if batch is None or batch.sizes is None:
            continue
        features, sizes = batch.speech, batch.sizes
        if features is None:
            assert batch.heard is not None
            features, sizes = encoder(batch.heard, sizes)
        found += [adapter.stacked(one) for one in features.split(sizes.tolist())]
    if not found:
        raise ValueError("no recording of the first batches can be read; look at the shards")
    rows = torch.cat(found).float()
    deviation, mean = torch.std_mean(rows, dim=0)
    adapter.norm.weight.copy_(1.0 / (deviation + 1e-3))
    adapter.norm.bias.copy_(-mean / (deviation + 1e-3))
