"""What an adapter keeps of media: the keys and values of every block, computed once."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """Keys and values a block; packed behind one another ([N, H, K], no padding) or put into a batch ([B, H, M, K])."""

    keys: tuple[Float[Tensor, "*rows _ K"], ...]
    values: tuple[Float[Tensor, "*rows _ K"], ...]

    def take(self, index: Int[Tensor, "B M"]) -> Memory:
        """Packed features put into a batch: index[b, m] is the packed feature that stands at m in row b, -1 for
        none.
        """
        return Memory(tuple(_taken(one, index) for one in self.keys), tuple(_taken(one, index) for one in self.values))


def _taken(packed: Float[Tensor, "N H K"], index: Int[Tensor, "B M"]) -> Float[Tensor, "B H M K"]:
    if not len(packed):
        return packed.new_zeros(len(index), packed.shape[1], index.shape[1], packed.shape[2])
    # Where nothing stands the first feature does, whom nobody may look at: any finite row will do.
    return packed[index.clamp(min=0)].transpose(1, 2).contiguous()
