"""The builds of squared ReLU's kernels that `kernels_aot.py` compiles, in bfloat16."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from benchmarks.kernels_aot import Build, Limits
from kernels.sparse_relu2 import triton as ours
from kernels.sparse_relu2 import triton_decode

PER_ELEMENT = 16.0
"""Instructions an element of the one-way compression, below which memory and not issue bounds it."""

_POINTERS = {
    "*bf16": ("X", "H", "VALUES", "KEPT", "TURNED", "GRAD", "DOWN"),
    "*u8": ("META", "TURNED_META"),
    "*i32": ("COUNTS", "PLACES", "COUNT"),
    "*fp32": ("SUMS", "PARTS"),
}
SIGNATURE: dict[str, str] = {name: kind for kind, names in _POINTERS.items() for name in names}
SIGNATURE |= dict.fromkeys(("M", "K", "F", "D", "stride"), "i32")
ALIGNED = tuple(SIGNATURE)


def builds(arch: int) -> Iterable[Build]:
    """Compression in every layout, both ways at once, its gradient, and the two of decoding."""
    common = {"WIDE": False, "INTERPRET": False}
    for (layout, number), relu2, (rows, columns, warps) in itertools.product(
        ours._LAYOUTS.items(), (True, False), ours.BLOCKS
    ):
        yield Build(
            name=f"compress {layout} {'relu2' if relu2 else 'plain'} {rows}x{columns} {warps}w",
            kernel=ours.compress_kernel,
            signature=SIGNATURE | {"META": "*i16" if layout == "sm80" else "*u8"},
            constants=common | {"RELU2": relu2, "LAYOUT": number, "BR": rows, "BC": columns},
            warps=warps,
            stages=1,
            aligned=ALIGNED,
            elements=rows * columns,
            # The promise is the fused one's; signs cost the plain one more.
            limits=Limits(spills=0, per_element=PER_ELEMENT if relu2 else None),
        )
    both = common | {"BR": ours.SIDE, "BC": ours.SIDE}
    for (name, kernel, more), warps in itertools.product(
        (("both ways", ours.pack_kernel, {"MASKED": True}), ("gradient both ways", ours.gradient_kernel, {})),
        ours.SIDE_WARPS,
    ):
        yield Build(
            name=f"{name} {ours.SIDE}x{ours.SIDE} {warps}w",
            kernel=kernel,
            signature=SIGNATURE,
            constants=both | more,
            warps=warps,
            stages=1,
            aligned=ALIGNED,
            elements=ours.SIDE**2,
            limits=Limits(spills=0),
        )
    decode = SIGNATURE | {"VALUES": "*fp32"}
    for name, kernel, constants, warps in (
        ("skip_rows list", triton_decode.compact_kernel, {"RELU2": True, "BF": 1024}, 4),
        *(
            (
                f"skip_rows product {rows}x{columns}",
                triton_decode.gather_kernel,
                {"SPLIT": triton_decode.SPLITS, "BR": rows, "BD": columns},
                warps,
            )
            for rows, columns, warps in triton_decode.BLOCKS
        ),
    ):
        yield Build(
            name=name,
            kernel=kernel,
            signature=decode,
            constants=constants,
            warps=warps,
            stages=1,
            aligned=ALIGNED,
            limits=Limits(spills=0),
        )
