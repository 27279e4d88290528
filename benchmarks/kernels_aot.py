"""Every shipped Triton configuration compiled for sm_80, sm_90 and sm_100 without a GPU, and held against limits.

    python benchmarks/kernels_aot.py [--op simplicial_attention] [--arch 90]

Registers, spills and shared memory come from the compiler, instruction counts of the hot loop (the innermost loop that
has tensor-core instructions, or the whole kernel without one) from the disassembly. All of it is static: nothing here
was timed. An op joins by a module `benchmarks/aot_<op>.py` with `builds(arch) -> Iterable[Build]`, named in OPS.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OPS = ("simplicial_attention", "sparse_relu2")
ARCHITECTURES = (80, 90, 100)

_SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
_MOST_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
_TENSOR = ("HMMA", "HGMMA", "UTCHMMA", "UTCOMMA", "UTCQMMA")
# Of global memory. Blackwell's own bookkeeping of barriers and tensor memory uses ATOMS, within a block.
_ATOMIC = ("ATOM", "ATOMG", "RED", "REDG")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a build must keep; None where nothing was promised. No build may use atomics or spill in its hot loop."""

    registers: int = 255
    spills: int | None = None
    """Local loads and stores in the whole kernel."""
    loop_instructions: int | None = None
    """Instructions a warp in one turn of the hot loop."""
    blocks: int | None = None
    """Blocks that fit a multiprocessor."""
    mma_ratio: float | None = None
    """Tensor-core FLOP in the hot loop over those of the algorithm."""
    per_element: float | None = None
    """Instructions a warp's lane spends on an element (kernels without a loop)."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """One kernel with one set of compile-time arguments."""

    name: str
    kernel: Any
    signature: Mapping[str, str]
    """Argument name -> Triton type; the compile-time ones are in `constants`."""
    constants: Mapping[str, Any]
    warps: int
    stages: int
    limits: Limits
    aligned: tuple[str, ...] = ()
    """Arguments that are multiples of 16 (bytes of pointers, numbers)."""
    loop_flop: float | None = None
    """Tensor-core FLOP that the algorithm needs in one turn of the hot loop, for the whole block."""
    loop_mma: int | None = None
    """The same in Blackwell's tensor-core instructions, which do not tell their shape: only their number is known."""
    useful: float = 1.0
    """The part of `loop_flop` that no mask throws away."""
    elements: int | None = None
    """Elements a block works on, for kernels without a loop."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the compiler made of a build."""

    registers: int
    spills: int
    loop_spills: int
    shared: int
    blocks: int
    mma: int
    mma_flop: float
    loop_instructions: int
    instructions: int
    atomics: int
    failures: list[str] = field(default_factory=list)


def compile_build(build: Build, arch: int) -> tuple[int, bytes]:
    """Shared memory in bytes, and the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    signature = {name: "constexpr" if name in build.constants else build.signature[name] for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned if name in names}
    source = ASTSource(build.kernel, signature, dict(build.constants), aligned)
    options = {"num_warps": build.warps, "num_stages": build.stages}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return made.metadata.shared, made.asm["cubin"]


def examine(build: Build, arch: int) -> Report:
    """Compile, disassemble, count, and compare with the limits."""
    shared, code = compile_build(build, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage, listing = _cuobjdump("-res-usage", file.name), _cuobjdump("-sass", file.name)
    found = re.search(r"REG:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump told no registers for {build.name}:\n{usage}")
    registers = int(found[1])
    code_lines = instructions(listing)
    loops = hot_loops(code_lines)
    loop, whole = loops[0], Counter(_stem(text) for _, text in code_lines)
    inside = Counter(_stem(text) for _, text in loop)
    # Registers are handed to a warp 256 at a time.
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * build.warps)
    report = Report(
        registers=registers,
        spills=whole["LDL"] + whole["STL"],
        loop_spills=sum(_stem(text) in ("LDL", "STL") for body in loops for _, text in body),
        shared=shared,
        blocks=min(by_registers, _SHARED[arch] // (shared + 1024), 2048 // (32 * build.warps), 32),
        mma=sum(inside[name] for name in _TENSOR),
        mma_flop=sum(flop(text, build.warps) for _, text in loop),
        loop_instructions=len(loop),
        instructions=len(code_lines),
        atomics=sum(whole[name] for name in _ATOMIC),
    )
    report.failures.extend(_failures(build, report, arch))
    return report


def instructions(listing: str) -> list[tuple[int, str]]:
    """Address and text of each instruction of a listing."""
    return [
        (int(found[1], 16), found[2])
        for found in re.finditer(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?)\s*;", listing, re.M)
        if not found[2].startswith("NOP")
    ]


def hot_loops(code: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
    """The innermost loops with tensor-core instructions, the shortest first; the whole code where there is none.

    The others are the first with a mask, for the tiles at the edge of a window.
    """
    loops = []
    for address, text in code:
        found = re.search(r"\bBRA(?:\.\w+)*\s+(?:!?U?P\w+,\s*)?(?:`\(.*\)|0x([0-9a-f]+))", text)
        if found and found[1] and int(found[1], 16) < address and _tensor(code, low := int(found[1], 16), address):
            loops.append((low, address))
    inner = [
        (low, high)
        for low, high in loops
        if not any((a, b) != (low, high) and low <= a and b <= high for a, b in loops)
    ]
    bodies = [[(at, text) for at, text in code if low <= at <= high] for low, high in inner]
    return sorted(bodies, key=len) or [code]


def flop(text: str, warps: int) -> float:
    """Floating-point operations of one tensor-core instruction, for all warps of the block that issue it."""
    if found := re.search(r"\bHGMMA\.(\d+)x(\d+)x(\d+)", text):
        m, n, k = map(int, found.groups())
        return 2.0 * m * n * k * warps / 4  # one a group of four warps
    if found := re.search(r"\bHMMA\.(\d{4,5})", text):
        m, n, k = {"16816": (16, 8, 16), "1688": (16, 8, 8)}[found[1]]
        return 2.0 * m * n * k * warps
    return 0.0  # Blackwell's UTCHMMA keeps its shape in a descriptor


def _failures(build: Build, report: Report, arch: int) -> Iterable[str]:
    limits = build.limits
    if report.atomics:
        yield f"{report.atomics} atomics"
    if report.loop_spills:
        yield f"{report.loop_spills} local accesses in the hot loop"
    if report.registers > limits.registers:
        yield f"{report.registers} registers > {limits.registers}"
    if report.shared > _MOST_SHARED[arch]:
        yield f"{report.shared} bytes of shared memory do not fit"
    if limits.spills is not None and report.spills > limits.spills:
        yield f"{report.spills} local accesses > {limits.spills}"
    if limits.loop_instructions is not None and report.loop_instructions > limits.loop_instructions:
        yield f"{report.loop_instructions} instructions a turn > {limits.loop_instructions}"
    if limits.blocks is not None and report.blocks < limits.blocks:
        yield f"{report.blocks} blocks a multiprocessor < {limits.blocks}"
    if limits.mma_ratio is not None and (ratio := mma_ratio(build, report)) is not None and ratio > limits.mma_ratio:
        yield f"tensor FLOP {ratio:.2f}x the algorithm's"
    if limits.per_element is not None and build.elements:
        each = report.instructions * build.warps * 32 / build.elements
        if each > limits.per_element:
            yield f"{each:.1f} instructions an element > {limits.per_element}"


def mma_ratio(build: Build, report: Report) -> float | None:
    """Tensor-core work of the hot loop over the algorithm's; by instructions where they do not tell their FLOP."""
    if report.mma_flop and build.loop_flop:
        return report.mma_flop / build.loop_flop
    if report.mma and build.loop_mma:
        return report.mma / build.loop_mma
    return None


def _tensor(code: list[tuple[int, str]], low: int, high: int) -> int:
    return sum(low <= at <= high and _stem(text) in _TENSOR for at, text in code)


def _stem(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0]


def _cuobjdump(what: str, path: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, what, path], capture_output=True, text=True, check=True).stdout


def row(build: Build, report: Report, arch: int) -> str:
    """One line of the table."""
    times = mma_ratio(build, report)
    ratio = "-" if times is None else f"{times:.2f}"
    each = f"{report.instructions * build.warps * 32 / build.elements:.1f}" if build.elements else "-"
    verdict = "; ".join(report.failures) or "ok"
    return (
        f"{build.name:<46} sm_{arch:<4}{build.warps:>3}{report.registers:>5}{report.spills:>7}{report.loop_spills:>6}"
        f"{report.shared / 1024:>8.1f}{report.blocks:>5}{report.mma:>5}{report.loop_instructions:>7}{ratio:>7}"
        f"{build.useful:>8.2f}{each:>7}  {verdict}"
    )


HEADER = (
    f"{'kernel':<46} {'arch':<7}{'w':>3}{'reg':>5}{'spills':>7}{'loop':>6}{'smem K':>8}{'CTA':>5}{'MMA':>5}"
    f"{'instr':>7}{'FLOP x':>7}{'useful':>8}{'/elem':>7}  verdict"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--op", action="append", choices=OPS, help="only this op; may be repeated")
    parser.add_argument("--arch", action="append", type=int, choices=ARCHITECTURES, help="only this architecture")
    parser.add_argument("--only", default="", help="only builds whose name has this in it")
    told = parser.parse_args()
    from kernels.backend import interpreted

    if interpreted():
        sys.exit("TRITON_INTERPRET is set: the interpreter does not compile; unset it")
    failed = total = 0
    print(HEADER)
    for op in told.op or OPS:
        module = importlib.import_module(f"benchmarks.aot_{op}")
        for arch in told.arch or ARCHITECTURES:
            for build in module.builds(arch):
                if told.only in build.name:
                    report = examine(build, arch)
                    print(row(build, report, arch), flush=True)
                    failed += bool(report.failures)
                    total += 1
    print(f"{total} builds, {failed} outside their limits; static figures, nothing was timed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
