"""Shapes in annotations are enforced while tests run; `kernels` is left out because decorated Triton functions lose
their globals.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook(["text_backbone", "encoders", "adapters", "multimodal"], "beartype.beartype")

import pytest  # noqa: E402 (the hook comes before what it hooks)
import torch  # noqa: E402

if not torch.cuda.is_available():
    # Kernels are tested in Triton's interpreter, which must be asked for before anything imports triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no GPU on this machine")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
