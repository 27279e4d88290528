import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from multimodal.data.feature_cache import FeatureCache, Features, Filled, View, fill_cache
from multimodal.data.tolerance import BadSample, TooManyBadSamples

WIDTH = 6
PICTURES = [f"picture {number}".encode() for number in range(20)]


def prepare(view: View) -> torch.Tensor:
    """Between one and three tiles of two rows, by the picture; noise in every view but the first."""
    if b"bad" in view.data:
        raise BadSample("image_decode", str(view.data))
    tiles = 1 + view.data[-1] % 3
    base = torch.full((tiles * 2, WIDTH), float(sum(view.data) % 251))
    return base if view.number == 0 else base + torch.randn(base.shape, generator=view.random()) + torch.randn(WIDTH)


def encode(items: Sequence[torch.Tensor]) -> list[Features]:
    return [Features(rows=item * 2, grid=(1, len(item) // 2)) for item in items]


def fill(
    root: Path, pictures: Sequence[bytes] = PICTURES, encode: Callable = encode, encoder: str = "9f3c", **settings: int
) -> Filled:
    (*_, last) = fill_cache(
        root,
        pictures,
        encoder=encoder,
        preprocessing="224",
        prepare=prepare,
        encode=encode,
        batch=3,
        part=6,
        **settings,
    )
    return last


def opened(root: Path, encoder: str = "9f3c") -> FeatureCache:
    return FeatureCache(root, encoder=encoder, preprocessing="224")


def same(one: Features | None, other: Features | None) -> bool:
    assert one is not None
    assert other is not None
    return torch.equal(one.rows, other.rows) and one.grid == other.grid


def test_every_picture_is_found_with_its_own_number_of_rows(tmp_path: Path) -> None:
    assert fill(tmp_path) == Filled(stored=20, found=0, skipped=fill(tmp_path).skipped)
    cache = opened(tmp_path)
    assert (len(cache), cache.width) == (20, WIDTH)
    for data in PICTURES:
        found = cache.find(data)
        assert found is not None
        assert found.rows.dtype == torch.bfloat16
        assert torch.equal(found.rows, encode([prepare(View(data=data, number=0))])[0].rows.bfloat16())
        assert found.grid == (1, 1 + data[-1] % 3)


def test_what_is_not_stored_is_none(tmp_path: Path) -> None:
    assert opened(tmp_path).find(PICTURES[0]) is None
    assert opened(tmp_path).width is None
    fill(tmp_path)
    assert opened(tmp_path).find(b"another") is None
    assert opened(tmp_path).find(PICTURES[0], view=1) is None
    assert opened(tmp_path, encoder="41ab").find(PICTURES[0]) is None


def test_a_second_call_computes_nothing(tmp_path: Path) -> None:
    def never(items: Sequence[torch.Tensor]) -> list[Features]:
        raise AssertionError("everything is there")

    fill(tmp_path)
    assert fill(tmp_path, encode=never).found == 20


def test_the_same_picture_costs_once(tmp_path: Path) -> None:
    seen: list[int] = []

    def counting(items: Sequence[torch.Tensor]) -> list[Features]:
        seen.append(len(items))
        return encode(items)

    assert fill(tmp_path, PICTURES[:4] * 5, encode=counting).stored == 4
    assert sum(seen) == 4


def test_views_differ_and_depend_on_picture_and_number_alone(tmp_path: Path) -> None:
    fill(tmp_path / "a", views=3)
    fill(tmp_path / "b", PICTURES[::-1], views=3)
    one, other = opened(tmp_path / "a"), opened(tmp_path / "b")
    for data in PICTURES:
        assert all(same(one.find(data, view), other.find(data, view)) for view in range(3))
        assert not same(one.find(data, 1), one.find(data, 2))
    assert torch.equal(one.find(PICTURES[0], 0).rows, opened(tmp_path / "a").find(PICTURES[0]).rows)


def test_more_views_later_keep_those_that_are_there(tmp_path: Path) -> None:
    fill(tmp_path)
    assert fill(tmp_path, views=2) == Filled(stored=20, found=20, skipped=fill(tmp_path).skipped)
    assert len(opened(tmp_path)) == 40


def test_processes_share_the_work_and_nobody_does_it_twice(tmp_path: Path) -> None:
    shares = [fill(tmp_path, rank=rank, ranks=3).stored for rank in range(3)]
    assert sum(shares) == 20
    assert min(shares) > 0
    assert len(opened(tmp_path)) == 20


@pytest.mark.parametrize("calls", range(7))
def test_a_killed_filling_goes_on_with_the_same_batches_and_bits(tmp_path: Path, calls: int) -> None:
    """The stand-in encoder gives features that depend on the whole batch, as a real one's last bits do."""

    def batchwise(items: Sequence[torch.Tensor]) -> list[Features]:
        total = torch.cat(list(items)).sum() * 1e-2
        return [Features(rows=item + total, grid=(1, 1)) for item in items]

    done = 0

    def killed(items: Sequence[torch.Tensor]) -> list[Features]:
        nonlocal done
        done += 1
        if done > calls:
            raise KeyboardInterrupt
        return batchwise(items)

    fill(tmp_path / "whole", encode=batchwise)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "killed", encode=killed)
    fill(tmp_path / "killed", encode=batchwise)
    whole, resumed = opened(tmp_path / "whole"), opened(tmp_path / "killed")
    assert all(same(whole.find(data), resumed.find(data)) for data in PICTURES)
    assert not [path for path in resumed.folder.iterdir() if not path.name.startswith("part-")]


def test_the_leavings_of_a_kill_inside_a_write_are_not_read(tmp_path: Path) -> None:
    fill(tmp_path)
    folder = opened(tmp_path).folder
    (folder / ".part-0123.safetensors.77.partial").write_bytes(b"half a part")
    assert len(opened(tmp_path)) == 20


def test_bad_pictures_are_left_out_and_counted(tmp_path: Path) -> None:
    filled = fill(tmp_path, [*PICTURES, b"bad one", b"bad two"])
    assert (filled.stored, filled.skipped) == (20, {"image_decode": 2})
    assert opened(tmp_path).find(b"bad one") is None


def test_only_bad_pictures_stop_the_filling(tmp_path: Path) -> None:
    with pytest.raises(TooManyBadSamples, match="100 bad samples one behind the other"):
        fill(tmp_path, [f"bad {number}".encode() for number in range(150)])


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    part = next(opened(tmp_path).folder.glob("part-*"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"part-.*cannot be read .* delete it"):
        len(opened(tmp_path))
    flipped = bytearray(whole)
    at = whole.index(opened_rows(whole))
    flipped[at] ^= 1
    part.write_bytes(flipped)
    cache = opened(tmp_path)
    with pytest.raises(ValueError, match="are damaged"):
        [cache.find(data) for data in PICTURES]


def opened_rows(part: bytes) -> bytes:
    """The features' bytes inside a part: the tensor that the safetensors header names last in the file."""
    import json

    size = int.from_bytes(part[:8], "little")
    start, end = json.loads(part[8 : 8 + size])["features"]["data_offsets"]
    return part[8 + size + start : 8 + size + end]


def test_a_part_of_another_encoder_does_not_belong_here(tmp_path: Path) -> None:
    fill(tmp_path)
    fill(tmp_path, PICTURES[:1], encoder="41ab")
    stranger = next(opened(tmp_path, "41ab").folder.glob("part-*"))
    (opened(tmp_path).folder / "part-x.safetensors").write_bytes(stranger.read_bytes())
    with pytest.raises(ValueError, match=r"41ab.*does not belong here"):
        len(opened(tmp_path))


def test_features_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    def broken(items: Sequence[torch.Tensor]) -> list[Features]:
        return [Features(rows=item / 0.0 * 0.0, grid=(1, 1)) for item in items]

    with pytest.raises(ValueError, match="not finite"):
        fill(tmp_path, encode=broken)


class Lookups(Dataset):
    def __init__(self, cache: FeatureCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(PICTURES)

    def __getitem__(self, index: int) -> torch.Tensor:
        found = self.cache.find(PICTURES[index])
        assert found is not None
        return found.rows


def test_workers_read_the_cache_through_their_own_map(tmp_path: Path) -> None:
    fill(tmp_path)
    cache = opened(tmp_path)
    assert len(cache) == 20
    assert len(pickle.dumps(cache)) < 1000
    read = list(DataLoader(Lookups(cache), batch_size=None, num_workers=2))
    assert all(torch.equal(one, Lookups(cache)[index]) for index, one in enumerate(read))


def test_what_is_found_is_a_copy(tmp_path: Path) -> None:
    fill(tmp_path)
    cache = opened(tmp_path)
    found = cache.find(PICTURES[0])
    assert found is not None
    found.rows.zero_()
    again = cache.find(PICTURES[0])
    assert again is not None
    assert again.rows.abs().sum() > 0
