"""`speech_lives.py serve`: lives of recipes/speech_adapter.py, to be killed; see tests/lives.py."""

from __future__ import annotations

import torch

# Imported once for all lives.
import transformers.models.auto.tokenization_auto  # noqa: F401
from torch import nn

from multimodal.command_line import parse
from recipes.speech_adapter import PRESETS, main
from tests.lives import serve


def live(args: list[str]) -> None:
    """A life of the recipe, as its command line would start it."""
    main(parse(PRESETS, about="", args=args))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # The first step of an optimizer imports half of torch.
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], fused=True).step()
    serve(live)
