"""The Triton kernels of 2-simplicial attention timed on a GPU, beside compiled FlexAttention and the card's peak.

Written without a GPU at hand: what it prints has never been seen. FlexAttention computes one distance of the small
window a call, of which the merge needs `window1`; its log-sums are returned for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

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


def report() -> str:
    """A line a shape: milliseconds, TFLOP/s and fraction of the peak, forward and forward with backward."""
    if not torch.cuda.is_available():
        raise SystemExit("--gpu needs a GPU, and PyTorch sees none")
    name = torch.cuda.get_device_name()
    peak = next((flops for card, flops in PEAKS.items() if card in name), float("nan"))
    lines = [f"{name}, bfloat16; fractions of {peak / 1e12:.0f} TFLOP/s"]
    for shape in SHAPES:
        B, T, H, N, D, window1, window2 = shape
        heads = (H, N, N, N, N, H)
        q, k1, v1, k2, v2, grad = (
            torch.randn(B, T, h, D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in heads
        )
        pairs = sum(min(i + 1, window1) * min(i + 1, window2) for i in range(T))
        flop = 4.0 * B * H * D * pairs

        def forward(inputs=(q, k1, v1, k2, v2), a: int = window1, b: int = window2) -> torch.Tensor:
            return simplicial_attention(*inputs, window1=a, window2=b, backend="triton")

        def both(inputs=(q, k1, v1, k2, v2), grad: torch.Tensor = grad, run: Callable = forward) -> object:
            return torch.autograd.grad(run(), inputs, grad.detach())

        one, all_ = seconds(forward), seconds(both)
        flex = seconds(flex_forward(q.detach(), k2.detach(), v2.detach(), window2)) * window1
        # Forward 2 products, backward 7 (README.md).
        lines.append(
            f"{shape}: forward {1e3 * one:.2f} ms, {flop / one / 1e12:.0f} TFLOP/s ({flop / one / peak:.2f} of peak), "
            f"{flex / one:.2f}x the merge of {window1} FlexAttentions; forward and backward {1e3 * all_:.2f} ms, "
            f"{4.5 * flop / all_ / 1e12:.0f} TFLOP/s ({4.5 * flop / all_ / peak:.2f} of peak)"
        )
    return "\n".join(lines)


def flex_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> Callable[[], object]:
    """One distance of the merge: sliding-window attention with its log-sum, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (j <= i) & (j > i - window)

    T = q.shape[1]
    mask = create_block_mask(sees, None, None, T, T, device="cuda")
    run = torch.compile(flex_attention)
    queries, keys, values = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return lambda: run(queries, keys, values, block_mask=mask, enable_gqa=True, return_lse=True)


def seconds(job: Callable[[], object], rounds: int = 20) -> float:
    """Median of `rounds` calls, by the device's own clock."""
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
