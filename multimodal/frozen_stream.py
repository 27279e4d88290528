"""The text's residual stream below the first adapter block, computed once for each row of tokens."""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor

from multimodal.batch import Batch
from multimodal.model import MultimodalModel


class FrozenStream:
    """Remembers, for rows of tokens, the stream ahead of the first adapter block.

    Below that block a picture changes nothing, so captions that come again (every epoch, every view of a picture) need
    the lower blocks only once. Each row is computed alone, whatever batch it first comes in: the stored value is a
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
        self._rows: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._capacity = capacity
        self._bytes = 0

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """The stream of every row; padding behind a row's end is zero, and nothing that counts looks at it."""
        B, T = batch.tokens.shape
        streams = [self._row(batch, b) for b in range(B)]
        x = streams[0].new_zeros(B, T, streams[0].shape[-1])
        for b, stream in enumerate(streams):
            x[b, : len(stream)] = stream
        return x

    def _row(self, batch: Batch, b: int) -> Float[Tensor, "t D"]:
        tokens = batch.tokens[b : b + 1, : int(batch.lengths[b])]
        key = tuple(tokens[0].tolist())
        if key in self._rows:
            self._rows.move_to_end(key)
            return self._rows[key]
        text = self._model.text
        stream = text.run(text.embed(tokens, self._model.embeds(tokens)), last=self._model.first_block)[0]
        self._rows[key] = stream
        self._bytes += stream.nbytes
        while self._bytes > self._capacity and len(self._rows) > 1:
            self._bytes -= self._rows.popitem(last=False)[1].nbytes
        return stream
