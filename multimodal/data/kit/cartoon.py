"""A picture drawn anew in a plain style: few colours, black outlines. Another style of the same thing, at no cost.

A vision model trained on photographs takes a drawing's style for what it shows: names learned from one drawing are not
recognised in another. A second, cruder style of every picture says which of its features are style.
"""

from __future__ import annotations

from random import Random

import numpy as np
import PIL.Image
from PIL import ImageChops, ImageFilter

_COLOURS = (3, 8)
_OUTLINES = (3, 5)
"""Widths in pixels (odd), on a square of 256."""


def cartoon(picture: PIL.Image.Image, random: Random) -> PIL.Image.Image:
    """`picture` (RGBA) in 3 to 8 flat colours with outlines of 3 or 5 pixels around them and around the whole.

    Not mirrored: captions speak of left and right.
    """
    alpha = picture.getchannel("A").point(lambda level: 255 if level > 127 else 0)
    white = PIL.Image.new("RGBA", picture.size, (255, 255, 255, 255))
    white.alpha_composite(picture)
    flat = white.convert("RGB").filter(ImageFilter.MedianFilter(5))
    quantized = flat.quantize(random.randint(*_COLOURS), method=PIL.Image.Quantize.MEDIANCUT)
    labels = np.where(np.asarray(alpha) > 0, np.asarray(quantized).astype(np.int16) + 1, 0)
    edges = np.zeros(labels.shape, dtype=bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    lines = PIL.Image.fromarray(edges.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(random.choice(_OUTLINES)))
    drawn = quantized.convert("RGB")
    drawn.paste((0, 0, 0), mask=lines)
    drawn = drawn.convert("RGBA")
    drawn.putalpha(ImageChops.lighter(alpha, lines))
    return drawn
