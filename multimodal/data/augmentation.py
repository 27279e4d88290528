"""Other views of a picture that show the same thing."""

from __future__ import annotations

import PIL.Image
from torchvision.transforms import v2

_VIEW = v2.Compose(
    [
        v2.RandomAffine(degrees=12, translate=(0.06, 0.06), scale=(0.8, 1.1), fill=255),
        v2.RandomHorizontalFlip(0.5),
        v2.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.4, hue=0.03),
        v2.RandomGrayscale(0.15),
        v2.RandomApply([v2.GaussianBlur(5, sigma=(0.5, 1.5))], p=0.2),
    ]
)


def augment(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A view of `picture`: turned, shifted, mirrored, recoloured a little; chance comes from torch's global generator."""
    return _VIEW(picture)


def keep_sides(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A view that keeps left and right, for captions that speak of them."""
    return _KEEPING(picture)


_KEEPING = v2.Compose([one for one in _VIEW.transforms if not isinstance(one, v2.RandomHorizontalFlip)])
