"""Which tiles a GPU is given to choose from, shown without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from kernels.backend import interpreted
from kernels.simplicial_attention import triton as simplicial
from kernels.sparse_relu2.triton import compress_kernel
from kernels.tuning import tuned

ROOT = Path(__file__).resolve().parents[2]
LISTED = [triton.Config({"BR": 32, "BC": columns}) for columns in (64, 128, 256)]


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("G", [1, 16, 64])
def test_every_kernel_has_a_short_list_of_different_tiles(arch: int, G: int) -> None:
    for kernel in ("forward", "query_grad", "key_grad"):
        listed = simplicial.tiles(kernel, G, 128, "trilinear", arch)
        assert 2 <= len(listed) == len(set(listed)) <= 4
    # The buffers of the key gradient are made for one number of keys.
    assert {tile.keys for tile in listed} == {simplicial.key_tile(G, 128, "trilinear", arch).keys}


def test_what_does_not_fit_a_call_is_not_tried_and_something_always_is() -> None:
    code = (
        "from tests.kernels.test_tuning import LISTED, compress_kernel, tuned\n"
        "kernel = tuned(compress_kernel, LISTED, key=('K',), fits=lambda cut, call: cut['BC'] <= call['K'])\n"
        "for K in (300, 128, 8):\n"
        "    print([one.kwargs['BC'] for one in kernel.early_config_prune(kernel.configs, {'K': K})])"
    )
    clean = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True, cwd=ROOT)
    assert told.stdout.split("\n")[:3] == ["[64, 128, 256]", "[64, 128]", "[64]"]


def test_the_interpreter_takes_the_first() -> None:
    if not interpreted():
        pytest.skip("Triton compiles in this process")
    assert tuned(compress_kernel, LISTED, key=("K",)).configs == LISTED[:1]
