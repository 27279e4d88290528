"""What 2:4 compression and its products mean, in plain PyTorch; every dtype, every device, no speed."""

from __future__ import annotations

import torch
from torch import Tensor

TIES = (2, 3, 0, 1)
"""Of equal magnitudes in a group the one named first here wins: so does PyTorch's encoder fill groups up with zeros."""


def kept(x: Tensor) -> Tensor:
    """Places of the two largest magnitudes of each group of four along the last axis: int64 [..., K / 4, 2], rising.

    NaN counts as the largest.
    """
    groups = x.abs().unflatten(-1, (-1, 4))[..., list(TIES)]
    first = groups.sort(dim=-1, descending=True, stable=True).indices[..., :2]
    return torch.tensor(TIES, device=x.device)[first].sort(dim=-1).values


def compress(x: Tensor, activation: str | None) -> tuple[Tensor, Tensor]:
    """Values [M, K / 2] and metadata uint8 [M, K / 8] in rows ("dense" layout) of x [M, K].

    relu^2 selects by relu(x) and squares the survivors in float32 (float64 for float64) before it rounds once.
    """
    if activation == "relu2":
        x = x.relu()
    places = kept(x)
    values = x.unflatten(-1, (-1, 4)).gather(-1, places).flatten(-2)
    return squared(values) if activation == "relu2" else values, nibbles(places)


def squared(x: Tensor) -> Tensor:
    """x * x, rounded once."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().to(x.dtype)


def nibbles(places: Tensor) -> Tensor:
    """Places [M, K / 4, 2] -> bytes [M, K / 8]: a nibble a group, first place in its low bits; the first group low."""
    nibble = (places[..., 0] | places[..., 1] << 2).to(torch.uint8)
    return nibble[..., 0::2] | nibble[..., 1::2] << 4


def places_of(metadata: Tensor) -> Tensor:
    """Bytes [M, K / 8] -> places int64 [M, K / 4, 2]."""
    nibble = torch.stack((metadata & 15, metadata >> 4), -1).flatten(-2)
    return torch.stack((nibble & 3, nibble >> 2), -1).long()


def decompress(values: Tensor, metadata: Tensor) -> Tensor:
    """[M, K] with zeros where nothing was kept, from the "dense" layout."""
    places = places_of(metadata)
    groups = values.new_zeros(*places.shape[:-1], 4)
    return groups.scatter_(-1, places, values.unflatten(-1, (-1, 2))).flatten(-2)


def arrange(metadata: Tensor, layout: str) -> Tensor:
    """Bytes in rows -> the order that the hardware's fragments are read in.

    sm80: int16 [M, K / 16], CUTLASS's ColumnMajorInterleaved<2>, as torch.sparse's own conversions have it.
    sm90: uint8 [M * K / 8], tiles of 128 columns, 16 bytes a row.
    """
    if layout == "dense":
        return metadata
    M, bytes_ = metadata.shape
    if layout == "sm90":
        return metadata.view(M, bytes_ // 16, 16).transpose(0, 1).reshape(-1)
    words = metadata.contiguous().view(torch.int16)
    return (
        words.new_empty(words.numel()).scatter_(0, _sm80(M, words.shape[1], words.device), words.flatten()).view(M, -1)
    )


def rows(metadata: Tensor, layout: str, M: int) -> Tensor:
    """The inverse of `arrange`: bytes [M, K / 8]."""
    if layout == "dense":
        return metadata
    if layout == "sm90":
        return metadata.view(-1, M, 16).transpose(0, 1).reshape(M, -1)
    words = metadata.flatten()[_sm80(M, metadata.numel() // M, metadata.device)]
    return words.view(M, -1).view(torch.uint8)


def _sm80(M: int, words: int, device: torch.device) -> Tensor:
    """Where the word (row, column) of 16 columns lies: rows shuffled in blocks of 32, words swapped in pairs."""
    row, column = torch.arange(M, device=device)[:, None], torch.arange(words, device=device)
    row = row // 32 * 32 + row % 8 * 4 + row % 32 // 8
    swap = ((row % 2 == 0) & (column % 2 == 1)).long() - ((row % 2 == 1) & (column % 2 == 0)).long()
    row, column = row + swap, column - swap
    return (column // 2 * M * 2 + row * 2 + column % 2).flatten()


def matmul(values: Tensor, metadata: Tensor, dense: Tensor) -> Tensor:
    """[M, K] in the "dense" layout times [K, N]."""
    return decompress(values, metadata) @ dense


def skip_rows(h: Tensor, down: Tensor, activation: str | None) -> Tensor:
    """[B, F] times [F, D]; with "relu2" h is squared where it is positive."""
    return (squared(h.relu()) if activation == "relu2" else h) @ down
