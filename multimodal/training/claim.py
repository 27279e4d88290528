"""A run takes its folder before anything heavy is loaded; another run's folder is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from multimodal.settings import differences, read, to_json
from multimodal.training.publication import write_text

ConfigT = TypeVar("ConfigT")


def claim(accelerator: Accelerator, config: Any, out: Path, *, begun: Callable[[Any], Any], resume: bool) -> None:
    """Writes `config` (which has a field `resume`) into the run's folder; SystemExit with the reason where it may not.

    `begun(config)` is what must stay the same between a run's beginning and its resumption.
    """
    problem = ""
    if accelerator.is_main_process:
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not resume and any((out / name).exists() for name in ("state", "training.json")):
                problem = f"{out} holds a run already; go on with --resume, choose another --out, or remove it"
            elif (out / "state").exists():
                problem = other_course(config, out / "config.json", begun)
            if not problem:
                write_text(out / "config.json", to_json(replace(config, resume=False)))
        except OSError as error:
            problem = f"{out} cannot be written: {error}; choose another --out"
    problems = [problem]
    broadcast_object_list(problems)
    if problems[0]:
        raise SystemExit(problems[0])


def other_course(config: ConfigT, file: Path, begun: Callable[[ConfigT], Any]) -> str:
    """What of `config` is not as the run in `file` began; empty where it may go on with it."""
    then, now = begun(read(type(config), file)), begun(config)
    for path, before, after in differences(then, now):
        return f"{file.parent} was begun with {path} {before}, not {after}; resume with that, or choose another --out"
    return ""
