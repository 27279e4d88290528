"""`python -m multimodal demo`: the kit, the training, the evaluation and the report, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from multimodal.data.kit import CannotFetchError, prepare_kit

_RECIPES = Path(__file__).resolve().parents[1] / "recipes"
_RUN = Path("runs/image_adapter")


def main(words: Sequence[str]) -> int:
    """Runs the demo in the current folder; what an earlier call finished is not done again."""
    if words:
        print(f"demo takes no words, got {' '.join(words)}; train with recipes/image_adapter.py", file=sys.stderr)
        return 2
    if not _RECIPES.is_dir():
        print(
            "the demo runs the recipes of a checkout; clone the repository and call `make demo` there", file=sys.stderr
        )
        return 2
    try:
        kit = prepare_kit()
    except (CannotFetchError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, why in kit.missing.items():
        print(f"going on without {name}: {why}")
    if (_RUN / "training.json").exists():
        print(f"{_RUN} is trained already; remove it to train anew")
    else:
        launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no", str(_RECIPES / "image_adapter.py"), "demo"]
        if not _run([*launch, *(["--resume"] if (_RUN / "state").exists() else [])]):
            return 1
    return 0 if _run([str(_RECIPES / "eval_captioning.py"), "--run", str(_RUN)]) else 1


def _run(words: Sequence[str]) -> bool:
    """Runs Python with these words as a user would, shown first; whether it went well."""
    print(f"\n$ python {' '.join(words)}", flush=True)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run([sys.executable, *words], check=False, env=environment).returncode == 0
