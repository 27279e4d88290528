"""The newest rows of a sliding window, in memory that does not grow with the text."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Ring:
    """Keys and values of the last `window` tokens of each row: position p lies in slot p % window.

    A softmax does not care for order, so that a decoding step reads the slots as they lie.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        window: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.window = window
        # Zeros, not empty: slots that hold nothing yet are masked, and a masked NaN would still be a NaN.
        self.keys = torch.zeros(batch, heads, window, width, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    def write(
        self,
        keys: Float[Tensor, "B N T K"],
        values: Float[Tensor, "B N T K"],
        places: Int[Tensor, "_ T"],
        lengths: Int[Tensor, "B"] | None = None,
    ) -> None:
        """Put the tokens at positions `places` in, of which the first `lengths` of each row are real.

        Padding must not be written: unlike in a cache that grows, it would lie where an older token is still needed.
        """
        T = keys.shape[2]
        if lengths is None:
            slots, kept = places[:, -self.window :] % self.window, slice(max(0, T - self.window), T)
            if slots.shape[0] == 1:
                self.keys[:, :, slots[0]] = keys[:, :, kept].to(self.keys.dtype)
                self.values[:, :, slots[0]] = values[:, :, kept].to(self.keys.dtype)
            else:
                rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
                self.keys[rows, :, slots] = keys[:, :, kept].transpose(1, 2).to(self.keys.dtype)
                self.values[rows, :, slots] = values[:, :, kept].transpose(1, 2).to(self.keys.dtype)
            return
        places = places.expand(keys.shape[0], -1)
        for row, real in enumerate(lengths.tolist()):
            kept = slice(max(0, real - self.window), real)
            slots = places[row, kept] % self.window
            self.keys[row, :, slots] = keys[row, :, kept].to(self.keys.dtype)
            self.values[row, :, slots] = values[row, :, kept].to(self.keys.dtype)

    def last(self, end: int, count: int, row: slice) -> tuple[Float[Tensor, "R N C K"], Float[Tensor, "R N C K"]]:
        """Positions end - count .. end - 1 in order, for rows that are `end` tokens long; zeros where too old."""
        at = torch.arange(end - count, end, device=self.keys.device)
        slots, old = at % self.window, (at < end - self.window)[:, None]
        keys, values = self.keys[row, :, slots], self.values[row, :, slots]
        return keys.masked_fill(old, 0), values.masked_fill(old, 0)

    def seen(self, places: Int[Tensor, "_ 1"]) -> Bool[Tensor, "_ W"]:
        """Which slots hold a token, once the token at `places` is in."""
        return torch.arange(self.window, device=places.device) <= places

    def reorder(self, rows: Int[Tensor, "R"]) -> None:
        """Make row n a copy of what was row `rows[n]`."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
