"""Packages to model folders: SmolLM2 from GGUF to Hugging Face's layout, EfficientNet-lite0 to timm's.

A folder has its name only when it is whole; `kit.json` in it tells the pin it was made of and the weights' sha256.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from multimodal.data.files import write_atomically
from multimodal.data.kit.packages import Package

_DONE = "kit.json"


def make_text_model(package: Package, folder: Path, out: Path) -> Path:
    """SmolLM2-135M-Instruct in bfloat16 with its tokenizer (about half a minute); ValueError for a package without it.

    The weights are what 4-bit (Q4_1) ones stand for: close to the published checkpoint, not equal to it.
    """
    return make_model(package, out, lambda partial: _text_model(_only(folder, "*.gguf"), partial))


def make_encoder(package: Package, folder: Path, out: Path) -> Path:
    """EfficientNet-lite0 as `timm/<out>` reads it; ValueError for weights that are not its."""
    return make_model(package, out, lambda partial: _encoder(_only(folder, "*.pth"), partial))


def is_made(package: Package, out: Path) -> bool:
    """Whether the folder is there, whole, and made of this pin."""
    try:
        return json.loads((out / _DONE).read_bytes()).get("sha256") == package.sha256
    except (OSError, ValueError):
        return False


def make_model(package: Package, out: Path, make: Callable[[Path], None]) -> Path:
    """A model's folder, written by `make` into a folder beside it and renamed when it is whole."""
    if is_made(package, out):
        return out
    partial = out.with_name(f"{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    make(partial)
    from safetensors.torch import load_file

    from multimodal.fingerprint import fingerprint

    done = {
        "package": package.name,
        "version": package.version,
        "sha256": package.sha256,
        "licence": package.licence,
        "weights": fingerprint(load_file(partial / "model.safetensors")),
    }
    (partial / "model.safetensors").chmod(0o644)
    write_atomically(partial / _DONE, json.dumps(done, indent=2).encode())
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


def _text_model(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    # Its bars and its advice about packed weights are not for the one who waits here.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    # It calls itself quantized, which it no longer is, and would refuse to be saved.
    for owner, name in ((model, "hf_quantizer"), (model, "is_quantized"), (model.config, "quantization_config")):
        if name in vars(owner):
            delattr(owner, name)
    model.save_pretrained(str(out))
    AutoTokenizer.from_pretrained(**where).save_pretrained(str(out))


def _encoder(weights: Path, out: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    name = "tf_efficientnet_lite0"
    theirs = torch.load(weights, map_location="cpu", weights_only=True)
    model = timm.create_model(name, pretrained=False)
    # The same network under other names: its tensors come in the same order, which every shape confirms.
    ours = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = [value for key, value in theirs.items() if not key.endswith("num_batches_tracked")]
    shapes = [tuple(value.shape) for value in given], [tuple(value.shape) for value in ours.values()]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{weights.name} has {len(given)} tensors that are not {name}'s {len(ours)}; delete {weights.parent} and "
            "fetch it again"
        )
    model.load_state_dict(dict(zip(ours, given, strict=True)), strict=False)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, out / "model.safetensors")
    config = {
        "architecture": name,
        "num_classes": 1000,
        "num_features": model.num_features,
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": 1000,
            "pool_size": [7, 7],
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} {pattern} files, expected one; delete it and fetch it again")
    return found[0]
