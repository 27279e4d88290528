"""The builds of 2-simplicial attention that `kernels_aot.py` compiles: bfloat16, every configuration that is tuned."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.kernels_aot import Build, Limits
from kernels.simplicial_attention import triton as ours

_HALVES = ("Q", "KS", "VS", "KL", "VL", "OUT", "GRAD", "DQ", "DKS", "DVS", "PAIR_K", "PAIR_V")
_WIDES = ("LSE", "DELTA", "GRAD_LSE", "DKL", "DVL", "PART_K", "PART_V")
_TYPES = dict.fromkeys(_HALVES, "*bf16") | dict.fromkeys(_WIDES, "*fp32") | {"scale": "fp32"}
_INTEGERS = ("T", "window_s", "window_l", "H", "N", "width", "rows", "tiles")
SIGNATURE = _TYPES | dict.fromkeys(_INTEGERS, "i32")

SHAPES = ((64, 64), (64, 128), (64, 96), (16, 64), (16, 128), (4, 128), (1, 64), (1, 128))
"""Heads a key head, head width."""

WINDOWS = (32, 512)


def builds(arch: int) -> Iterable[Build]:
    """Every kernel at every shape, both forms at the first."""
    for G, D in SHAPES:
        yield from _attention(arch, G, D, False)
    yield from _attention(arch, 64, 96, True)
    for D in (64, 128):
        yield _plain("delta", ours.delta_kernel, {"D": D, "BR": 32}, 4)
        yield _plain("small_grad", ours.small_grad_kernel, {"D": D, "BN": ours.key_tile(D, "trilinear")}, 1)


def _attention(arch: int, G: int, D: int, determinant: bool) -> Iterable[Build]:
    width, form = ours.padded(D), "determinant" if determinant else "trilinear"
    for kernel, dots in ((ours.forward_kernel, 2), (ours.query_grad_kernel, 3), (ours.key_grad_kernel, 4)):
        name = kernel.__name__.removesuffix("_kernel")
        for config in ours.configurations(name, G, width, form):
            tile, queries = config.kwargs["BN"], config.kwargs["BP"]
            constants = {
                "G": G,
                "D": width,
                "BG": ours.group(G),
                "DETERMINANT": determinant,
                "PRECISION": "tf32",
                **config.kwargs,
            }
            rows = queries * ours.group(G)
            yield Build(
                name=f"{name} G{G} D{D} {queries}x{tile}{' det' if determinant else ''}",
                kernel=kernel,
                signature=SIGNATURE,
                constants=constants,
                warps=config.num_warps,
                stages=config.num_stages,
                aligned=(*_HALVES, *_WIDES),
                loop_flop=2.0 * dots * rows * tile * width,
                useful=_useful(name, G, D, width, queries, tile),
                limits=_limits(name, arch, G, D, determinant, tile),
            )


def _limits(name: str, arch: int, G: int, D: int, determinant: bool, tile: int) -> Limits:
    """The project's promises: for 64 heads a key head and the plain form."""
    if determinant or G != 64 or D not in (64, 128):
        return Limits()
    if name == "forward":
        first = D == 128 and arch == 90
        steps = tile // 64
        return Limits(
            mma_ratio=1.02,
            spills=0,
            loop_instructions=449 * steps if first else None,
            blocks=2 if D == 128 else None,
        )
    return Limits(mma_ratio=1.02, spills=0 if D == 64 else None)


def _useful(name: str, G: int, D: int, width: int, queries: int, tile: int) -> float:
    """The part of the tiles' products that no mask throws away, away from the text's beginning."""
    small, large = WINDOWS
    heads = G / (ours.group(G) * -(-G // ours.group(G))) * D / width
    if name == "key_grad":
        # Queries i of a pair (j, tile): of those j allows, the ones that see a given row.
        steps = -(-small // queries) * queries
        return heads * small / steps * large / (large + tile - 1)
    span = large + queries - 1
    return heads * small / (small + queries - 1) * large / (tile * -(-span // tile))


def _plain(name: str, kernel: object, constants: dict[str, int], warps: int) -> Build:
    return Build(
        name=f"{name} D{constants['D']}",
        kernel=kernel,
        signature=SIGNATURE,
        constants=constants,
        warps=warps,
        stages=2,
        aligned=(*_HALVES, *_WIDES),
        limits=Limits(spills=0),
    )
