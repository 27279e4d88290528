import json
from pathlib import Path

import pytest

from multimodal.data.captions import Captioned, read_captions
from tests.multimodal.data.shard_making import picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "more/c.png"):
        (folder / name).write_bytes(picture())
    return folder


def entries(images: Path, name: str, content: str | bytes) -> list[Captioned]:
    file = images.parent / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_captions(file, images))


def told(made: list[Captioned]) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (entry.image.name if entry.image else str(entry.bad and entry.bad.reason), entry.captions) for entry in made
    ]


def test_csv_with_quotes_crlf_and_a_byte_order_mark_is_read(images: Path) -> None:
    content = '\ufeffFilepath,Caption\r\na.png,"A cat, sitting."\r\nmore/c.png,"Two\nlines"\r\n'
    assert told(entries(images, "x.csv", content)) == [("a.png", ("A cat, sitting.",)), ("c.png", ("Two\nlines",))]


def test_tab_separated_values_are_read(images: Path) -> None:
    assert told(entries(images, "x.tsv", "image\ttext\na.png\tA cat.\n")) == [("a.png", ("A cat.",))]


def test_bad_lines_are_named_by_line_and_do_not_hide_the_good_ones(images: Path) -> None:
    lines = [
        b'{"image": "a.png", "caption": "A cat."}',
        b"{broken",
        b"",
        b'["a.png", "A cat."]',
        b'{"image": "b.png"}',
        b'{"caption": "A cat."}',
        b'{"image": "b.png", "caption": "\\ud800"}',
        b'{"image": "b.png", "caption": 7}',
        b"\xff\xfe",
        b'{"image": "b.png", "captions": ["A dog.", "A pet."]}',
    ]
    made = entries(images, "x.jsonl", b"\r\n".join(lines))
    assert told(made) == [
        ("a.png", ("A cat.",)),
        ("json", ()),
        ("json", ()),
        ("no_caption", ()),
        ("no_image", ()),
        ("text", ()),
        ("text", ()),
        ("json", ()),
        ("b.png", ("A dog.", "A pet.")),
    ]
    assert [entry.where for entry in made][1:3] == ["x.jsonl:2", "x.jsonl:4"]
    assert "x.jsonl:2" in str(made[1].bad)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.png", "missing_file"),
        ("more", "missing_file"),
        ("../x.jsonl", "outside_folder"),
        ("/etc/passwd", "outside_folder"),
        ("a\0.png", "missing_file"),
        ("x" * 5000, "missing_file"),
    ],
)
def test_a_picture_must_be_a_file_in_the_folder(images: Path, name: str, reason: str) -> None:
    line = json.dumps({"image": name, "caption": "A cat."})
    assert told(entries(images, "x.jsonl", line)) == [(reason, ())]


def test_a_link_that_leaves_the_folder_is_not_followed(images: Path) -> None:
    (images.parent / "secret.png").write_bytes(picture())
    (images / "link.png").symlink_to(images.parent / "secret.png")
    assert told(entries(images, "x.csv", "image,caption\nlink.png,A cat.\n")) == [("outside_folder", ())]


def test_coco_captions_are_gathered_by_picture(images: Path) -> None:
    tree = {
        "images": [
            {"id": 7, "file_name": "a.png"},
            {"id": 9, "file_name": "b.png"},
            {"id": 11, "file_name": "more/c.png"},
        ],
        "annotations": [
            {"image_id": 9, "caption": "A dog."},
            {"image_id": 7, "caption": "A cat."},
            {"image_id": 9, "caption": "A pet."},
            {"image_id": 8, "caption": "Nobody."},
        ],
    }
    made = told(entries(images, "x.json", json.dumps(tree)))
    assert made == [("json", ()), ("a.png", ("A cat.",)), ("b.png", ("A dog.", "A pet.")), ("no_caption", ())]


def test_a_folder_with_texts_beside_its_pictures_is_read_in_order(images: Path) -> None:
    (images / "a.txt").write_text("A cat.\n")
    (images / "more/c.txt").write_text(" ")
    made = list(read_captions(images, images))
    assert [(entry.where, entry.captions, entry.bad and entry.bad.reason) for entry in made] == [
        ("a.png", ("A cat.",), None),
        ("b.png", (), "no_caption"),
        ("more/c.png", ("",), "no_caption"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "needs a header line"),
        ("x.csv", "", "needs a header line"),
        ("x.json", "[]", "is not COCO captions JSON"),
        ("x.json", "{", "is not COCO captions JSON"),
        ("x.parquet", "", "is no caption file that is known"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_was_expected(images: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entries(images, name, content)


def test_missing_files_and_folders_are_named(images: Path) -> None:
    with pytest.raises(ValueError, match="is not there"):
        list(read_captions(images / "none.csv", images))
    with pytest.raises(ValueError, match="is not a folder"):
        list(read_captions(images, images / "none"))
