import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from encoders import ImageEncoder
from encoders.pixels import to_tiles
from multimodal.batch import NO_TARGET, Batch
from multimodal.data.augmentation import augment
from multimodal.data.loader import LoaderConfig
from multimodal.data.pictures import PictureData, captioned, fill, open_cache, picture_loader, sources, starting
from multimodal.data.prepare import Prepare
from multimodal.data.sample import Example
from multimodal.data.shards import write_shard
from multimodal.data.tolerance import BadSample
from tests.multimodal import tiny
from tests.multimodal.tiny import TEXT, Letters, png, reader


@pytest.fixture
def eye(tmp_path: Path) -> ImageEncoder:
    return ImageEncoder(tiny.eye(tmp_path / "eye"))


@pytest.fixture
def data(tmp_path: Path) -> PictureData:
    samples: list[dict] = [{"__key__": str(n), "png": png(n), "txt": f"thing {n}"} for n in range(4)]
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    samples += [{"__key__": "talk", "json": json.dumps({"messages": turns})}]
    samples += [{"__key__": "wrong", "png": b"no picture", "txt": "broken"}, {"__key__": "mute", "png": png(9)}]
    write_shard(tmp_path / "train.tar", samples)
    return PictureData(
        train=(str(tmp_path / "train.tar"),),
        batch=7,
        cache=str(tmp_path / "features"),
        reading=LoaderConfig(workers=0),
    )


def filled(data: PictureData, eye: ImageEncoder) -> tuple[int, int, int]:
    """How many features were made, were there, and could not be made."""
    last = list(fill(data, sources(data), eye, augment=augment))[-1]
    return last.stored, last.found, last.skipped.total()


def first(data: PictureData, eye: ImageEncoder) -> Batch:
    loaded = next(iter(picture_loader(data, sources(data), reader(), eye, pad=TEXT.pad).batches()))
    assert loaded.batch is not None
    assert loaded.skipped.total() == 2
    return loaded.batch


def preparing(eye: ImageEncoder, **options) -> Prepare:
    plain = {"reader": reader(), "preprocess": eye.preprocess, "places": eye.places, "caption_prompt": "C:"}
    return Prepare(**{**plain, **options})


def test_a_batch_of_the_cache_is_the_batch_of_the_encoder(data: PictureData, eye: ImageEncoder) -> None:
    data = replace(data, reading=LoaderConfig(workers=0, max_bad_share=0.5))
    assert filled(data, eye) == (4, 0, 1)
    assert filled(data, eye) == (0, 4, 1)
    cached, seen = first(data, eye), first(replace(data, cache=""), eye)
    assert torch.equal(cached.tokens, seen.tokens)
    assert torch.equal(cached.sees, seen.sees)
    assert cached.keys == seen.keys
    assert seen.tiles is not None
    assert seen.pictures is not None
    with torch.no_grad():
        expected = eye(seen.tiles, seen.pictures, seen.places).flatten(0, 1)
    torch.testing.assert_close(cached.features.float(), expected, rtol=1e-2, atol=1e-2)  # type: ignore[union-attr]


def test_a_caption_is_learned_behind_its_picture_and_the_prompt(eye: ImageEncoder) -> None:
    item = preparing(eye)(Example(key="k", media=(png(1), png(2)), captions=("a cat",)), torch.Generator())
    assert item.row.slots == (1, 2)
    (start, stop) = item.row.learned[0]
    assert Letters().decode(item.row.tokens[:start]) == "C:"
    assert Letters().decode(item.row.tokens[start:stop]) == " a cat"
    assert [picture.tiles.shape for picture in item.pictures if picture.tiles is not None] == [(1, 3, 96, 96)] * 2


def test_chance_is_the_generators_alone(eye: ImageEncoder) -> None:
    example = Example(key="k", media=(png(1),), captions=tuple("abcdefgh"))
    drawn = [preparing(eye)(example, torch.Generator().manual_seed(seed)).row.tokens for seed in range(12)]
    again = [preparing(eye)(example, torch.Generator().manual_seed(seed)).row.tokens for seed in range(12)]
    assert drawn == again
    assert len(set(drawn)) > 3


def test_a_row_that_is_too_long_is_a_bad_sample(eye: ImageEncoder) -> None:
    with pytest.raises(BadSample, match=r"too_long: k has \d+ tokens \(limit 9\)"):
        preparing(eye, longest=9)(Example(key="k", media=(png(1),), captions=("x" * 9,)), torch.Generator())


def test_a_picture_that_the_cache_lacks_is_a_bad_sample(data: PictureData, eye: ImageEncoder) -> None:
    filled(replace(data, reading=LoaderConfig(workers=0, max_bad_share=0.5)), eye)
    prepare = preparing(eye, cache=open_cache(data, eye))
    with pytest.raises(BadSample, match="not_cached: k"):
        prepare(Example(key="k", media=(png(77),), captions=("x",)), torch.Generator())


def test_views_are_augmentations_and_the_first_is_the_picture_itself(data: PictureData, eye: ImageEncoder) -> None:
    data = replace(data, views=3)
    assert filled(data, eye)[0] == 12
    cache = open_cache(data, eye)
    views = [cache.find(png(1), number) for number in range(3)]
    rows = [view.rows.float() for view in views if view is not None]
    assert len(rows) == 3
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[1], rows[2])
    tiles = to_tiles(PIL.Image.open(io.BytesIO(png(1))).convert("RGB"), eye.preprocess)
    with torch.no_grad():
        plain = eye(tiles.pixels, torch.zeros(1, dtype=torch.long)).flatten(0, 1)
    torch.testing.assert_close(rows[0], plain, rtol=1e-2, atol=1e-2)


def test_captioned_pictures_are_means_of_patches_and_their_wholes(data: PictureData, eye: ImageEncoder) -> None:
    filled(data, eye)
    found = list(captioned(data, starting(data), eye))
    assert [one.caption for one in found] == [f"thing {n}" for n in range(4)]
    # The encoder pools: the first feature of the whole is the mean of the patches, the other is no smaller.
    for one in found:
        assert one.whole.shape == (eye.whole, eye.width)
        torch.testing.assert_close(one.patches, one.whole[0], rtol=1e-2, atol=1e-2)
        assert (one.whole[1] >= one.whole[0].abs() - 1e-2).all()
    assert len(list(captioned(data, starting(data), eye, most=2))) == 2


def test_an_encoder_that_learns_is_not_cached(data: PictureData, eye: ImageEncoder) -> None:
    eye.requires_grad_(True)
    with pytest.raises(ValueError, match=r"leave --data\.cache empty"):
        filled(data, eye)


def test_a_run_without_shards_says_how_to_make_some(data: PictureData) -> None:
    with pytest.raises(ValueError, match=r"recipes/prepare_shards\.py"):
        sources(replace(data, train=()))
    assert [len(one) for one in starting(data)] == [len(one) for one in sources(data)]
    assert starting(replace(data, train=(), start=data.train))


def test_an_augmentation_is_another_view_of_the_same_size_drawn_from_torch() -> None:
    picture = tiny.photo(3, size=(60, 40))
    torch.manual_seed(5)
    one, other = augment(picture), augment(picture)
    torch.manual_seed(5)
    again = augment(picture)
    assert one.size == picture.size
    assert np.array_equal(np.asarray(one), np.asarray(again))
    assert not np.array_equal(np.asarray(one), np.asarray(other))
    assert not np.array_equal(np.asarray(one), np.asarray(picture))


def test_nothing_but_captions_is_learned(data: PictureData, eye: ImageEncoder) -> None:
    filled(data, eye)
    batch = first(data, eye)
    learned = (batch.targets != NO_TARGET).sum(1).tolist()
    lengths = dict(zip(batch.keys, learned, strict=True))
    # " thing 0" and the end; "hi" and the end of its turn.
    assert {count for key, count in lengths.items() if "talk" not in key} == {len(" thing 0") + 1}
    assert [count for key, count in lengths.items() if "talk" in key] == [3]
