"""Other views of a picture that show the same thing."""

from __future__ import annotations

import PIL.Image
from torchvision.transforms import v2

# No mirroring: captions speak of left and right.
_VIEW = v2.Compose(
    [
        v2.RandomAffine(degrees=(-8, 8), translate=(0.05, 0.05), scale=(0.85, 1.1), fill=255),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.02),
        v2.RandomApply([v2.GaussianBlur(5, sigma=(0.5, 1.5))], p=0.2),
    ]
)


def augment(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A view of `picture`: turned, shifted, recoloured a little; chance comes from torch's global generator."""
    return _VIEW(picture)
