"""Keys and values of the tokens read so far, so that a new token costs one token."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from text_backbone.config import LlamaConfig
from text_backbone.ring import Ring


class KeyValueCache:
    """Preallocated keys and values of every block, written in place; of simplicial blocks, rings of their windows.

    Rows are right padded: row b holds `lengths[b]` tokens at places 0 .. lengths[b] - 1; what lies beyond is never
    read. A call of the model hands in T new tokens a row, of which the first `lengths` (its argument) are real.
    """

    lengths: Int[Tensor, "B"]
    """Tokens held by each row; also the position of the row's next token."""

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch < 1 or capacity < 1:
            raise ValueError(f"batch ({batch}) and capacity ({capacity}) must be at least 1")
        self.batch = batch
        self.capacity = capacity
        # A simplicial block has no places here: what it needs does not grow with the text.
        held = [0 if config.is_simplicial(layer) else capacity for layer in range(config.layers)]
        shapes = [(batch, config.kv_heads, places, config.head_width) for places in held]
        # Zeros, not empty: a short row's unwritten places are masked, and a masked NaN would still be a NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.rings: dict[int, tuple[Ring, Ring]] = {}
        if (pairs := config.simplicial) is not None:
            for layer in filter(config.is_simplicial, range(config.layers)):
                first, second = (
                    Ring(batch, pairs.kv_heads, window, pairs.head_width, dtype, device)
                    for window in (pairs.window1, pairs.window2)
                )
                self.rings[layer] = first, second
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        # What is known without asking the device: the longest row, and whether all rows are equally long.
        self.longest = 0
        self.even = True

    def places(self, new: int) -> Int[Tensor, "B T"]:
        """Where `new` more tokens of each row go; [1, T] when all rows are equally long."""
        device = self.lengths.device
        if self.even:
            return torch.arange(self.longest, self.longest + new, device=device)[None]
        return self.lengths[:, None] + torch.arange(new, device=device)

    def reserve(self, new: int) -> int:
        """The places in use once `new` tokens a row are in; ValueError when they do not fit."""
        if self.longest + new > self.capacity:
            raise ValueError(
                f"{self.longest} cached and {new} new tokens exceed the cache's capacity ({self.capacity}); "
                "make a larger cache"
            )
        return self.longest + new

    def write(
        self,
        layer: int,
        keys: Float[Tensor, "B G T K"],
        values: Float[Tensor, "B G T K"],
        places: Int[Tensor, "_ T"],
    ) -> tuple[Float[Tensor, "B G S K"], Float[Tensor, "B G S K"]]:
        """Put new keys and values at `places` of a block; give back all in use, places 0 .. S - 1, as views."""
        new = keys.shape[2]
        end = self.longest + new
        if self.even:
            self.keys[layer][:, :, self.longest : end] = keys
            self.values[layer][:, :, self.longest : end] = values
        else:
            rows = torch.arange(self.batch, device=places.device)[:, None]
            self.keys[layer][rows, :, places] = keys.transpose(1, 2)
            self.values[layer][rows, :, places] = values.transpose(1, 2)
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, new: int, lengths: Int[Tensor, "B"] | None = None) -> None:
        """Count `new` tokens a row as read, or only the first `lengths` of each row."""
        if lengths is None:
            self.lengths = self.lengths + new
            self.longest += new
            return
        self.lengths = self.lengths + lengths.to(self.lengths)
        held = self.lengths.tolist()
        self.longest = max(held)
        self.even = min(held) == self.longest

    def reorder(self, rows: Int[Tensor, "N"]) -> None:
        """Make row n a copy of what was row `rows[n]`; the number of rows may change (beams, dropped rows)."""
        rows = rows.to(self.lengths.device)
        self.keys = [keys.index_select(0, rows) for keys in self.keys]
        self.values = [values.index_select(0, rows) for values in self.values]
        for ring in itertools.chain.from_iterable(self.rings.values()):
            ring.reorder(rows)
        self.lengths = self.lengths.index_select(0, rows)
        self.batch = rows.shape[0]
        held = self.lengths.tolist()
        self.longest = max(held)
        self.even = min(held) == self.longest

    def repeat(self, n: int) -> None:
        """Make `n` copies of each row, copies beside each other (several samples from one prompt)."""
        self.reorder(torch.arange(self.batch).repeat_interleave(n))
