"""The tiny composition that the tests of this folder share; made once a session, never changed."""

from pathlib import Path

import pytest

from multimodal.model import MultimodalModel
from tests.multimodal import tiny


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def text_folder(_shared: Path) -> Path:
    """The tiny text model's folder, with its tokenizer."""
    return tiny.text_folder(_shared / "text")


@pytest.fixture
def model(_shared: Path) -> MultimodalModel:
    """A fresh composition with open gates; two tests never share one."""
    return tiny.composed(_shared / "eye")
