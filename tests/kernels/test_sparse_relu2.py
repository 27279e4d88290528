"""2:4 compression and its products, against PyTorch's encoder and decoders that share no code with ours."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from kernels.backend import interpreted
from kernels.sparse_relu2 import compress_24, cpu, decompress_24, matmul_24, reference, skip_rows

BACKENDS = ["reference", "cpu", pytest.param("triton", marks=pytest.mark.skipif(not interpreted(), reason="a GPU"))]

# M, K
SHAPES = [
    *((32, 32), (32, 64), (64, 128), (96, 32), (32, 160), (160, 96), (64, 256), (128, 64)),
    *((256, 32), (32, 384), (64, 96), (96, 256), (32, 512), (224, 32), (64, 320), (192, 128)),
]


def sparse(M: int, K: int, zeros: float = 0.6, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(M, K)
    return (x * (torch.rand(M, K) >= zeros)).to(dtype)


def pruned(x: Tensor) -> Tensor:
    """Each group's two largest magnitudes, by Python's own sort; of equals places 2, 3, 0, 1."""
    out = torch.zeros_like(x)
    for m in range(x.shape[0]):
        for g in range(0, x.shape[1], 4):
            size = [math.inf if math.isnan(v) else abs(v) for v in x[m, g : g + 4].tolist()]
            best = sorted((2, 3, 0, 1), key=lambda i: -size[i])[:2]
            for i in best:
                out[m, g + i] = x[m, g + i]
    return out


def read_sm90(values: Tensor, metadata: Tensor, M: int, K: int) -> Tensor:
    """A decoder of the tiles of 128 columns by the addresses alone."""
    out = torch.zeros(M, K, dtype=values.dtype)
    for m, g in itertools.product(range(M), range(K // 4)):
        column = 4 * g
        byte = int(metadata[column // 128 * M * 16 + m * 16 + column % 128 // 8])
        nibble = byte >> 4 if g % 2 else byte & 15
        first, second = nibble & 3, nibble >> 2
        assert first < second
        out[m, column + first], out[m, column + second] = values[m, 2 * g], values[m, 2 * g + 1]
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_two_largest_of_four_stay_where_they_were(backend: Any, dtype: torch.dtype) -> None:
    x = sparse(64, 128, 0.4, dtype)
    for layout in ("dense", "sm80", "sm90"):
        values, metadata = compress_24(x, layout, backend=backend)
        assert torch.equal(decompress_24(values, metadata, layout), pruned(x)), layout


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_metadata_are_those_of_pytorchs_encoder(backend: Any) -> None:
    # Its encoder keeps the first two of a group, whatever their size: it is defined on what is 2:4 already.
    for zeros in (0.2, 0.7, 0.95):
        x = pruned(sparse(64, 128, zeros, torch.float16))
        values, metadata = compress_24(x, "sm80", backend=backend)
        theirs, their_metadata = sparse_semi_structured_from_dense_cutlass(x)
        assert torch.equal(values, theirs)
        assert torch.equal(metadata, their_metadata)
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, metadata), x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sm90_bytes_lie_where_cutlass_reads_them(backend: Any) -> None:
    x = sparse(64, 256)
    values, metadata = compress_24(x, "sm90", backend=backend)
    assert torch.equal(read_sm90(values, metadata, 64, 256), pruned(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", [None, "relu2"])
def test_all_patterns_of_zeros_and_ties(backend: Any, activation: Any) -> None:
    groups = torch.tensor(list(itertools.product([0.0, 1.0, 2.0, -2.0], repeat=4)))  # 256 of four
    x = groups.view(32, 32)
    values, metadata = compress_24(x, "sm80", activation, backend=backend)
    wanted = pruned(x.relu()).square() if activation else pruned(x)
    assert torch.equal(decompress_24(values, metadata), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_infinity_and_negative_zero(backend: Any) -> None:
    x = torch.zeros(32, 32)
    x[0, :4] = torch.tensor([1.0, torch.nan, 3.0, torch.inf])
    x[1, :4] = torch.tensor([-0.0, -1.0, -torch.inf, 2.0])
    values, metadata = compress_24(x, "sm80", "relu2", backend=backend)
    out = decompress_24(values, metadata)
    assert out[0, :4].isnan().tolist() == [False, True, False, False]
    assert out[0, 3] == torch.inf
    assert out[1, :4].tolist() == [0, 0, 0, 4]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_nan_of_negative_sign_is_not_lost(backend: Any) -> None:
    # What x86 makes of inf - inf.
    x = torch.zeros(1, 8)
    x[0, 1] = -torch.tensor(torch.nan)
    values, _ = compress_24(x, "dense", "relu2", backend=backend)
    assert values.isnan().sum() == 1


def every_shape(backend: Any, shapes: list[tuple[int, int]]) -> None:
    for (M, K), dtype, activation in itertools.product(shapes, (torch.float32, torch.float16), (None, "relu2")):
        x = sparse(M, K + 32, 0.5, dtype)[:, :K]  # rows that are not next to each other
        layout = "sm90" if M % 64 == 0 and K % 128 == 0 else "sm80"
        ours, exact = compress_24(x, layout, activation, backend=backend), reference.compress(x, activation)
        assert torch.equal(ours[0], exact[0])
        assert torch.equal(ours[1], reference.arrange(exact[1], layout))
        kept = (x.relu() if activation else x).double().view(M, -1, 4).abs().topk(2).values
        energy = reference.decompress(*exact).double().abs()
        if activation is None:
            assert torch.equal(energy.view(M, -1, 4).sum(-1), kept.sum(-1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_bit_for_bit(backend: Any) -> None:
    every_shape(backend, [(32, 32), (64, 128), (96, 160)])


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_on_every_shape(backend: Any) -> None:
    every_shape(backend, SHAPES)


@pytest.mark.parametrize("instructions", ["plain", "avx2", "avx512"])
def test_products_multiply_what_was_kept(instructions: str) -> None:
    for M, K, N in ((64, 128, 75), (1, 8, 1), (130, 264, 600), (3, 1024, 17)):
        x, dense = sparse(M, K), torch.randn(K, N)
        values, metadata = reference.compress(x, None)
        exact = pruned(x).double() @ dense.double()
        ours = cpu.matmul(values, metadata, dense, instructions)
        assert float((ours - exact).norm() / exact.norm()) < 1e-6


def test_the_cpu_does_not_multiply_what_is_zero() -> None:
    # A NaN in a row of the dense operand that nothing kept points at stays there.
    x, dense = sparse(8, 64, 0.5), torch.randn(64, 16)
    x[:, 5] = 0
    dense[5] = torch.nan
    values, metadata = reference.compress(x, None)
    assert not matmul_24(values, metadata, dense, "dense", backend="cpu").isnan().any()
    assert matmul_24(values, metadata, dense, "dense", backend="reference").isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_skipping_rows_is_the_dense_product(backend: Any, dtype: torch.dtype) -> None:
    for B, width, D, zeros in ((1, 96, 70, 0.9), (3, 1500, 130, 0.95), (2, 64, 17, 0.1), (1, 40, 8, 1.0)):
        h, down = sparse(B, width, zeros, dtype), torch.randn(width, D).to(dtype)
        exact = h.double().relu().square() @ down.double()
        eager = h.relu().square() @ down
        ours = skip_rows(h, down, "relu2", backend=backend)
        bar = 2 * float((eager - exact).norm()) + 1e-6 * float(exact.norm())
        assert float((ours - exact).norm()) <= bar


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=BACKENDS[2].marks)])  # pyright: ignore
def test_rows_of_zero_activations_are_not_read(backend: Any) -> None:
    h, down = sparse(1, 96, 0.8), torch.randn(96, 24)
    down[h[0] <= 0] = torch.nan
    assert skip_rows(h, down, "relu2", backend=backend).isfinite().all()


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_the_cpu_gives_the_same_bits_for_any_number_of_threads(weight: torch.dtype) -> None:
    h, down = sparse(1, 512, 0.9).to(weight), torch.randn(512, 1000).to(weight)
    values, metadata = reference.compress(sparse(200, 512), None)
    before, outs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append((skip_rows(h, down, backend="cpu"), matmul_24(values, metadata, down.float(), "dense")))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for out in outs for a, b in zip(out, outs[0], strict=True))


def test_opcheck() -> None:
    x = sparse(64, 128)
    values, metadata = reference.compress(x, None)
    for layout in ("dense", "sm80", "sm90"):
        torch.library.opcheck(torch.ops.scion.compress_24.default, (x, layout, "relu2", "cpu"))
    torch.library.opcheck(torch.ops.scion.matmul_24.default, (values, metadata, torch.randn(128, 24), "cpu"))
    torch.library.opcheck(torch.ops.scion.skip_rows.default, (x[:1], torch.randn(128, 24), "relu2", "cpu"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: compress_24(torch.randn(33, 32)), r"x \[33, 32\] must be multiples of 32 x 32 for layout 'sm80'"),
        (lambda: compress_24(torch.randn(64, 64), "sm90"), "multiples of 64 x 128"),
        (lambda: compress_24(torch.randn(32, 32), activation="gelu"), "no activation 'gelu'"),  # pyright: ignore
        (lambda: compress_24(torch.randn(32, 32), "sm70"), "no layout 'sm70'"),  # pyright: ignore
        (lambda: decompress_24(torch.randn(32, 16), torch.zeros(3, dtype=torch.int16)), "int16 of 64 numbers"),
        (lambda: skip_rows(torch.randn(1, 8), torch.randn(9, 4)), "must agree in F"),
        (lambda: skip_rows(torch.randn(1, 8).double(), torch.randn(8, 4).double(), backend="cpu"), "float64"),
    ],
)
def test_what_cannot_be_is_refused_in_words(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_compression_compiles_within_its_limits() -> None:
    # In a process of its own, without the interpreter.
    root = Path(__file__).parents[2]
    clean = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(root)}
    command = [sys.executable, str(root / "benchmarks/kernels_aot.py"), "--op", "sparse_relu2", "--arch", "90"]
    done = subprocess.run([*command, "--only", "relu2 32x128 4w"], capture_output=True, text=True, env=clean, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 builds, 0 outside their limits" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_on_a_gpu_compression_is_the_references(dtype: torch.dtype) -> None:
    x = sparse(256, 1024, 0.7, dtype).cuda()
    for layout, activation in itertools.product(("dense", "sm80", "sm90"), (None, "relu2")):
        ours = compress_24(x, layout, activation, backend="triton")
        exact = reference.compress(x, activation)
        assert torch.equal(ours[0], exact[0])
        assert torch.equal(ours[1], reference.arrange(exact[1], layout))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_the_sparse_tensor_cores_multiply_what_was_kept(dtype: torch.dtype) -> None:
    x, dense = sparse(512, 1024, 0.7, dtype).cuda(), torch.randn(1024, 256, dtype=dtype, device="cuda")
    values, metadata = compress_24(x, "dense", backend="triton")
    kept = decompress_24(values, metadata, "dense")
    exact = kept.double() @ dense.double()
    error = float((matmul_24(values, metadata, dense, "dense", backend="triton") - exact).norm())
    assert error <= 2 * float((kept @ dense - exact).norm()) + 1e-6 * float(exact.norm())


@pytest.mark.gpu
def test_on_a_gpu_skipping_rows_is_the_dense_product_250_times() -> None:
    h, down = sparse(1, 14336, 0.95, torch.bfloat16).cuda(), torch.randn(14336, 4096).bfloat16().cuda()
    exact = h.double().relu().square() @ down.double()
    first = skip_rows(h, down, "relu2")
    assert float((first - exact).norm() / exact.norm()) < 2 * torch.finfo(torch.bfloat16).eps
    assert all(torch.equal(skip_rows(h, down, "relu2"), first) for _ in range(250))
