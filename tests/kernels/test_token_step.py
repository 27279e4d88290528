"""The C++ steps against their meaning in float64; what a row gets depends on nothing but the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.token_step import cross_attention_step, head_step, reference, self_attention_step, swiglu_step

# Odd on purpose: D, N and K are no multiples of the vector's width; 40 places are more than one vector of them.
SIZES = [
    {"D": 37, "H": 3, "G": 1, "K": 10, "N": 29, "S": 5},
    {"D": 64, "H": 8, "G": 2, "K": 16, "N": 96, "S": 40},
    {"D": 256, "H": 8, "G": 8, "K": 32, "N": 300, "S": 9},
]
ROWS = [1, 2, 3, 8]
DTYPES = [torch.float32, torch.bfloat16]

Call = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def self_attention(rows: int, dtype: torch.dtype, *, D: int, H: int, G: int, K: int, N: int, S: int) -> tuple:
    angles = torch.rand(rows, 1, 1, K // 2) * 6
    rotation = torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)
    weights = (matrix(H * K, D), matrix(G * K, D), matrix(G * K, D), matrix(D, H * K))
    keys, values, places = torch.randn(rows, G, S, K), torch.randn(rows, G, S, K), torch.randint(0, S, (rows, 1))
    given = (torch.randn(rows, 1, D), norm(D), weights, rotation, keys, values, places)
    return self_attention_step, reference.self_attention_step, cast(given, dtype)


def cross_attention(rows: int, dtype: torch.dtype, *, D: int, H: int, G: int, K: int, N: int, S: int) -> tuple:
    sees = torch.rand(rows, S) < 0.5
    sees[:, 0] |= ~sees.any(-1)
    memory = torch.randn(rows, G, S, K), torch.randn(rows, G, S, K)
    given = (torch.randn(rows, 1, D), norm(D), matrix(H * K, D), norm(K), matrix(D, H * K), 0.7, *memory, sees)
    return cross_attention_step, reference.cross_attention_step, cast(given, dtype)


def cross_attention_to_all(rows: int, dtype: torch.dtype, **sizes: int) -> tuple:
    op, meaning, given = cross_attention(rows, dtype, **sizes)
    return op, meaning, (*given[:-1], None)


def swiglu(rows: int, dtype: torch.dtype, *, D: int, N: int, **_: int) -> tuple:
    given = (torch.randn(rows, 1, D), norm(D), matrix(N, D), matrix(N, D), matrix(D, N), -0.4)
    return swiglu_step, reference.swiglu_step, cast(given, dtype)


def head(rows: int, dtype: torch.dtype, *, D: int, N: int, **_: int) -> tuple:
    return head_step, reference.head_step, cast((torch.randn(rows, 1, D), norm(D), matrix(N, D)), dtype)


STEPS = [self_attention, cross_attention, cross_attention_to_all, swiglu, head]
steps = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)


def norm(width: int) -> tuple[Tensor, float]:
    return torch.rand(width) + 0.5, 1e-5


def matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns) * columns**-0.5


def cast(given, dtype: torch.dtype):
    """Every floating tensor of a nest of tuples in `dtype`, copied."""
    if isinstance(given, tuple):
        return tuple(cast(one, dtype) for one in given)
    if isinstance(given, Tensor):
        return given.to(dtype, copy=True) if given.is_floating_point() else given
    return given


@steps
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_a_step_is_as_near_to_the_truth_as_pytorch(step, rows: int, sizes: dict[str, int], dtype: torch.dtype) -> None:
    op, meaning, given = step(rows, dtype, **sizes)
    truth = meaning(*cast(given, torch.float64))
    eager = meaning(*cast(given, dtype)).double()
    ours = op(*cast(given, dtype), backend="cpu")
    assert ours.dtype == dtype
    assert ours.shape == truth.shape
    bound = 2 * (eager - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
    assert (ours.double() - truth).abs().max() <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_keys_and_values_are_written_where_the_token_stands_and_nowhere_else(dtype: torch.dtype, backend: str) -> None:
    _, meaning, given = self_attention(3, dtype, **SIZES[1])
    truth = cast(given, torch.float64)
    meaning(*truth)
    ours = cast(given, dtype)
    self_attention_step(*ours, backend=backend)
    places = given[-1][:, 0]
    for written, exact, old in zip(ours[4:6], truth[4:6], given[4:6], strict=True):
        torch.testing.assert_close(
            written, exact.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-2 * (dtype != torch.float32) + 1e-5
        )
        changed = (written != old).any(-1).any(1)  # B S
        assert changed.nonzero().tolist() == [[b, int(place)] for b, place in enumerate(places)]


@steps
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_gets_the_same_bits_alone_and_among_others(step, dtype: torch.dtype) -> None:
    op, _, given = step(7, dtype, **SIZES[1])
    together = op(*cast(given, dtype), backend="cpu")
    for b in range(7):
        assert torch.equal(op(*only(given, b), backend="cpu"), together[b : b + 1])


def only(given, b: int, rows: int = 7):
    """Row b of whatever has rows."""
    if isinstance(given, tuple):
        return tuple(only(one, b, rows) for one in given)
    if isinstance(given, Tensor) and given.ndim > 1 and len(given) == rows:
        return given[b : b + 1].clone()
    return given


@steps
def test_the_number_of_threads_changes_no_bit(step) -> None:
    op, _, given = step(2, torch.float32, **SIZES[2])
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(op(*cast(given, torch.float32), backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@steps
def test_what_is_no_number_stays_none(step) -> None:
    op, _, given = step(2, torch.float32, **SIZES[1])
    given = cast(given, torch.float32)
    given[0][1, 0, 3] = float("nan")
    out = op(*given, backend="cpu")
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_rows_that_stand_at_one_place_may_share_it() -> None:
    _, _, given = self_attention(3, torch.float32, **SIZES[1])
    x, first, weights, (cosine, sine), keys, values, _ = given
    shared = (cosine[:1], sine[:1]), torch.tensor([[4]])
    each = (cosine[:1].repeat(3, 1, 1, 1), sine[:1].repeat(3, 1, 1, 1)), torch.full((3, 1), 4)
    call = partial(self_attention_step, x, first, weights, backend="cpu")
    results = [call(turn, keys.clone(), values.clone(), at) for turn, at in (shared, each)]
    assert torch.equal(*results)


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    """A projection by the identity writes x itself: what the cache holds is x, rounded as PyTorch rounds."""
    D = 64
    x = torch.randn(1, 1, D).bfloat16()
    weights = tuple(torch.eye(D).bfloat16() for _ in range(4))
    rotation = torch.ones(1, 1, 1, D).bfloat16(), torch.zeros(1, 1, 1, D).bfloat16()
    keys, values = torch.zeros(1, 1, 2, D).bfloat16(), torch.zeros(1, 1, 2, D).bfloat16()
    scale = torch.full((D,), 1.2345).bfloat16()
    self_attention_step(x, (scale, 0.0), weights, rotation, keys, values, torch.tensor([[0]]), backend="cpu")  # type: ignore[arg-type]
    exact = reference.normalise(x.double(), (scale.double(), 0.0))
    # float32 inside: a tie may fall to either side, nothing else may.
    assert ((keys[0, 0, 0] != exact[0, 0].bfloat16()).sum()) <= 1
    assert torch.equal(keys[0, 0, 0], values[0, 0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w: (x.half(), w.half()), "must be float32 or all bfloat16, they are torch.float16"),
        (lambda x, w: (x, w.bfloat16()), "they are torch.bfloat16, torch.float32"),
        (lambda x, w: (x, w.T.contiguous().T), "must be contiguous"),
        (lambda x, w: (x.expand(65, 1, -1), w), r"at most 64 rows, x is \[65, 1, 8\]"),
    ],
)
def test_what_the_fast_path_cannot_take_is_refused_with_the_reason(change, message: str) -> None:
    x, weight = change(torch.randn(1, 1, 8), torch.randn(6, 8))
    with pytest.raises(ValueError, match=f"head_step cannot run on backend 'cpu': .*{message}"):
        head_step(x, norm(8), weight, backend="cpu")


def test_gradients_are_refused_by_the_fast_path_and_given_by_the_reference() -> None:
    weight = torch.randn(6, 8, requires_grad=True)
    with torch.enable_grad():
        with pytest.raises(ValueError, match="it has no gradients; call it under"):
            head_step(torch.randn(1, 1, 8), norm(8), weight, backend="cpu")
        head_step(torch.randn(1, 1, 8), norm(8), weight, backend="reference").square().sum().backward()
    assert weight.grad is not None
