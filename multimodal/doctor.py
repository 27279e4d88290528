"""`python -m multimodal doctor`: what this machine has, what is missing, and the command that mends it.

Nothing heavy is imported, so that it answers at once, also where the installation is broken.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = "scion-multimodal"
_PYTHON = (3, 11)
_FREE = 4
"""GiB that the kit, its features and a run take."""
_MEMORY = 6
_EXTRAS = ("demo",)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    about: str
    found: str
    ok: bool = True
    needed: bool = True
    """Whether the demo cannot do without it."""
    mend: str = ""


def main() -> int:
    """Prints the findings; 0 when the demo can run, 1 when something that it needs is missing."""
    findings = examine()
    for line in lines(findings):
        print(line)
    return int(any(one.needed and not one.ok for one in findings))


def examine(folder: Path = Path("downloads")) -> list[Finding]:
    """All findings, for a kit in `folder`."""
    found = [python_version(sys.version_info[:2]), *requirements(_requires())]
    found += [cores(), memory(), disk(folder), gpu(), *debian(), *kit(folder)]
    return found


def lines(findings: Iterable[Finding]) -> list[str]:
    """A line a finding, and one more where something can be mended."""
    out = []
    for one in findings:
        mark = "ok     " if one.ok else ("MISSING" if one.needed else "poorer ")
        out.append(f"{mark}  {one.about:34} {one.found}")
        if not one.ok and one.mend:
            out.append(f"{'':9}{'':34} -> {one.mend}")
    return out


def python_version(version: Sequence[int]) -> Finding:
    words = ".".join(str(part) for part in version)
    return Finding(
        about="Python",
        found=words,
        ok=tuple(version) >= _PYTHON,
        mend="install Python 3.11 or newer, then `make setup PYTHON=python3.11`",
    )


def requirements(wanted: Iterable[str], version_of: Callable[[str], str | None] | None = None) -> list[Finding]:
    """Packages that are missing or too old, each with its finding, or one finding that all are there.

    `wanted` are lines like "torch>=2.10,<3" or 'gguf>=0.17; extra == "demo"'; only lower bounds and pins are looked at.
    """
    version_of = version_of or _version
    bad, count = [], 0
    for line in wanted:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", marker)
        if extra and extra[1] not in _EXTRAS:
            continue
        count += 1
        found = re.match(r"\s*([\w.-]+)(?:\[[^\]]*\])?", requirement)
        assert found is not None, line
        version, floor = version_of(found[1]), re.search(r"[>=]=\s*([\d.]+)", requirement)
        if version is None or (floor and _numbers(version) < _numbers(floor[1])):
            wish = requirement.strip()
            bad.append(Finding(about=wish, found=version or "not installed", ok=False, mend=f'pip install "{wish}"'))
    if not count:
        mend = "make setup"
        return [Finding(about="this package", found=f"{DISTRIBUTION} is not installed", ok=False, mend=mend)]
    return bad or [Finding(about="Python packages", found=f"all {count} are there")]


def cores() -> Finding:
    """How many, and whether they multiply bfloat16 themselves: a frozen text model runs nearly twice as fast then."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    fast = bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding(about="cores", found=f"{number}, {'with' if fast else 'without'} bfloat16 arithmetic")


def memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return Finding(about="memory", found="unknown")
    mend = f"the demo wants {_MEMORY} GiB; with less, lower --data.batch and --stream"
    return Finding(about="memory", found=f"{total:.0f} GiB", ok=total >= _MEMORY, needed=False, mend=mend)


def disk(folder: Path) -> Finding:
    at = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(at).free / 2**30
    mend = f"free {_FREE} GiB, or put {folder}/ and runs/ on another disk with symbolic links"
    return Finding(about="free disk", found=f"{free:.0f} GiB", ok=free >= _FREE, mend=mend)


def gpu() -> Finding:
    there = shutil.which("nvidia-smi") is not None
    return Finding(about="NVIDIA driver", found="there" if there else "none; everything runs on the CPU")


def debian() -> list[Finding]:
    """The tools that bring the Debian part of the kit."""
    mend = "on Debian and its kin they are there; elsewhere the kit is built from pip's packages alone"
    tools = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    found = f"no {' and no '.join(tools)}" if tools else "apt-get and dpkg-deb"
    return [Finding(about="Debian packages", found=found, ok=not tools, needed=False, mend=mend)]


def kit(folder: Path) -> list[Finding]:
    """What of the kit is there; what is not, the demo fetches."""
    # The kit's own packages (numpy, Pillow) may be what is missing here.
    try:
        from multimodal.data.kit import absent
    except ImportError as error:
        return [Finding(about="kit", found=f"cannot be looked at ({error})", ok=False, mend="make setup")]
    lost = absent(folder)
    if not lost:
        return [Finding(about="kit", found=f"all packages are in {folder}/")]
    names, size = ", ".join(package.name for package in lost), sum(package.megabytes for package in lost)
    mend = "python -m multimodal.data.kit"
    return [Finding(about="kit", found=f"still to fetch ({size} MB): {names}", ok=False, needed=False, mend=mend)]


def _requires() -> list[str]:
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """ "2.14.1+cpu" -> (2, 14, 1)"""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
