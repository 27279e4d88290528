"""The Triton kernels of 2-simplicial attention timed on a GPU, beside FlexAttention, flash attention and the peak.

    python benchmarks/simplicial_attention.py --gpu      # needs a GPU; never run so far

Peers, in bfloat16 on the same card and in the same minute:

flex    the same numbers: a compiled FlexAttention a distance of the small window, merged by their log-sums. One
        distance is timed, of which the merge needs `window1`; the merge itself is not counted, in the peer's favour
flash   other numbers, as many tensor-core FLOP: causal flash attention of PyTorch's on a text so long that its pairs
        of tokens are as many as our triples: how near to the peak attention comes on this card
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import simplicial_attention

SHAPES = (
    # B, T, H, N, D, window1, window2
    (1, 8192, 64, 1, 64, 32, 512),
    (1, 8192, 64, 1, 128, 32, 512),
    (1, 8192, 32, 8, 128, 32, 512),
    (4, 2048, 64, 1, 128, 32, 512),
)

PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s of the tensor cores, by what is in the card's name."""

BACKWARD = 7 / 2
"""FLOP of our backward pass, in those of the forward: seven products, two (README.md)."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One shape: seconds of each side, and what they are a fraction of."""

    shape: tuple[int, ...]
    flop: float
    """Of our forward pass's two products."""
    peak: float
    """FLOP/s of the card; NaN for one that is not known."""
    forward: float
    both: float
    flex: float
    flash: float
    flash_both: float

    def fractions(self) -> dict[str, float]:
        """Of the card's peak. Flash attention's backward is five products where its forward is two."""
        return {
            "forward": self.flop / self.forward / self.peak,
            "forward_backward": (1 + BACKWARD) * self.flop / self.both / self.peak,
            "flash_forward": self.flop / self.flash / self.peak,
            "flash_forward_backward": 3.5 * self.flop / self.flash_both / self.peak,
        }

    def line(self) -> str:
        told = ", ".join(f"{name} {value:.2f} of peak" for name, value in self.fractions().items())
        return (
            f"{self.shape}: forward {1e3 * self.forward:.2f} ms ({self.flex / self.forward:.2f}x the merge of "
            f"{self.shape[5]} FlexAttentions), forward and backward {1e3 * self.both:.2f} ms; {told}"
        )


def measure(shape: tuple[int, ...]) -> Timing:
    """Times one shape on the GPU at hand."""
    B, T, H, N, D, window1, window2 = shape
    heads = (H, N, N, N, N, H)
    q, k1, v1, k2, v2, grad = (_leaf(B, T, h, D) for h in heads)
    inputs = (q, k1, v1, k2, v2)
    pairs = sum(min(i + 1, window1) * min(i + 1, window2) for i in range(T))

    def forward() -> Tensor:
        return simplicial_attention(*inputs, window1=window1, window2=window2, backend="triton")

    # As many pairs of tokens, causal: T' (T' + 1) / 2.
    length = max(128, round((2 * pairs) ** 0.5 / 128) * 128)
    fq, fk, fv, fgrad = (_leaf(B, H, length, D) for _ in range(4))
    scaled = pairs / (length * (length + 1) / 2)

    def flash() -> Tensor:
        return F.scaled_dot_product_attention(fq, fk, fv, is_causal=True)

    with torch.no_grad():
        ours = seconds(forward)
        flex = seconds(flex_forward(q.detach(), k2.detach(), v2.detach(), window2)) * window1
        anchor = seconds(flash) * scaled
    return Timing(
        shape=shape,
        flop=4.0 * B * H * D * pairs,
        peak=next((flops for card, flops in PEAKS.items() if card in torch.cuda.get_device_name()), float("nan")),
        forward=ours,
        both=seconds(lambda: torch.autograd.grad(forward(), inputs, grad.detach())),
        flex=flex,
        flash=anchor,
        flash_both=seconds(lambda: torch.autograd.grad(flash(), (fq, fk, fv), fgrad.detach())) * scaled,
    )


def report() -> str:
    """A line a shape."""
    if not torch.cuda.is_available():
        raise SystemExit("--gpu needs a GPU, and PyTorch sees none")
    lines = [measure(shape).line() for shape in SHAPES]
    return "\n".join([f"{torch.cuda.get_device_name()}, bfloat16, medians", *lines])


def flex_forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> Callable[[], object]:
    """One distance of the merge: sliding-window attention with its log-sum, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (j > i - window)

    T = q.shape[1]
    mask = create_block_mask(sees, None, None, T, T, device="cuda")
    run = torch.compile(flex_attention)
    queries, keys, values = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return lambda: run(queries, keys, values, block_mask=mask, enable_gqa=True, return_lse=True)


def seconds(job: Callable[[], object], rounds: int = 20) -> float:
    """Median of `rounds` calls, by the device's own clock; the first three warm up (and tune)."""
    for _ in range(3):
        job()
    times = []
    for _ in range(rounds):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        job()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return sorted(times)[rounds // 2]


def _leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
