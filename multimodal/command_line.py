"""`recipe.py [PRESET] [--config a-run/config.json] [--field.name VALUE]`: the command line that every recipe has."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from multimodal.settings import did_you_mean, read

C = TypeVar("C")


def parse(presets: Mapping[str, C], *, about: str, args: Sequence[str] | None = None) -> C:
    """The config that the command line asks for: a preset (the first one when none is named) or a run's, then changes
    to it.

    Errors end the process with one line and status 2.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        base = _base(presets, words)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    named = "\n".join(f"  {name}" for name in presets)
    usage = f"{about}\n\nPresets (first word of the command line):\n{named}"
    usage += "\n\n--config FILE starts from a run's config.json instead."
    return tyro.cli(type(base), default=base, args=words, description=usage)


def _base(presets: Mapping[str, C], words: list[str]) -> C:
    """Takes the preset's name and --config off `words` and gives the config they name."""
    name = words.pop(0) if words and not words[0].startswith("-") else next(iter(presets))
    if name not in presets:
        raise ValueError(f"no preset {name!r}{did_you_mean(name, list(presets))} Presets: {', '.join(presets)}")
    base = presets[name]
    if "--config" in words:
        at = words.index("--config")
        if at + 1 == len(words):
            raise ValueError("--config wants a file: a run's config.json")
        base = read(type(base), Path(words[at + 1]))
        del words[at : at + 2]
    return base
