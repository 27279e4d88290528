"""Timings on a GPU, printed as fractions of the card's peak and memory. Written without one: never run so far."""

from __future__ import annotations

import math

import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("number", range(4))
def test_the_simplicial_kernels_beat_a_merge_of_flex_attentions(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.simplicial_attention_gpu import SHAPES, measure

    timing = measure(SHAPES[number])
    with capsys.disabled():
        print(f"\n{timing.line()}")
    assert timing.forward < timing.flex
    for name, fraction in timing.fractions().items():
        # More than the peak is a wrong count of FLOP or a wrong clock.
        assert math.isnan(fraction) or 0 < fraction < 1, name


def test_compression_products_and_decoding_of_squared_relu(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.sparse_relu2_gpu import report

    told = report()
    with capsys.disabled():
        print(f"\n{told}")
    assert all(word in told for word in ("of the bandwidth", "feed-forward and backward", "decode 0.95"))
