"""Squared ReLU on a GPU: compression against memory's speed, products and the feed-forward against dense ones.

    python benchmarks/sparse_relu2_gpu.py      # needs a GPU; never run so far

Medians of Triton's do_bench in bfloat16, the fraction of the card's memory bandwidth for compression and decoding.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch

from kernels.sparse_relu2 import compress_24, matmul_24, relu2_ffn, skip_rows

TOKENS, WIDTH, HIDDEN = 8192, 4096, 14336


def report() -> str:
    """A table of milliseconds and fractions."""
    from triton.testing import do_bench, get_dram_gbps

    def timed(job: Callable[[], object]) -> float:
        times = do_bench(job, return_mode="all")
        assert isinstance(times, list)
        return statistics.median(times)

    def leaf(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * shape[-1] ** -0.5).requires_grad_()

    x, up, down = leaf(TOKENS, WIDTH), leaf(HIDDEN, WIDTH), leaf(HIDDEN, WIDTH)
    h = torch.randn(TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16) - 1.3
    bandwidth, lines = get_dram_gbps(), []
    for layout in ("sm80", "sm90"):
        seconds = timed(lambda layout=layout: compress_24(h, layout, "relu2")) / 1e3
        moved = h.numel() * (2 + 1 + 0.125) / 1e9
        lines.append(f"compress {layout}: {seconds * 1e3:.3f} ms, {moved / seconds / bandwidth:.2f} of the bandwidth")
    values, metadata = compress_24(h, "dense", "relu2")
    with torch.no_grad():
        sparse, dense = timed(lambda: matmul_24(values, metadata, down, "dense")), timed(lambda: h @ down)
        lines.append(f"product: sparse {sparse:.3f} ms, dense {dense:.3f} ms ({dense / sparse:.2f}x)")
    grad = torch.randn_like(x)

    def ours() -> object:
        return torch.autograd.grad(relu2_ffn(x, up, down)[0], (x, up, down), grad)

    def eager() -> object:
        return torch.autograd.grad((x @ up.T).relu().square() @ down, (x, up, down), grad)

    sparse, dense = timed(ours), timed(eager)
    lines.append(f"feed-forward and backward: 2:4 {sparse:.3f} ms, dense {dense:.3f} ms ({dense / sparse:.2f}x)")
    with torch.no_grad():
        for zeros in (0.9, 0.95):
            one = torch.where(torch.rand(1, HIDDEN, device="cuda") < zeros, -1.0, 1.0).bfloat16()
            skipped = timed(lambda one=one: skip_rows(one, down, "relu2"))
            dense = timed(lambda one=one: one.relu().square() @ down)
            moved = (1 - zeros) * down.numel() * 2 / 1e9
            fraction = moved / (skipped / 1e3) / bandwidth
            lines.append(
                f"decode {zeros}: {skipped:.3f} ms, dense {dense:.3f} ms ({dense / skipped:.2f}x), "
                f"{fraction:.2f} of the bandwidth"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("there is no GPU on this machine")
    print(report())
