"""The text's residual stream below the first adapter block, computed once for each row of tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from multimodal.batch import Batch
from multimodal.model import MultimodalModel

Row = tuple[int, ...]
_GROUP = 8
"""Rows that are computed together: enough that the text model's weights are read once for many."""
_STRIDE = 8
"""Rows are filled up to a multiple of so many tokens."""


class FrozenStream:
    """Remembers, for rows of tokens, the stream ahead of the first adapter block.

    Below that block a picture changes nothing, so captions that come again (every epoch, every view of a picture) need
    the lower blocks only once. New rows are computed in groups of one fixed shape, where a row's bits depend neither on
    its place nor on the others (tried once, on this machine; else each row is computed alone): the stored value is a
    function of the row, and a resumed run finds the same bits. The oldest rows go when `capacity` bytes are full.
    """

    def __init__(self, model: MultimodalModel, *, capacity: int = 2**30) -> None:
        learned = [f"text.{name}" for name, weight in model.text.named_parameters() if weight.requires_grad]
        learned += [
            f"adapters.{name}.placeholder" for name, part in model.adapters.items() if part.placeholder.requires_grad
        ]
        if learned:
            raise ValueError(
                f"the stream below the adapters is not frozen: {learned[:3]} learn; turn the stream's cache off"
            )
        self._model = model
        self._rows: OrderedDict[Row, Tensor] = OrderedDict()
        self._capacity = capacity
        self._bytes = 0
        self._group = _GROUP if self._places_do_not_matter() else 1

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """The stream of every row; padding behind a row's end is zero, and nothing that counts looks at it."""
        B, T = batch.tokens.shape
        rows = [tuple(batch.tokens[b, : int(batch.lengths[b])].tolist()) for b in range(B)]
        # Kept here too: a batch may hold more rows than there is room for.
        streams = self._known(rows) | self._made(rows, batch.tokens.device)
        first = next(iter(streams.values()))
        x = first.new_zeros(B, T, first.shape[-1])
        for b, row in enumerate(rows):
            x[b, : len(row)] = streams[row]
        return x

    def _known(self, rows: Sequence[Row]) -> dict[Row, Tensor]:
        for row in rows:
            if row in self._rows:
                self._rows.move_to_end(row)
        return {row: self._rows[row] for row in rows if row in self._rows}

    def _made(self, rows: Sequence[Row], device: torch.device) -> dict[Row, Tensor]:
        """The rows that are not known, by length class, and remembered."""
        classes: dict[int, list[Row]] = {}
        for row in dict.fromkeys(rows):
            if row not in self._rows:
                classes.setdefault(-(-len(row) // _STRIDE) * _STRIDE, []).append(row)
        made: dict[Row, Tensor] = {}
        for length, alike in classes.items():
            for start in range(0, len(alike), self._group):
                group = alike[start : start + self._group]
                streams = self._run(group, length, device)
                made |= {row: streams[i, : len(row)].clone() for i, row in enumerate(group)}
        for row, stream in made.items():
            self._rows[row] = stream
            self._bytes += stream.nbytes
        while self._bytes > self._capacity and len(self._rows) > 1:
            self._bytes -= self._rows.popitem(last=False)[1].nbytes
        return made

    def _run(self, rows: Sequence[Row], length: int, device: torch.device) -> Float[Tensor, "G t D"]:
        """The group filled up to its fixed shape with rows of padding."""
        text = self._model.text
        tokens = torch.full((max(len(rows), self._group), length), text.config.pad, device=device)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row, device=device)
        return text.run(text.embed(tokens, self._model.embeds(tokens)), last=self._model.first_block)

    def _places_do_not_matter(self) -> bool:
        """Whether rows of a group come out with the same bits at another place, beside other rows."""
        text = self._model.text
        self._group = _GROUP
        device = text.model.embed_tokens.weight.device
        random = torch.Generator().manual_seed(0)
        for length in (_STRIDE, 3 * _STRIDE):
            drawn = torch.randint(text.config.vocabulary, (_GROUP, length), generator=random)
            rows = [tuple(row) for row in drawn.tolist()]
            with torch.no_grad():
                straight, turned = self._run(rows, length, device), self._run(rows[::-1], length, device)
                alone = self._run(rows[:1], length, device)
            if not (torch.equal(straight, turned.flip(0)) and torch.equal(straight[:1], alone[:1])):
                return False
        return True
