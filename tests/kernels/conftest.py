"""What an op's code takes from `torch.empty` is poisoned, so that a place that nobody wrote shows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

MAKERS = ("empty", "empty_like")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoning(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

        return made

    for name in MAKERS:
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))
