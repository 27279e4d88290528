"""2-simplicial attention against a float64 oracle that shares no code with it; laws of windows, causality and bits."""

import itertools
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import compiler, simplicial_attention
from kernels.library import SETS
from kernels.simplicial_attention import cpu, reference, simplicial_decode
from tests.kernels.simplicial_oracle import away, make, oracle

# B, T, H, N, D, window1, window2, form
SHAPES = [
    (1, 24, 16, 1, 16, 4, 12, "trilinear"),
    (2, 33, 16, 1, 16, 8, 20, "trilinear"),
    (1, 40, 4, 1, 16, 5, 17, "trilinear"),
    (2, 37, 6, 2, 20, 5, 40, "trilinear"),
    (1, 20, 16, 1, 16, 1, 20, "trilinear"),
    (1, 20, 16, 1, 16, 20, 1, "trilinear"),
    (1, 28, 32, 2, 32, 20, 7, "trilinear"),
    (3, 1, 4, 2, 64, 3, 5, "trilinear"),
    (1, 1, 16, 16, 16, 1, 1, "trilinear"),
    (1, 19, 64, 1, 64, 3, 9, "trilinear"),
    (1, 17, 3, 3, 96, 4, 8, "trilinear"),
    (1, 18, 128, 1, 16, 2, 6, "trilinear"),
    (1, 33, 5, 1, 128, 6, 33, "trilinear"),
    (2, 25, 12, 4, 8, 40, 50, "trilinear"),
    (2, 21, 16, 1, 18, 7, 9, "determinant"),
    (1, 22, 4, 2, 64, 20, 3, "determinant"),
    (1, 17, 2, 1, 96, 5, 5, "determinant"),
    (1, 70, 2, 1, 24, 40, 66, "trilinear"),
]
NAMES = ("out", "lse", "dq", "dk1", "dv1", "dk2", "dv2")


def everything(shape: tuple[Any, ...], dtype: torch.dtype, run: Any, seed: int = 0) -> list[Tensor]:
    """Output, log-sum and the gradients of all five inputs, from random gradients of both outputs."""
    *sizes, window1, window2, form = shape
    inputs, grad, grad_lse = make(*sizes, dtype=dtype, seed=seed)
    leaves = [x.requires_grad_() for x in inputs]
    out, lse = run(*leaves, window1=window1, window2=window2, form=form)
    grads = torch.autograd.grad((out, lse), leaves, (grad.to(out.dtype), grad_lse.to(lse.dtype)))
    return [out.detach(), lse.detach(), *grads]


def on(backend: str) -> Any:
    return lambda *tensors, **rest: simplicial_attention(*tensors, **rest, return_lse=True, backend=backend)


def by_the_book(*tensors: Tensor, window1: int, window2: int, form: str) -> tuple[Tensor, Tensor]:
    return oracle(*tensors, window1, window2, form, tensors[0].shape[-1] ** -0.5)


def truth(shape: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    """The oracle in float64 on the very numbers that `dtype` can hold."""

    def run(*tensors: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
        return by_the_book(*(x.double() for x in tensors), **rest)

    return everything(shape, dtype, run)


def limit(shape: tuple[Any, ...], name: str) -> float:
    """Relative error allowed in float32.

    Where a query sees a single pair the scores' gradient is the log-sum's alone, what is left of much larger numbers.
    """
    T, window1, window2 = shape[1], shape[5], shape[6]
    alone = T == 1 or window1 == window2 == 1
    return 1e-6 if name in ("out", "lse") else 1e-5 if alone and name in ("dq", "dk1", "dk2") else 2e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_float32_is_the_oracle_to_a_rounding(backend: str, shape: tuple[Any, ...]) -> None:
    for name, ours, true in zip(
        NAMES, everything(shape, torch.float32, on(backend)), truth(shape, torch.float32), strict=True
    ):
        assert away(ours, true) <= limit(shape, name), name


@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_no_further_from_the_truth_than_eager_halves(
    dtype: torch.dtype, backend: str, shape: tuple[Any, ...]
) -> None:
    close_as_eager(shape, dtype, backend)


def close_as_eager(shape: tuple[Any, ...], dtype: torch.dtype, backend: str) -> None:
    """At most twice the largest error of the oracle's own formulas in this dtype, three times for gradients."""
    ours, true = everything(shape, dtype, on(backend)), truth(shape, dtype)
    eager = everything(shape, dtype, by_the_book)
    for name, mine, theirs, exact in zip(NAMES, ours, eager, true, strict=True):
        # A rounding of the result itself, for what eager happens to hit.
        least = torch.finfo(dtype).eps * float(exact.abs().max())
        allowed = (2 if name in ("out", "lse") else 3) * max(float((theirs.double() - exact).abs().max()), least)
        assert float((mine.double() - exact).abs().max()) <= allowed, name


@pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512"])
def test_every_instruction_set_of_the_cpu_path_computes_the_same(instructions: str) -> None:
    sets = list(SETS)
    if sets.index(instructions) > sets.index(cpu.instruction_set()):
        pytest.skip(f"this machine has no {instructions}")
    for form, D in (("trilinear", 40), ("determinant", 39)):
        (q, *rest), grad, grad_lse = make(1, 45, 4, 2, D)
        settings = (9, 21, 0.2, form)
        out, lse = cpu.forward(q, *rest, *settings, instructions=instructions)
        here = [out, lse, *cpu.backward(grad, grad_lse, q, *rest, out, lse, *settings, instructions=instructions)]
        wide = [x.double() for x in (q, *rest)]
        there = list(reference.forward(*wide, *settings))
        there += reference.backward(grad.double(), grad_lse.double(), *wide, *there, *settings)
        for ours, true in zip(here, there, strict=True):
            assert away(ours, true) <= 1e-6


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients_of_a_call_without_the_log_sum(backend: str) -> None:
    inputs, grad, _ = make(1, 13, 4, 2, 12)
    leaves = [x.requires_grad_() for x in inputs]
    out = simplicial_attention(*leaves, window1=4, window2=6, backend=backend)
    true, _ = by_the_book(*(x.double() for x in leaves), window1=4, window2=6, form="trilinear")
    ours, exact = torch.autograd.grad(out, leaves, grad), torch.autograd.grad(true, leaves, grad.double())
    assert max(map(away, ours, exact)) <= 2e-6


@pytest.mark.parametrize("form", ["trilinear", "determinant"])
def test_gradcheck_of_the_reference(form: str) -> None:
    inputs, _, _ = make(1, 5, 2, 1, 4, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in inputs]

    def run(*tensors: Tensor) -> Any:
        return simplicial_attention(
            *tensors, window1=2, window2=4, scale=-0.7, form=form, return_lse=True, backend="reference"
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, leaves)


def test_blocks_of_the_reference_do_not_show() -> None:
    (q, *rest), grad, grad_lse = make(2, 23, 4, 2, 6, dtype=torch.float64)
    settings = (5, 9, 0.4, "trilinear")
    whole = reference.forward(q, *rest, *settings)
    pieces = reference.forward(q, *rest, *settings, budget=1)
    assert max(map(away, pieces, whole)) <= 1e-14
    back = reference.backward(grad, grad_lse, q, *rest, *whole, *settings)
    parts = reference.backward(grad, grad_lse, q, *rest, *whole, *settings, budget=1)
    assert max(map(away, parts, back)) <= 1e-13


def test_nothing_of_the_future_and_nothing_beyond_the_windows_is_touched() -> None:
    untouched("cpu")


def untouched(backend: str) -> None:
    """NaN in every row that a query may not see leaves its output, bit for bit, as it was."""
    (q, *rest), _, _ = make(1, 40, 16, 1, 16)
    run = on(backend)
    out, lse = run(q, *rest, window1=5, window2=11)
    late = [x.clone() for x in rest]
    for x in late:
        x[:, 30:] = torch.nan
    now, log = run(q, *late, window1=5, window2=11)
    assert torch.equal(now[:, :30], out[:, :30])
    assert torch.equal(log[:, :30], lse[:, :30])
    assert now[:, 30:].isnan().all()
    early = [x.clone() for x in rest]
    for x, oldest in zip(early, (20, 20, 14, 14), strict=True):
        x[:, :oldest] = torch.nan
    now, log = run(q, *early, window1=5, window2=11)
    assert torch.equal(now[:, 24:], out[:, 24:])
    assert torch.equal(log[:, 24:], lse[:, 24:])
    assert now[:, :24].isnan().any(-1).any(-1).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_query_sends_gradients_to_its_windows_and_nowhere_else(backend: str) -> None:
    supported(backend)


def supported(backend: str) -> None:
    inputs, grad, _ = make(1, 40, 16, 1, 16)
    leaves = [x.requires_grad_() for x in inputs]
    out = simplicial_attention(*leaves, window1=5, window2=11, backend=backend)
    only = torch.zeros_like(grad)
    only[:, 20] = grad[:, 20]
    touched = [x.abs().sum((0, 2, 3)).nonzero().flatten().tolist() for x in torch.autograd.grad(out, leaves, only)]
    assert touched == [[20], [*range(16, 21)], [*range(16, 21)], [*range(10, 21)], [*range(10, 21)]]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_cpu_path_gives_the_same_bits_with_any_number_of_threads(threads: int) -> None:
    shape = (2, 150, 4, 2, 16, 9, 40, "trilinear")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    first = everything(shape, torch.float32, on("cpu"))
    try:
        torch.set_num_threads(threads)
        for ours, theirs in zip(everything(shape, torch.float32, on("cpu")), first, strict=True):
            assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


def test_rows_of_a_batch_do_not_meet() -> None:
    (q, *rest), _, _ = make(3, 30, 4, 2, 16)
    out = simplicial_attention(q, *rest, window1=4, window2=9)
    for row in range(3):
        alone = simplicial_attention(*(x[row : row + 1] for x in (q, *rest)), window1=4, window2=9)
        assert torch.equal(out[row], alone[0])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_strides_do_not_matter(backend: str) -> None:
    strided(backend)


def strided(backend: str) -> None:
    inputs, _, _ = make(2, 21, 8, 2, 16)
    odd = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]  # strides of the batch and of time swapped
    odd[0] = torch.stack((inputs[0], inputs[0]), -1)[..., 0]
    odd[1] = inputs[1][:1].expand(2, -1, -1, -1)
    inputs[1] = odd[1].clone()
    assert not any(x.is_contiguous() for x in odd)
    ours, plain = (on(backend)(*tensors, window1=4, window2=9)[0] for tensors in (odd, inputs))
    # The reference's matrix products may add up in another order for other strides.
    assert away(ours, plain) <= 1e-6 if backend == "reference" else torch.equal(ours, plain)


@pytest.mark.parametrize("window1", [1, 4, 50])
def test_ones_in_one_stream_leave_sliding_window_attention(window1: int) -> None:
    (q, _, _, k, v), _, _ = make(2, 40, 8, 2, 32)
    ones = torch.ones_like(k)
    out = simplicial_attention(q, ones, ones, k, v, window1=window1, window2=12)
    at = torch.arange(40)
    sees = (at <= at[:, None]) & (at > at[:, None] - 12)
    wide = [x.double().transpose(1, 2) for x in (q, k, v)]
    plain = F.scaled_dot_product_attention(*wide, attn_mask=sees, enable_gqa=True).transpose(1, 2)
    assert away(out, plain) <= 1e-6


def test_the_merge_of_plain_attentions_over_the_small_window_is_the_whole() -> None:
    """At a length that all T^3 scores would not fit: one attention a distance r, weighted by its log-sum."""
    (q, k1, v1, k2, v2), _, _ = make(1, 520, 4, 2, 32)
    out, lse = simplicial_attention(q, k1, v1, k2, v2, window1=6, window2=70, return_lse=True)
    at = torch.arange(520)
    sees = (at <= at[:, None]) & (at > at[:, None] - 70)
    logs, parts = [], []
    for r in range(6):
        fold = q * k1.roll(r, 1).repeat_interleave(2, 2)
        scores = torch.einsum("bihd,blhd->bhil", fold.double(), k2.double().repeat_interleave(2, 2)) * 32**-0.5
        scores = scores.masked_fill(~sees | (at < r)[:, None], -torch.inf)
        logs.append(scores.logsumexp(-1))
        part = torch.einsum("bhil,blhd->bihd", scores.softmax(-1).nan_to_num(), v2.double().repeat_interleave(2, 2))
        parts.append(part * v1.roll(r, 1).repeat_interleave(2, 2))
    weights = torch.stack(logs).softmax(0).transpose(2, 3)
    assert away(out, (weights[..., None] * torch.stack(parts)).sum(0)) <= 1e-6
    assert away(lse, torch.stack(logs).logsumexp(0).transpose(1, 2)) <= 1e-6


def test_the_determinant_does_not_see_a_common_rotation_and_the_trilinear_form_does() -> None:
    (q, k1, v1, k2, v2), _, _ = make(1, 20, 4, 2, 12, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    turn = turn * turn.det().sign()
    turned = [(x.unflatten(-1, (4, 3)) @ turn).flatten(-2) for x in (q, k1, k2)]
    for form, invariant in (("determinant", True), ("trilinear", False)):
        plain = simplicial_attention(q, k1, v1, k2, v2, window1=4, window2=9, form=form, backend="reference")
        now = simplicial_attention(
            turned[0], turned[1], v1, turned[2], v2, window1=4, window2=9, form=form, backend="reference"
        )  # fmt: skip
        assert (away(now, plain) <= 1e-12) == invariant


def test_large_scores_do_not_overflow() -> None:
    shape = (1, 24, 4, 1, 16, 4, 12, "trilinear")
    *sizes, window1, window2, form = shape
    inputs, _, _ = make(*sizes, size=8.0)
    true, log = by_the_book(*(x.double() for x in inputs), window1=window1, window2=window2, form=form)
    out, lse = on("cpu")(*inputs, window1=window1, window2=window2)
    assert away(out, true) <= 5e-6
    assert away(lse, log) <= 1e-6
    assert float(log.abs().max()) > 500


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_opcheck(backend: str) -> None:
    inputs, _, _ = make(1, 12, 4, 2, 12)
    leaves = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.scion.simplicial_attention.default, (*leaves, 3, 5, 0.3, "trilinear", backend))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_compiles_without_a_graph_break(backend: str) -> None:
    inputs, grad, _ = make(1, 12, 4, 2, 12)
    leaves = [x.requires_grad_() for x in inputs]

    def run(*tensors: Tensor) -> Tensor:
        out = simplicial_attention(*tensors, window1=6, window2=5, form="determinant", backend=backend)
        return torch.sin(out)

    plain = torch.autograd.grad(run(*leaves), leaves, grad)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(torch.autograd.grad(compiled(*leaves), leaves, grad), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_decoding_a_token_from_rings_is_the_last_row_of_the_whole() -> None:
    for form, D in itertools.product(("trilinear", "determinant"), (12, 16)):
        (q, k1, v1, k2, v2), _, _ = make(2, 23, 6, 2, D)
        whole = simplicial_attention(q, k1, v1, k2, v2, window1=4, window2=9, form=form)
        turn = torch.randperm(9)  # rings lie in any order
        small = [x[:, -4:].transpose(1, 2) for x in (k1, v1)]
        large = [x[:, -9:].transpose(1, 2)[:, :, turn] for x in (k2, v2)]
        step = simplicial_decode(q[:, -1], *small, *large, form=form)
        assert away(step, whole[:, -1]) <= 1e-6
        early = simplicial_attention(
            *(x[:, :3] for x in (q, k1, v1, k2, v2)), window1=4, window2=9, form=form
        )  # fmt: skip
        junk = [
            F.pad(x[:, :3].transpose(1, 2), (0, 0, 0, n), value=7.0) for x, n in ((k1, 1), (v1, 1), (k2, 6), (v2, 6))
        ]
        seen = [(torch.arange(n) < 3).expand(2, n) for n in (4, 9)]
        step = simplicial_decode(q[:, 2], *junk, seen1=seen[0], seen2=seen[1], form=form)
        assert away(step, early[:, -1]) <= 1e-6


def test_what_makes_no_sense_is_refused_in_words() -> None:
    (q, k1, v1, k2, v2), _, _ = make(1, 4, 4, 2, 8)
    run = simplicial_attention
    for words, call in {
        r"heads \(3\) must be a multiple of key heads \(2\)": lambda: run(
            q[:, :, :3], k1, v1, k2, v2, window1=1, window2=1
        ),
        r"window2 \(0\) must be at least 1": lambda: run(q, k1, v1, k2, v2, window1=1, window2=0),
        r"k2 must be \[1, 4, key heads, 8\]": lambda: run(q, k1, v1, k2[:, :3], v2, window1=1, window2=1),
        "v1 is torch.float64": lambda: run(q, k1, v1.double(), k2, v2, window1=1, window2=1),
        "no form 'cubic'": lambda: run(q, k1, v1, k2, v2, window1=1, window2=1, form="cubic"),
        r"scale \(0.0\)": lambda: run(q, k1, v1, k2, v2, window1=1, window2=1, scale=0.0),
        "it computes in float32": lambda: run(
            *(x.double() for x in (q, k1, v1, k2, v2)), window1=1, window2=1, backend="cpu"
        ),
    }.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_without_a_compiler_the_reference_runs_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "why_not", lambda source: "this test has no C++ compiler")
    (q, *rest), _, _ = make(1, 9, 4, 2, 8)
    with pytest.warns(UserWarning, match="runs on its reference, which is slow.*no C\\+\\+ compiler"):
        out = simplicial_attention(q, *rest, window1=2, window2=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = simplicial_attention(q, *rest, window1=2, window2=3)
    assert torch.equal(out, again)
    with pytest.raises(ValueError, match="this test has no C"):
        simplicial_attention(q, *rest, window1=2, window2=3, backend="cpu")
