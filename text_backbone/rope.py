"""Rotary position embeddings, with Llama 3.1's long-context scaling."""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from text_backbone.config import LlamaConfig, RopeScaling

Rotation = tuple[Tensor, Tensor]
"""Cosines and signed sines, each [B, 1, T, K] (or [1, 1, T, K] where rows agree), as `turn` takes them."""


def frequencies(head_width: int, theta: float, scaling: RopeScaling | None) -> Float[Tensor, "half"]:
    """Angle per position of each pair, in radians: float32, on the CPU."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device="cpu") / head_width
    plain = 1.0 / theta**exponents
    if scaling is None:
        return plain
    wavelength = 2 * math.pi / plain
    # 0 where the wavelength is to be stretched by the whole factor, 1 where it stays.
    stays = (scaling.original_context / wavelength - scaling.low_frequency) / (
        scaling.high_frequency - scaling.low_frequency
    )
    stays = stays.clamp(0, 1)
    return (1 - stays) * plain / scaling.factor + stays * plain


@functools.lru_cache(maxsize=64)
def _frequencies_on(
    head_width: int, theta: float, scaling: RopeScaling | None, device: torch.device
) -> Float[Tensor, "half"]:
    # Kept outside of the module: a buffer would be rounded by `model.to(bfloat16)` and lost on the meta device.
    # inference_mode(False): a tensor born in inference mode could not be used under autograd later.
    with torch.inference_mode(False):
        return frequencies(head_width, theta, scaling).to(device)


def rotation(config: LlamaConfig, positions: Int[Tensor, "B T"], dtype: torch.dtype) -> Rotation:
    """Cosines and signed sines for these positions; angles are computed in float32 whatever the dtype."""
    turns = _frequencies_on(config.head_width, config.rope_theta, config.rope_scaling, positions.device)
    angles = positions[:, None, :, None].float() * turns
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat((cosine, cosine), dim=-1).to(dtype), torch.cat((-sine, sine), dim=-1).to(dtype)


def turn(x: Float[Tensor, "B H T K"], by: Rotation) -> Float[Tensor, "B H T K"]:
    """Queries or keys turned to their positions; pairs are (k, k + K/2), as in Hugging Face's files."""
    cosine, sine = by
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1), sine)
