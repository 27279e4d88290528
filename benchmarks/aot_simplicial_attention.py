"""The builds of 2-simplicial attention that `kernels_aot.py` compiles: bfloat16, every configuration that is tuned."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.kernels_aot import Build, Limits
from kernels.simplicial_attention import triton as ours
from kernels.simplicial_attention import triton_backward, triton_forward

_HALVES = ("Q", "KS", "VS", "KL", "VL", "OUT", "GRAD", "DQ", "DKS", "DVS", "PAIR_K", "PAIR_V")
_WIDES = ("LSE", "DELTA", "GRAD_LSE", "DKL", "DVL", "PART_K", "PART_V")
_TYPES = dict.fromkeys(_HALVES, "*bf16") | dict.fromkeys(_WIDES, "*fp32") | {"scale": "fp32"}
_INTEGERS = ("T", "window_s", "window_l", "H", "N", "width", "rows", "tiles")
SIGNATURE = _TYPES | dict.fromkeys(_INTEGERS, "i32")

SHAPES = ((64, 64), (64, 128), (64, 96), (16, 64), (16, 128), (4, 128), (1, 64), (1, 128))
"""Heads a key head, head width."""

WINDOWS = (32, 512)


def builds(arch: int) -> Iterable[Build]:
    """Every kernel at every shape in the plain form, and the determinant where heads are chunks of three."""
    for G, D in SHAPES:
        yield from _attention(arch, G, D, "trilinear")
    for G, D in ((64, 48), (64, 96)):
        yield from _attention(arch, G, D, "determinant")
    for D in (64, 128):
        keys = ours.key_tile(64, D, "trilinear", arch).keys
        yield _plain("delta", triton_backward.delta_kernel, {"D": D, "BR": 32}, 4)
        yield _plain("small_grad", triton_backward.small_grad_kernel, {"D": D, "BN": keys}, 1)


def _attention(arch: int, G: int, D: int, form: str) -> Iterable[Build]:
    width = ours.padded(D, form)
    third = ours.third(D) if form == "determinant" else 0
    for name, kernel, dots in (
        ("forward", triton_forward.forward_kernel, "SV"),
        ("query_grad", triton_backward.query_grad_kernel, "SSV"),
        ("key_grad", triton_backward.key_grad_kernel, "SSVV"),
    ):
        for tile in ours.tiles(name, G, width, form, arch):
            cut = ours.cut(tile, G)
            ahead = "" if tile.stages == 2 else f" {tile.stages} stages"
            yield Build(
                name=f"{name} G{G} D{D} {cut['BP']}x{cut['BG']}x{tile.keys}{ahead}{' det' * (form == 'determinant')}",
                kernel=kernel,
                signature=SIGNATURE,
                constants={"G": G, "D": width, "THIRD": third, "PRECISION": "tf32", **cut},
                warps=tile.warps,
                stages=tile.stages,
                aligned=(*_HALVES, *_WIDES),
                loop_flop=2.0 * len(dots) * tile.rows * tile.keys * width,
                loop_mma=_steps(name, dots, tile, width),
                useful=_useful(name, G, D, width, cut),
                limits=_limits(name, arch, G, D, form, tile.keys),
            )


def _steps(name: str, dots: str, tile: ours.Tile, width: int) -> int:
    """Blackwell's instructions a turn: up to 128 rows, all columns and 16 of the contracted axis each.

    S contracts the head width, V the other axis of the scores; the key gradient's scores lie transposed.
    """
    m, other = (tile.keys, tile.rows) if name == "key_grad" else (tile.rows, tile.keys)
    return sum(-(-m // 128) * (width if dot == "S" else other) // 16 for dot in dots)


def _limits(name: str, arch: int, G: int, D: int, form: str, keys: int) -> Limits:
    """The project's promises: for 64 heads a key head and the plain form.

    The 449 instructions are for tensor-core instructions that take whole tiles (sm_90, sm_100); on sm_80 the 128
    products and 64 loads of a step's fragments alone, at one instruction each, leave no room for it.
    """
    if form != "trilinear" or G != 64 or D not in (64, 128):
        return Limits()
    if name == "forward":
        wide = D == 128
        turns = max(1, keys // 64)
        return Limits(
            mma_ratio=1.02,
            spills=0,
            loop_instructions=449 * turns if wide and arch >= 90 else None,
            blocks=2 if wide else None,
        )
    return Limits(mma_ratio=1.02, spills=0 if D == 64 else None)


def _useful(name: str, G: int, D: int, width: int, cut: dict[str, int]) -> float:
    """The part of the tiles' products that no mask throws away, away from the text's beginning."""
    small, large = WINDOWS
    queries, tile = cut["BP"], cut["BN"]
    heads = G / (cut["BG"] * -(-G // cut["BG"])) * D / width
    if name == "key_grad":
        # Queries i of a pair (j, tile): of those that j allows, the ones that see a given row.
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
