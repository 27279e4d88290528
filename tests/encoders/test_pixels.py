import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from encoders.pixels import LARGEST, Preprocess, read_image, tile_grid, to_tiles

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _bytes(image: PIL.Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _picture(mode: str, *rows: list) -> PIL.Image.Image:
    image = PIL.Image.new(mode, (len(rows[0]), len(rows)))
    image.putdata([value for row in rows for value in row])
    return image


def _values(image: PIL.Image.Image) -> list[list[tuple[int, ...]]]:
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def _png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG by hand: for sizes and depths that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_gray_becomes_three_equal_channels():
    assert _values(read_image(_bytes(_picture("L", [0, 200])))) == [[(0, 0, 0), (200, 200, 200)]]


def test_transparency_is_laid_on_white():
    gray = _picture("LA", [(0, 0), (100, 255), (0, 51)])
    assert _values(read_image(_bytes(gray))) == [[(255, 255, 255), (100, 100, 100), (204, 204, 204)]]
    color = _picture("RGBA", [(255, 0, 0, 0), (255, 0, 0, 255), (255, 0, 0, 51)])
    assert _values(read_image(_bytes(color))) == [[(255, 255, 255), (255, 0, 0), (255, 204, 204)]]


def test_a_palette_is_looked_up_and_its_transparent_entry_is_white():
    palette = PIL.Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.putdata([0, 1, 2])
    assert _values(read_image(_bytes(palette))) == [[(10, 20, 30), (40, 50, 60), (70, 80, 90)]]
    transparent = _bytes(palette, transparency=1)
    assert _values(read_image(transparent)) == [[(10, 20, 30), (255, 255, 255), (70, 80, 90)]]
    both = PIL.Image.new("PA", (1, 1))
    both.putpalette([10, 20, 30])
    both.putdata([(0, 0)])
    assert _values(read_image(both)) == [[(255, 255, 255)]]


def test_a_transparent_colour_of_an_opaque_mode_is_white():
    marked = _bytes(_picture("RGB", [(1, 2, 3), (4, 5, 6)]), transparency=(1, 2, 3))
    assert _values(read_image(marked)) == [[(255, 255, 255), (4, 5, 6)]]


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    expected = [[(0, 0, 0), (1, 1, 1), (128, 128, 128), (255, 255, 255)]]
    assert _values(read_image(_bytes(PIL.Image.fromarray(values)))) == expected
    assert _values(read_image(_bytes(PIL.Image.fromarray(values), "TIFF"))) == expected
    assert _values(read_image(values)) == expected
    wide = PIL.Image.fromarray(values.astype(np.int32))
    assert wide.mode == "I"
    assert _values(read_image(wide)) == expected


def test_sixteen_bits_of_colour_are_scaled():
    row = struct.pack(">6H", 65535, 32768, 0, 257, 514, 65535)
    (first, second), *_ = _values(read_image(_png(2, 1, 16, 2, b"\0" + row)))
    assert np.abs(np.array([*first, *second]) - [255, 128, 0, 1, 2, 255]).max() <= 1


def test_cmyk_keeps_its_colours():
    inks = PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = _values(read_image(_bytes(inks, "JPEG", quality=100)))[4][4]
    assert np.abs(np.array(pixel) - [255, 0, 0]).max() <= 4


def test_exif_rotation_is_applied():
    upright = PIL.Image.new("RGB", (16, 8), (255, 0, 0))
    upright.paste((0, 0, 255), (0, 0, 8, 8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: left becomes top
    turned = read_image(_bytes(upright, "JPEG", quality=100, exif=exif))
    assert turned.size == (8, 16)
    assert np.abs(np.array(turned.getpixel((4, 3))) - [0, 0, 255]).max() < 8
    assert np.abs(np.array(turned.getpixel((4, 12))) - [255, 0, 0]).max() < 8


def test_an_animation_gives_its_first_frame():
    frames = [PIL.Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "PNG", "WEBP"):
        data = _bytes(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
        assert np.abs(np.array(read_image(data).getpixel((1, 1))) - [255, 0, 0]).max() < 8, kind


def test_what_is_no_picture_is_refused_with_its_first_bytes(tmp_path: Path):
    page = tmp_path / "cat.jpg"
    page.write_bytes(b"<html><body>404</body></html>")
    with pytest.raises(ValueError, match=r"cat\.jpg is no picture in PNG, .*<html>"):
        read_image(page)
    for data in (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 64):
        with pytest.raises(ValueError, match="is no picture in"):
            read_image(data)


def test_broken_and_missing_files_are_value_errors(tmp_path: Path):
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        data = _bytes(noise, kind)
        with pytest.raises(ValueError, match=r"cannot be decoded|is no picture"):
            read_image(data[: len(data) // 2])
    with pytest.raises(ValueError, match="empty"):
        read_image(b"")
    with pytest.raises(ValueError, match=r"missing\.png cannot be read"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(tmp_path)


def test_a_picture_too_large_is_refused_before_it_is_decoded():
    # The data are no pixels at all: decoding them would fail in another way.
    for side in (9000, 14000, 60000):
        with pytest.raises(ValueError, match="too large"):
            read_image(_png(side, side, 8, 2, b"\0"))
    with pytest.raises(ValueError, match="too large"):
        read_image(PIL.Image.new("1", (LARGEST + 1, 1)))


def test_arrays_say_what_they_should_be():
    assert _values(read_image(np.full((1, 1, 3), 7, np.uint8))) == [[(7, 7, 7)]]
    assert _values(read_image(np.full((1, 1, 1), 7, np.uint8))) == [[(7, 7, 7)]]
    for wrong in (np.zeros((3, 4, 5), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4), np.uint8)):
        with pytest.raises(ValueError, match="a picture's array"):
            read_image(wrong)


def test_what_is_handed_out_shares_no_pixels_with_what_was_handed_in():
    given = PIL.Image.new("RGB", (2, 2))
    read_image(given).putpixel((0, 0), (9, 9, 9))
    assert given.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("height", [1, 30, 223, 224, 225, 448, 500, 900, 4000])
@pytest.mark.parametrize("width", [1, 112, 224, 449, 672, 1000, 1344, 5000])
def test_tiles_lie_as_transformers_lays_them(height: int, width: int):
    from transformers.models.mllama.image_processing_mllama import (
        get_image_size_fit_to_canvas,
        get_optimal_tiled_canvas,
    )

    canvas = get_optimal_tiled_canvas(height, width, 4, 224)
    assert tile_grid(height, width, tiles=4, size=224) == (canvas[0] // 224, canvas[1] // 224)
    from encoders.pixels import _fitted

    canvas = (int(canvas[0]), int(canvas[1]))
    assert _fitted(height, width, canvas=canvas, size=224) == get_image_size_fit_to_canvas(height, width, *canvas, 224)


def test_a_picture_of_one_tile_costs_one_tile_and_extreme_ones_are_only_resized():
    wants = Preprocess(size=32, tiles=4, fit="tile", **HALF)
    assert to_tiles(PIL.Image.new("RGB", (32, 20)), wants).pixels.shape == (1, 3, 32, 32)
    assert to_tiles(PIL.Image.new("RGB", (1, 1)), wants).grid == (1, 1)
    tall = to_tiles(PIL.Image.new("RGB", (1, 4000)), wants)
    assert tall.grid == (4, 1)
    assert tall.pixels.shape == (4, 3, 32, 32)


def test_tiles_are_the_canvas_row_by_row_black_where_the_picture_ends():
    # Four quarters of known colour, a size that fits the canvas exactly: tile n is quarter n.
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    image = PIL.Image.new("RGB", (64, 64))
    for number, color in enumerate(colors):
        image.paste(color, (32 * (number % 2), 32 * (number // 2), 32 * (number % 2) + 32, 32 * (number // 2) + 32))
    wants = Preprocess(size=32, tiles=4, fit="tile", **HALF)
    tiles = to_tiles(image, wants)
    assert tiles.grid == (2, 2)
    for tile, color in zip(tiles.pixels, colors, strict=True):
        assert torch.allclose(tile, (torch.tensor(color) / 127.5 - 1)[:, None, None].expand_as(tile))
    padded = to_tiles(PIL.Image.new("RGB", (32, 16), (255, 255, 255)), wants)
    assert padded.pixels[0, :, :16].eq(1).all()
    assert padded.pixels[0, :, 16:].eq(-1).all()


def test_squash_makes_one_square_tile():
    wants = Preprocess(size=24, **HALF)
    tiles = to_tiles(PIL.Image.new("RGB", (100, 10), (255, 255, 255)), wants)
    assert tiles.grid == (1, 1)
    assert tiles.pixels.eq(1).all()


def test_a_preprocess_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="tiles is 4"):
        Preprocess(size=24, tiles=4, **HALF)
    with pytest.raises(ValueError, match="no interpolation 'cubic'"):
        Preprocess(size=24, interpolation="cubic", **HALF)
