"""The feed-forward on 2:4 activations: its numbers, every gradient, what each trick of the backward is for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.backend import interpreted
from kernels.sparse_relu2 import relu2_ffn
from kernels.sparse_relu2.feed_forward import permutation
from kernels.sparse_relu2.module import ReLU2FeedForward, SparsityConfig

BACKENDS = ["reference", "cpu", pytest.param("triton", marks=pytest.mark.skipif(not interpreted(), reason="a GPU"))]
NAMES = ("out", "dx", "dup", "ddown")

# rows, tokens, width, hidden
SHAPES = [
    *((1, 1, 8, 32), (2, 7, 16, 32), (1, 64, 24, 64), (3, 33, 10, 96), (1, 130, 16, 32), (4, 1, 40, 64)),
    *((1, 65, 8, 128), (2, 31, 33, 32), (1, 4, 64, 160), (5, 13, 12, 64), (1, 100, 20, 96), (2, 64, 7, 32)),
    *((1, 2, 3, 32), (7, 9, 16, 64), (1, 63, 48, 32), (2, 50, 32, 128)),
]
QUICK = SHAPES[:4]


def two_of_four(x: Tensor) -> Tensor:
    """Where |x| is among the two largest of four along the last axis; of equals places 2, 3, 0, 1."""
    groups = x.abs().unflatten(-1, (-1, 4))
    bonus = torch.tensor([1, 0, 3, 2])
    mine, other = groups[..., :, None], groups[..., None, :]
    better = (other > mine) | ((other == mine) & (bonus > bonus[:, None]))
    return (better.sum(-1) < 2).flatten(-2)


def oracle(x: Tensor, up: Tensor, down: Tensor, grad: Tensor, dense_features: float) -> list[Tensor]:
    """Output and gradients in float64, by masks and dense products."""
    x, up, down, grad = (one.double() for one in (x, up, down, grad))
    order, _ = permutation(x.shape[0] * x.shape[1], x.device)
    tokens, grad = x.flatten(0, 1)[order], grad.flatten(0, 1)[order]
    h = (tokens @ up.T).relu()
    mask = two_of_four(h)
    out = (h * mask).square() @ down
    dh = 2 * (grad @ down.T) * h * mask
    dense = (h > 0).sum(0).topk(math.ceil(dense_features * up.shape[0])).indices

    def along_tokens(y: Tensor) -> Tensor:
        turned = F.pad(y.T, (0, -y.shape[0] % 4))
        chosen = two_of_four(turned)
        chosen[dense] = True
        return (turned * chosen)[:, : y.shape[0]]

    back = order.argsort()
    dx = (dh @ up)[back].view_as(x)
    return [out[back].view_as(x), dx, along_tokens(dh) @ tokens, along_tokens((h * mask).square()) @ grad]


def make(shape: tuple[int, ...], grid: bool) -> list[Tensor]:
    """x, up, down, grad; on a grid coarse enough that every selection is the same in float16."""
    B, T, D, width = shape
    sizes = ((B, T, D), (width, D), (width, D), (B, T, D))
    if not grid:
        return [torch.randn(size) * scale for size, scale in zip(sizes, (1, D**-0.5, 0.2, 1), strict=True)]
    whole = [torch.randint(-2, 3, size).float() for size in sizes]
    # A quarter of an input is not zero, so that sums have few bits.
    return [one * (torch.rand_like(one) < min(1, 8 / D)) * s for one, s in zip(whole, (1, 0.25, 0.25, 1), strict=True)]


def everything(inputs: list[Tensor], dtype: torch.dtype, backend: Any, **rest: Any) -> list[Tensor]:
    leaves = [one.to(dtype).requires_grad_() for one in inputs[:3]]
    out, _ = relu2_ffn(*leaves, backend=backend, **rest)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3].to(dtype))]


def check(shape: tuple[int, ...], dtype: torch.dtype, backend: Any) -> None:
    inputs = make(shape, grid=dtype == torch.float16)
    exact = oracle(*inputs, dense_features=0.05)
    ours = everything(inputs, dtype, backend)
    # What eager makes of the same masks: the reference in the same dtype.
    eager = everything(inputs, dtype, "reference")
    for name, mine, true, plain in zip(NAMES, ours, exact, eager, strict=True):
        scale = float(true.norm()) or 1.0
        limit = 1e-6 if name == "out" else 2e-6
        if dtype == torch.float16:
            limit += (2 if name == "out" else 3) * float((plain - true).norm()) / scale
        assert float((mine - true).norm()) / scale <= limit, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", QUICK, ids=str)
def test_output_and_every_gradient_are_the_oracles(shape: tuple[int, ...], dtype: torch.dtype, backend: Any) -> None:
    check(shape, dtype, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES[4:], ids=str)
def test_every_shape(shape: tuple[int, ...], dtype: torch.dtype, backend: Any) -> None:
    check(shape, dtype, backend)


def test_with_all_features_dense_it_is_the_gradient_of_the_masked_feed_forward() -> None:
    x, up, down, _ = (one.double().requires_grad_() for one in make((1, 9, 4, 32), grid=False))
    assert torch.autograd.gradcheck(
        lambda *given: relu2_ffn(*given, dense_features=1.0, backend="reference")[0], (x, up, down)
    )


def test_opcheck() -> None:
    x, up, down, _ = (one.requires_grad_() for one in make((1, 64, 8, 32), grid=False))
    torch.library.opcheck(torch.ops.scion.relu2_ffn.default, (x[0], up, down, 60, 0.05, True, "cpu"))


def test_it_compiles_without_a_graph_break() -> None:
    inputs = make((1, 20, 8, 32), grid=False)
    compiled = torch.compile(lambda *given: relu2_ffn(*given)[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs[:3]), relu2_ffn(*inputs[:3])[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits(backend: Any) -> None:
    inputs = make((2, 31, 12, 64), grid=False)
    first, second = (everything(inputs, torch.float32, backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tokens_output_depends_on_itself_alone(backend: Any) -> None:
    x, up, down, _ = make((1, 40, 8, 64), grid=False)
    out, _ = relu2_ffn(x, up, down, backend=backend)
    x[:, 7] = torch.nan
    poisoned, _ = relu2_ffn(x, up, down, backend=backend)
    rest = torch.arange(40) != 7
    assert torch.equal(out[:, rest], poisoned[:, rest])
    assert poisoned[:, 7].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_counters_count_real_tokens_only(backend: Any) -> None:
    x, up, down, _ = make((1, 5, 8, 32), grid=False)
    _, counters = relu2_ffn(x, up, down, backend=backend)
    h = (x[0] @ up.T).relu()
    groups = h.unflatten(-1, (-1, 4))
    kept = groups.topk(2).values.pow(4).sum() / groups.pow(4).sum()
    wanted = [float((h == 0).float().mean()), float(((groups > 0).sum(-1) > 2).float().mean()), float(1 - kept)]
    assert counters.tolist() == pytest.approx(wanted, abs=1e-6)


def _synthetic(rho: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens that resemble their neighbours, features of heavy-tailed densities (by a constant input), 85% zeros."""
    T, D, width = 2048, 256, 1024
    x = torch.randn(T, D)
    for t in range(1, T):
        x[t] = rho * x[t - 1] + (1 - rho**2) ** 0.5 * x[t]
    x = torch.cat((x, torch.ones(T, 1)), 1)
    up = torch.cat((torch.randn(width, D) / D**0.5, (-1.45 + 0.9 * torch.randn(width))[:, None]), 1)
    return x, up, torch.randn(width, D + 1) / width**0.5, torch.randn(T, D + 1)


def _cosines(**tricks: Any) -> list[float]:
    """Of dx, d up, d down with the dense feed-forward's: the mean of three draws."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        x, up, down, grad = _synthetic(0.9)
        leaves = [one.requires_grad_() for one in (x, up, down)]
        true = torch.autograd.grad((x @ up.T).relu().square() @ down, leaves, grad)
        ours = torch.autograd.grad(relu2_ffn(*leaves, **tricks)[0], leaves, grad)
        found.append([float(F.cosine_similarity(a.flatten(), b.flatten(), 0)) for a, b in zip(ours, true, strict=True)])
    return torch.tensor(found).mean(0).tolist()


@pytest.mark.slow
def test_each_trick_of_the_backward_is_alive() -> None:
    dx, d_up, d_down = _cosines()
    assert dx >= 0.998
    assert d_down >= 0.998
    assert d_up >= 0.996
    assert _cosines(permute=False)[2] <= 0.96
    assert _cosines(dense_features=0.0)[2] <= 0.99
    assert _cosines(permute=False, dense_features=0.0)[2] <= 0.9


def test_without_the_forwards_mask_gradients_are_of_another_function() -> None:
    inputs = make((1, 64, 16, 64), grid=False)
    x, up, down, grad = inputs
    leaves = [one.clone().requires_grad_() for one in (x, up, down)]
    h = (leaves[0] @ leaves[1].T).relu()
    masked = (h * two_of_four(h.detach())).square() @ leaves[2]
    true = torch.autograd.grad(masked, leaves, grad)[0]

    def away(**tricks: Any) -> float:
        return float((everything(inputs, torch.float32, "cpu", **tricks)[1] - true).norm() / true.norm())

    assert away() < 1e-6
    assert away(keep_mask=False) > 0.01


def controlled(zeros: list[float], warmup: int = 3, memory: float = 0.0) -> list[bool]:
    """What the module decides over steps in which its activations have these fractions of zeros."""
    ff = ReLU2FeedForward(8, 64, SparsityConfig(warmup=warmup, memory=memory)).train()
    with torch.no_grad():
        ff.up_proj.weight.zero_()
    decided = []
    for fraction in zeros:
        live = torch.rand(64).argsort() >= round(fraction * 64)
        with torch.no_grad():
            ff.up_proj.weight[:, 0] = live.float()
        ff(torch.ones(2, 3, 8))
        decided.append(ff.sparse)
    return decided


def test_training_goes_sparse_by_what_is_measured_and_back() -> None:
    # A step decides by what the steps before it measured.
    assert controlled([0.5] * 6) == [False] * 6
    assert controlled([0.97] * 5) == [False, False, False, True, True]
    # Within the slack it stays; below it turns back.
    assert controlled([0.97] * 4 + [0.9, 0.9, 0.5, 0.5]) == [False] * 3 + [True] * 4 + [False]


def test_its_state_lies_in_the_state_dict_and_a_resumed_run_is_bit_for_bit() -> None:
    torch.manual_seed(1)
    config = SparsityConfig(warmup=2, zeros=0.4, violating=1.0)
    first = ReLU2FeedForward(8, 64, config).train()
    x = torch.randn(3, 4, 8)
    for _ in range(4):
        first(x)
    assert first.sparse
    second = ReLU2FeedForward(8, 64, config).train()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert torch.equal(first.measured, second.measured)
    assert torch.equal(first.to(torch.bfloat16).measured, second.measured)


def test_recomputing_a_block_neither_counts_nor_changes_course() -> None:
    ff = ReLU2FeedForward(8, 64, SparsityConfig(warmup=1, zeros=0.3, violating=1.0)).train()
    x = torch.randn(2, 5, 8, requires_grad=True)
    for step in range(1, 4):
        y = checkpoint(ff, x, use_reentrant=False)
        assert isinstance(y, Tensor)
        y.backward(torch.randn_like(y))
        assert int(ff.measured[0]) == step
    assert ff.sparse


def _ran(work: Any) -> dict[str, int]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return {event.key: event.count for event in profile.key_averages() if event.key.startswith("scion::")}


def test_a_sparse_step_and_a_decoded_token_run_on_the_chosen_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.sparse_relu2 import cpu, reference

    for name in ("compress", "matmul", "skip_rows", "decompress"):
        if name != "decompress":

            def never(*_: Any, name: str = name) -> None:
                raise AssertionError(f"the reference's {name} ran")

            monkeypatch.setattr(reference, name, never)
    calls = []
    for name in ("compress", "matmul", "skip_rows"):
        true = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *a, true=true, name=name: calls.append(name) or true(*a))
    ff = ReLU2FeedForward(8, 64, SparsityConfig(mode="sparse"), backend="cpu").train()
    x = torch.randn(1, 6, 8, requires_grad=True)
    counted = _ran(lambda: ff(x).backward(torch.randn(1, 6, 8)))
    assert counted["scion::relu2_ffn"] == counted["scion::relu2_ffn_backward"] == 1
    assert calls.count("matmul") == 4
    ff.eval()
    with torch.no_grad():
        assert _ran(lambda: ff(x[:, :1])) == {"scion::skip_rows": 1}
    assert calls[-1] == "skip_rows"


def test_decoding_gives_what_a_long_text_gives() -> None:
    ff = ReLU2FeedForward(16, 128).eval()
    x = torch.randn(1, 9, 16)
    with torch.no_grad():
        whole = ff(x)
        each = torch.cat([ff(x[:, t : t + 1]) for t in range(9)], 1)
    assert torch.allclose(whole, each, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"up": torch.randn(33, 8), "down": torch.randn(33, 8)}, r"hidden width \(33\) must be a multiple of 32"),
        ({"down": torch.randn(64, 9)}, "up and down must both be"),
        ({"dense_features": 1.5}, "must be a fraction"),
        ({"down": torch.randn(64, 8).half()}, "must have one dtype"),
    ],
)
def test_what_cannot_be_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    given = {"x": torch.randn(1, 2, 8), "up": torch.randn(64, 8), "down": torch.randn(64, 8)} | change
    with pytest.raises(ValueError, match=words):
        relu2_ffn(**given)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_it_is_no_further_from_the_truth_than_the_reference(dtype: torch.dtype) -> None:
    inputs = [one.cuda() for one in make((2, 256, 256, 1024), grid=True)]
    exact = everything(inputs, torch.float64, "reference")
    eager, ours = (everything(inputs, dtype, backend) for backend in ("reference", "triton"))
    for name, mine, true, plain in zip(NAMES, ours, exact, eager, strict=True):
        allowed = (2 if name == "out" else 3) * float((plain - true).norm()) + 1e-6 * float(true.norm())
        assert float((mine - true).norm()) <= allowed, name
