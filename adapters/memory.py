"""What an adapter keeps of media: the keys and values of every block, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """Keys and values a block; packed behind one another ([N, H, K], no padding) or put into a batch ([B, H, M, K])."""

    keys: tuple[Float[Tensor, "*rows _ K"], ...]
    values: tuple[Float[Tensor, "*rows _ K"], ...]
    features: Int[Tensor, "*_"] | None = None
    """Packed: which feature each row was made of, rising. In a batch: which of a batch row's M features, -1 for none.
    None where every feature made one row."""

    def take(self, index: Int[Tensor, "B M"]) -> Memory:
        """Packed rows put into a batch: index[b, m] is the packed feature that stands at m in row b, -1 for none."""
        columns = None
        if self.features is not None:
            index, columns = _rows_of(index, self.features)
        return Memory(
            tuple(_taken(one, index) for one in self.keys), tuple(_taken(one, index) for one in self.values), columns
        )

    def seen(self, sees: Bool[Tensor, "B T M"]) -> Bool[Tensor, "B T M1"]:
        """Who sees which row, from who sees which feature; for a memory in a batch."""
        if self.features is None:
            return sees
        if not sees.shape[2]:
            return sees.new_zeros(*sees.shape[:2], self.features.shape[1])
        columns = self.features.clamp(min=0)[:, None].expand(-1, sees.shape[1], -1)
        return sees.gather(2, columns) & (self.features >= 0)[:, None]

    def select(self, rows: Int[Tensor, "b"]) -> Memory:
        """Those rows of a batch."""
        features = None if self.features is None else self.features[rows]
        return Memory(tuple(one[rows] for one in self.keys), tuple(one[rows] for one in self.values), features)


def _rows_of(index: Int[Tensor, "B M"], features: Int[Tensor, "N"]) -> tuple[Int[Tensor, "B M1"], Int[Tensor, "B M1"]]:
    """For features put into a batch the packed rows made of them, and which of the M features each is of; -1 for
    none.
    """
    B, M = index.shape
    if not M:
        return index, index
    made = torch.bincount(features, minlength=int(index.max()) + 1)
    first = made.cumsum(0) - made
    known = index.clamp(min=0)
    counts = made[known] * (index >= 0)  # B M
    ends = counts.cumsum(1)
    slots = torch.arange(int(ends[:, -1].max()), device=index.device).expand(B, -1).contiguous()
    columns = torch.searchsorted(ends, slots, right=True).clamp(max=M - 1)
    rows = first[known.gather(1, columns)] + slots - (ends - counts).gather(1, columns)
    none = slots >= ends[:, -1:]
    return rows.masked_fill(none, -1), columns.masked_fill(none, -1)


def _taken(packed: Float[Tensor, "N H K"], index: Int[Tensor, "B M"]) -> Float[Tensor, "B H M K"]:
    if not len(packed):
        return packed.new_zeros(len(index), packed.shape[1], index.shape[1], packed.shape[2])
    # Where nothing stands the first feature does, whom nobody may look at: any finite row will do.
    return packed[index.clamp(min=0)].transpose(1, 2).contiguous()
