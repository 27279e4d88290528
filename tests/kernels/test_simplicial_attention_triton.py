"""The Triton kernels of 2-simplicial attention: their numbers in the interpreter, their machine code, and a GPU's turn.

The interpreter has float32 and float16 only: its bfloat16 is wrong. All shapes run in `make kernels`, a few in
`make check`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import simplicial_attention
from kernels.backend import interpreted
from tests.kernels.simplicial_oracle import away, make
from tests.kernels.test_simplicial_attention import (
    NAMES,
    SHAPES,
    close_as_eager,
    everything,
    limit,
    on,
    strided,
    supported,
    truth,
    untouched,
)

ROOT = Path(__file__).parents[2]
in_the_interpreter = pytest.mark.skipif(not interpreted(), reason="TRITON_INTERPRET is not set")

QUICK = [
    (1, 18, 16, 1, 16, 3, 17, "trilinear"),
    (1, 17, 3, 1, 10, 18, 2, "trilinear"),
    (1, 17, 16, 1, 18, 2, 5, "determinant"),
]


@in_the_interpreter
@pytest.mark.parametrize("shape", QUICK, ids=str)
def test_float32_is_the_oracle_to_a_rounding(shape: tuple[Any, ...]) -> None:
    for name, ours, true in zip(
        NAMES, everything(shape, torch.float32, on("triton")), truth(shape, torch.float32), strict=True
    ):
        assert away(ours, true) <= limit(shape, name), name


@in_the_interpreter
@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_in_float32(shape: tuple[Any, ...]) -> None:
    test_float32_is_the_oracle_to_a_rounding(shape)


@in_the_interpreter
def test_float16_is_no_further_from_the_truth_than_eager_float16() -> None:
    close_as_eager(QUICK[0], torch.float16, "triton")


@in_the_interpreter
@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_in_float16(shape: tuple[Any, ...]) -> None:
    close_as_eager(shape, torch.float16, "triton")


@in_the_interpreter
def test_nothing_of_the_future_and_nothing_beyond_the_windows_is_touched() -> None:
    # With 16 heads a key head a tile holds one query: what it may not see is not read.
    untouched("triton")


@in_the_interpreter
@pytest.mark.slow
def test_a_query_sends_gradients_to_its_windows_and_nowhere_else() -> None:
    supported("triton")


@in_the_interpreter
def test_two_runs_give_the_same_bits() -> None:
    first, second = (everything((2, 9, 2, 2, 8, 3, 9, "trilinear"), torch.float32, on("triton")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@in_the_interpreter
@pytest.mark.slow
def test_strides_do_not_matter() -> None:
    strided("triton")


@in_the_interpreter
@pytest.mark.slow
def test_opcheck() -> None:
    inputs, _, _ = make(1, 5, 4, 2, 12)
    leaves = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.scion.simplicial_attention.default, (*leaves, 3, 5, 0.3, "trilinear", "triton"))


@in_the_interpreter
def test_heads_that_are_too_wide_are_refused_in_words() -> None:
    (q, *rest), _, _ = make(1, 2, 2, 1, 160)
    with pytest.raises(ValueError, match="heads are 160 wide, at most 128 fit"):
        simplicial_attention(q, *rest, window1=1, window2=1, backend="triton")


def compiled(*words: str) -> subprocess.CompletedProcess[str]:
    """`kernels_aot.py` in a process of its own, without the interpreter."""
    clean = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks/kernels_aot.py"), "--op", "simplicial_attention", *words]
    return subprocess.run(command, capture_output=True, text=True, env=clean, cwd=ROOT)


def test_the_forward_kernel_compiles_within_its_limits() -> None:
    done = compiled("--arch", "90", "--only", "forward G64 D128")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 builds, 0 outside their limits" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 700, 64, 1, 128, 32, 512, "trilinear")], ids=str)
def test_on_a_gpu_it_is_no_further_from_the_truth_than_eager(shape: tuple[Any, ...], dtype: torch.dtype) -> None:
    inputs, grad, grad_lse = make(*shape[:5], dtype=dtype)
    window1, window2, form = shape[5:]

    def run(wide: torch.dtype, backend: str) -> list[torch.Tensor]:
        leaves = [x.cuda().to(wide).requires_grad_() for x in inputs]
        out, lse = on(backend)(*leaves, window1=window1, window2=window2, form=form)
        grads = torch.autograd.grad((out, lse), leaves, (grad.cuda().to(wide), grad_lse.cuda().to(lse.dtype)))
        return [out.detach(), lse.detach(), *grads]

    ours, again, true = run(dtype, "triton"), run(dtype, "triton"), run(torch.float64, "reference")
    for name, mine, twice, exact in zip(NAMES, ours, again, true, strict=True):
        assert torch.equal(mine, twice), name
        allowed = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else limit(shape, name)
        assert away(mine, exact) <= allowed, name


@pytest.mark.gpu
def test_on_a_gpu_250_runs_give_the_same_bits() -> None:
    shape = (2, 300, 64, 1, 64, 32, 128, "trilinear")
    (q, *rest), grad, _ = make(*shape[:5], dtype=torch.bfloat16)
    leaves = [x.cuda().requires_grad_() for x in (q, *rest)]
    first = None
    for _ in range(250):
        out = simplicial_attention(*leaves, window1=32, window2=128, backend="triton")
        now = [out.detach(), *torch.autograd.grad(out, leaves, grad.cuda())]
        first = first or now
        assert all(torch.equal(a, b) for a, b in zip(now, first, strict=True))
