"""Pictures to encoder inputs: files of any common kind to RGB, RGB to normalised tiles."""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

Picture = str | Path | bytes | PIL.Image.Image | np.ndarray
Fit = Literal["tile", "squash"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded; Pillow knows many more, some of which start other programs."""

LARGEST = 2**26
"""Pixels of the largest picture that is decoded (8192 x 8192); a small file can hold far more."""

# What Pillow's decoders raise for broken files; MemoryError and programming errors are not among them.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, struct.error, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an encoder wants its pictures: the encoder's own numbers, and how a picture that is not square is fitted."""

    size: int
    """Side of a tile in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    tiles: int = 1
    """Most tiles that a picture is cut into."""
    fit: Fit = "squash"
    """"tile" keeps the aspect ratio, on a canvas of tiles; "squash" makes every picture one square tile."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.tiles < 1:
            raise ValueError(f"size ({self.size}) and tiles ({self.tiles}) must be at least 1")
        if self.fit == "squash" and self.tiles != 1:
            raise ValueError(f"fit 'squash' makes one tile of every picture, but tiles is {self.tiles}; use fit 'tile'")
        known = [mode.value for mode in InterpolationMode]
        if self.interpolation not in known:
            raise ValueError(f"no interpolation {self.interpolation!r}; there are {known}")


class Tiles(NamedTuple):
    """The real tiles of one picture, row by row, and how they lie."""

    pixels: Float[Tensor, "N 3 S S"]
    grid: tuple[int, int]
    """Rows and columns; rows * columns == N."""


def read_image(source: Picture) -> PIL.Image.Image:
    """The picture in RGB as a person sees it.

    EXIF rotation is applied, transparency laid on white, 16 bits are scaled to 8, of an animation the first frame is
    taken. Arrays are uint8 or uint16, [height, width] or [height, width, 1 | 3 | 4]. ValueError, with the reason, for
    what is no picture in one of `FORMATS`, is broken, or is too large; the size is checked before anything is decoded.
    """
    name = _name(source)
    image = _opened(source, name)
    width, height = image.size
    if width * height > LARGEST:
        raise ValueError(f"{name} is too large: {width} x {height} pixels, the limit is {LARGEST}")
    if width < 1 or height < 1:
        raise ValueError(f"{name} is empty: {width} x {height}")
    try:
        return _rgb(PIL.ImageOps.exif_transpose(image))
    except _BROKEN as error:
        raise ValueError(f"{name} cannot be decoded: {error}") from error


def to_tiles(image: PIL.Image.Image, preprocess: Preprocess) -> Tiles:
    """Resize, cut and normalise an RGB picture.

    "tile" follows the released Llama 3.2 Vision: the canvas of at most `tiles` tiles that fits best, the picture in its
    upper left corner without distortion, black below and to the right (spec: paper section 7.1, image resolution).
    """
    S = preprocess.size
    mode = InterpolationMode(preprocess.interpolation)
    if preprocess.fit == "squash":
        rows, columns, height, width = 1, 1, S, S
    else:
        rows, columns = tile_grid(image.height, image.width, tiles=preprocess.tiles, size=S)
        height, width = _fitted(image.height, image.width, canvas=(rows * S, columns * S), size=S)
    # Pillow's own resampling: the one that timm's and Hugging Face's processors were trained with.
    resized = transforms.resize(image, [height, width], interpolation=mode)  # pyright: ignore[reportArgumentType]
    canvas = transforms.pil_to_tensor(resized)
    canvas = transforms.pad(canvas, [0, 0, columns * S - width, rows * S - height])
    canvas = transforms.to_dtype(canvas, torch.float32, scale=True)
    canvas = transforms.normalize(canvas, list(preprocess.mean), list(preprocess.std))
    pixels = canvas.unflatten(1, (rows, S)).unflatten(3, (columns, S))  # 3 rows S columns S
    return Tiles(pixels.permute(1, 3, 0, 2, 4).flatten(0, 1).contiguous(), (rows, columns))


def tile_grid(height: int, width: int, *, tiles: int, size: int) -> tuple[int, int]:
    """Rows and columns of the canvas that a picture is laid on: the least enlargement, else the least reduction.

    Of canvases that scale alike the smallest is taken, of those the first in row order.
    """
    grids = [
        (rows, columns) for rows in range(1, tiles + 1) for columns in range(1, tiles + 1) if rows * columns <= tiles
    ]
    scales = {grid: min(grid[0] * size / height, grid[1] * size / width) for grid in grids}
    enlarging = [scale for scale in scales.values() if scale >= 1]
    best = min(enlarging) if enlarging else max(scales.values())
    return min((grid for grid in grids if scales[grid] == best), key=lambda grid: grid[0] * grid[1])


def _fitted(height: int, width: int, *, canvas: tuple[int, int], size: int) -> tuple[int, int]:
    """Size of the picture on its canvas: aspect kept, never enlarged beyond its own longer side or one tile."""
    most_high, most_wide = min(max(height, size), canvas[0]), min(max(width, size), canvas[1])
    if most_wide / width < most_high / height:
        return min(max(1, math.floor(height * (most_wide / width))), most_high), most_wide
    return most_high, min(max(1, math.floor(width * (most_high / height))), most_wide)


def _name(source: Picture) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return f"a picture of {len(source)} bytes" if isinstance(source, bytes) else f"a picture ({type(source).__name__})"


def _opened(source: Picture, name: str) -> PIL.Image.Image:
    """The picture with its size known and, where it comes from a file, nothing decoded yet."""
    if isinstance(source, PIL.Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}") from error
    if not data:
        raise ValueError(f"{name} is empty (0 bytes)")
    try:
        return PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{name} is no picture in {', '.join(FORMATS)}; it begins with {data[:16]!r}") from error
    except _BROKEN as error:
        raise ValueError(f"{name} cannot be decoded: {error}") from error


def _from_array(array: np.ndarray) -> PIL.Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    flat = array.ndim == 2
    if not (flat or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            "a picture's array is uint8 or uint16, [height, width] or [height, width, 1 | 3 | 4]; "
            f"this one is {array.dtype} {list(array.shape)}"
        )
    if 0 in array.shape:
        raise ValueError(f"a picture's array has at least one pixel; this one is {list(array.shape)}")
    return PIL.Image.fromarray(_eight_bits(array) if array.dtype == np.uint16 else np.ascontiguousarray(array))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """0..65535 to 0..255, rounded: Pillow's own conversion cuts everything above 255 to white."""
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"mode {image.mode} with values from {values.min()} to {values.max()}; 16 bits hold 0 to 65535"
            )
        image = PIL.Image.fromarray(_eight_bits(values))
    elif image.mode == "F":
        raise ValueError("mode F (floating point) says not what is white; convert it to 8 or 16 bits")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = PIL.Image.new("RGBA", above.size, (255, 255, 255, 255))
        image.alpha_composite(above)
    # A copy, so that what is handed out never shares pixels with what was handed in.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
