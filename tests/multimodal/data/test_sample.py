import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal.data.sample import Example, read_picture, to_example
from multimodal.data.shards import Record
from multimodal.data.tolerance import BadSample
from multimodal.modality import Image
from tests.multimodal.data.shard_making import picture

PICTURE = picture()


def example(members: Mapping[str, Any]) -> Example:
    encoded = {
        name: value if isinstance(value, bytes) else json.dumps(value).encode() for name, value in members.items()
    }
    return to_example(Record(key="k", shard="s.tar", members=encoded))


def reason(members: Mapping[str, Any]) -> str:
    with pytest.raises(BadSample) as caught:
        example(members)
    assert "k" in caught.value.detail or "json" in caught.value.detail or "txt" in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_a_picture_and_a_text_are_a_caption_sample(extension: str) -> None:
    assert example({extension: PICTURE, "txt": b"A cat.\r\n"}) == Example(
        key="k", media=(PICTURE,), captions=("A cat.",)
    )


def test_a_caption_may_stand_in_json_alone_or_with_others() -> None:
    assert example({"png": PICTURE, "json": {"caption": "A cat.", "url": "x"}}).captions == ("A cat.",)
    assert example({"png": PICTURE, "json": {"captions": ["A cat.", "", "A pet."]}}).captions == ("A cat.", "A pet.")


def test_a_byte_order_mark_is_no_part_of_the_caption() -> None:
    assert example({"png": PICTURE, "txt": b"\xef\xbb\xbfA cat."}).captions == ("A cat.",)


def test_text_beside_json_of_other_tools_is_the_caption() -> None:
    """img2dataset writes key.jpg, key.txt and key.json with the download's data."""
    assert example({"jpg": PICTURE, "txt": b"A cat.", "json": {"status": "success"}}).captions == ("A cat.",)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"png": PICTURE}, "no_caption"),
        ({"png": PICTURE, "txt": b" \n"}, "no_caption"),
        ({"png": PICTURE, "json": {"title": "A cat."}}, "no_caption"),
        ({"png": PICTURE, "json": {"captions": []}}, "no_caption"),
        ({"txt": b"A cat."}, "no_image"),
        ({"mp4": b"", "txt": b"A cat."}, "no_image"),
        ({"0.png": PICTURE, "1.png": PICTURE, "txt": b"A cat."}, "image_count"),
        ({"png": PICTURE, "json": b"{"}, "json"),
        ({"png": PICTURE, "json": b"[" * 100_000}, "json"),
        ({"png": PICTURE, "json": [1]}, "json"),
        ({"png": PICTURE, "txt": b"\xff\xfe"}, "text"),
        ({"png": PICTURE, "txt": b"x" * (2**20 + 1)}, "text"),
        ({"png": PICTURE, "json": {"caption": 3}}, "text"),
        ({"png": PICTURE, "json": b'{"caption": "\\ud800"}'}, "text"),
    ],
)
def test_a_bad_caption_sample_is_known_by_its_reason(members: Mapping[str, Any], expected: str) -> None:
    assert reason(members) == expected


def turns(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "Yes."}]}


def test_messages_show_their_pictures_by_member_name() -> None:
    first, second = picture(1), picture(2)
    made = example(
        {
            "0.png": first,
            "1.png": second,
            "json": turns(
                {"type": "image", "image": "1.png"},
                {"type": "image", "image": "0.png"},
                {"type": "text", "text": "Same?"},
            ),
        }
    )
    assert made.media == (second, first)
    assert made.captions == ()
    content = made.messages[0]["content"]
    assert [part.source for part in content if isinstance(part, Image)] == [second, first]
    assert content[2] == "Same?"
    assert made.messages[1] == {"role": "assistant", "content": ["Yes."]}


def test_image_parts_without_a_name_take_the_pictures_in_order_ten_after_two() -> None:
    pictures = {f"{number}.png": picture(number) for number in range(11)}
    made = example({**pictures, "json": turns(*[{"type": "image"}] * 11)})
    assert made.media == tuple(picture(number) for number in range(11))


def test_the_same_picture_may_be_shown_twice() -> None:
    part = {"type": "image", "image": "0.png"}
    assert example({"0.png": PICTURE, "json": turns(part, part)}).media == (PICTURE, PICTURE)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"json": {"messages": []}}, "json"),
        ({"json": {"messages": "hello"}}, "json"),
        ({"json": {"messages": [{"role": "robot", "content": "x"}]}}, "json"),
        ({"json": {"messages": [{"role": "user"}]}}, "json"),
        ({"json": turns()}, "json"),
        ({"json": turns("plain")}, "json"),
        ({"json": turns({"type": "image_url", "image_url": {"url": "http://x"}})}, "json"),
        ({"json": turns({"type": "text"})}, "text"),
        ({"json": turns({"type": "image", "image": "0.png"})}, "image_count"),
        ({"0.png": PICTURE, "json": turns({"type": "image", "image": "../etc/passwd"})}, "image_count"),
        ({"0.png": PICTURE, "json": turns({"type": "image", "image": ["0.png"]})}, "image_count"),
        ({"0.png": PICTURE, "1.png": PICTURE, "json": turns({"type": "image", "image": "0.png"})}, "image_count"),
        ({"0.png": PICTURE, "json": turns({"type": "image"}, {"type": "image"})}, "image_count"),
    ],
)
def test_a_bad_conversation_is_known_by_its_reason(members: Mapping[str, Any], expected: str) -> None:
    assert reason(members) == expected


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["user", "image", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "caption", "captions", "role", "content", "type", "text", "image"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(members=st.dictionaries(st.sampled_from(["json", "txt", "png", "0.png", "cls"]), st.binary(max_size=8) | trees))
def test_any_bytes_are_an_example_or_a_bad_sample(members: dict[str, Any]) -> None:
    try:
        made = example(members)
    except BadSample:
        return
    assert bool(made.captions) != bool(made.messages)


def test_a_picture_that_cannot_be_decoded_is_a_bad_sample() -> None:
    for data in (
        b"",
        b"<html></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        picture(0, (64, 64), "JPEG")[:200],
    ):
        with pytest.raises(BadSample) as caught:
            read_picture(data, "k")
        assert caught.value.reason == "image_decode"


def test_a_small_file_of_a_huge_picture_is_too_large_before_it_is_decoded() -> None:
    header = b"IHDR" + struct.pack(">II", 14000, 14000) + b"\x08\x02\x00\x00\x00"
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PICTURE[33:]
    with pytest.raises(BadSample) as caught:
        read_picture(data, "k")
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("size", [(1, 1), (1, 4000)])
def test_a_picture_of_a_strange_shape_is_read(size: tuple[int, int]) -> None:
    assert read_picture(picture(0, size)).size == size


def test_a_picture_is_read_as_rgb() -> None:
    assert (read_picture(PICTURE).mode, read_picture(PICTURE).size) == ("RGB", (8, 6))
