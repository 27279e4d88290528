"""multimodal/data/scenes.py: what a scene shows, what a split may show, both as functions of (seed, index)."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from multimodal.data.scenes import (
    BACKGROUNDS,
    HELD_OUT_BACKGROUNDS,
    SPLITS,
    Scenes,
    held_out_count,
    is_held_out,
    split_of,
    write_scenes,
)
from multimodal.data.sentences import COUNTS, NOUNS, read_slots
from multimodal.data.shards import Shards

SOLID = (255, 0, 255, 255)


@pytest.fixture(scope="module")
def sprites():
    """A cut-out for every noun, of all proportions: a block of a colour that no background has, in an empty frame."""
    made = []
    for number, noun in enumerate(sorted(NOUNS)):
        image = Image.new("RGBA", (90, 90))
        ImageDraw.Draw(image).rectangle((10, 10, 10 + 20 + number % 50, 10 + 69 - number % 37), fill=SOLID)
        made.append((image, f"A {noun}."))
    return made


def things_in(picture: Image.Image) -> list[tuple[float, float, int, int]]:
    """Centre (x, y) and sides of each block in the picture."""
    pixels = np.asarray(picture).astype(int)
    inside = (pixels[..., 0] > 200) & (pixels[..., 1] < 90) & (pixels[..., 2] > 200)
    found = []
    while inside.any():
        y, x = np.argwhere(inside)[0]
        right = x + int(np.argmin(np.append(inside[y, x:], False)))
        down = y + int(np.argmin(np.append(inside[y:, x], False)))
        found.append(((x + right) / 2, (y + down) / 2, right - x, down - y))
        inside[y:down, x:right] = False
    # Blended edges may leave single rows of pixels behind.
    return [thing for thing in found if min(thing[2:]) > 3]


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_is_a_pure_function_of_seed_and_index(sprites, split):
    there, back = Scenes(sprites, split=split, seed=5), Scenes(sprites, split=split, seed=5)
    forth = [there[index] for index in range(6)]
    for index in (5, 2, 0, 4):
        assert back[index].caption == forth[index].caption
        assert back[index].image.tobytes() == forth[index].image.tobytes()
    assert [Scenes(sprites, split=split, seed=6)[index].caption for index in range(6)] != [one.caption for one in forth]


@pytest.mark.parametrize("split", SPLITS)
def test_every_scene_belongs_to_its_split_and_to_no_other(sprites, split):
    scenes = Scenes(sprites, split=split)
    for index in range(60):
        slots = scenes[index].slots
        assert split_of(slots) == split
        assert any(is_held_out(noun) for noun in slots.nouns) == (split == "sprites")
        if split != "sprites":
            assert (slots.background in HELD_OUT_BACKGROUNDS) == (split == "backgrounds")


def test_no_trained_scene_has_a_combination_that_is_tested(sprites):
    scenes = Scenes(sprites)
    for index in range(200):
        slots = scenes[index].slots
        assert not any(is_held_out(noun, slots.background) for noun in slots.nouns)
        assert not is_held_out(*slots.nouns)
        assert slots.count is None or slots.count != held_out_count(slots.nouns[0])


def test_a_noun_keeps_at_least_two_of_its_counts_for_training():
    held_out = [held_out_count(noun) for noun in NOUNS]
    assert 0.2 < np.mean([count is not None for count in held_out]) < 0.4
    assert {*held_out} == {None, *COUNTS}


def test_about_a_tenth_of_nouns_and_of_their_pairs_is_held_out():
    assert 0.05 < np.mean([is_held_out(noun) for noun in NOUNS]) < 0.15
    assert 0.08 < np.mean([is_held_out(*pair) for pair in itertools.combinations(NOUNS, 2)]) < 0.12
    assert is_held_out("cow", "teapot") == is_held_out("teapot", "cow")


def test_the_words_of_a_held_out_background_are_trained_on_others():
    trained = [name.split() for name in BACKGROUNDS if name not in HELD_OUT_BACKGROUNDS]
    for name in HELD_OUT_BACKGROUNDS:
        assert {word for words in trained for word in words} >= set(name.split())


@pytest.mark.parametrize("split", ["train", "backgrounds"])
def test_things_are_as_many_as_the_caption_says_apart_and_inside(sprites, split):
    scenes = Scenes(sprites, split=split)
    for index in range(40):
        scene = scenes[index]
        things = things_in(scene.image)
        assert len(things) == (scene.slots.count or 2), scene.caption
        for x, y, width, height in things:
            assert min(x - width / 2, y - height / 2) >= 2
            assert max(x + width / 2, y + height / 2) <= 222


def test_large_things_are_larger_than_small_ones(sprites):
    scenes, sides = Scenes(sprites), {"small": [], "large": []}
    for index in range(80):
        scene = scenes[index]
        if scene.slots.size is not None:
            sides[scene.slots.size] += [max(thing[2:]) for thing in things_in(scene.image)]
    assert max(sides["small"]) < 0.7 * 224 * 0.43 < min(sides["large"])


def test_the_relation_of_the_caption_holds_in_the_picture():
    # The second thing is a wide block, the first a tall one: they can be told apart.
    tall, wide = Image.new("RGBA", (30, 90), SOLID), Image.new("RGBA", (90, 30), SOLID)
    scenes, seen = Scenes([(tall, "cow"), (wide, "teapot")]), set()
    for index in range(60):
        slots = scenes[index].slots
        if slots.relation is None:
            continue
        things = sorted(things_in(scenes[index].image), key=lambda thing: thing[3] / thing[2], reverse=True)
        if slots.nouns == ("teapot", "cow"):
            things.reverse()
        (x, y, _, _), (other_x, other_y, _, _) = things
        seen.add(slots.relation)
        assert {
            "to the left of": x < other_x and abs(y - other_y) < abs(x - other_x),
            "to the right of": x > other_x and abs(y - other_y) < abs(x - other_x),
            "above": y < other_y and abs(y - other_y) > abs(x - other_x),
            "below": y > other_y and abs(y - other_y) > abs(x - other_x),
        }[slots.relation]
    assert len(seen) == 4


def test_sprites_that_are_no_noun_of_ours_are_passed_over(sprites):
    with_others = Scenes([*sprites, (Image.new("RGBA", (9, 9), SOLID), "A happy snail!")])
    assert with_others[3].image.tobytes() == Scenes(sprites)[3].image.tobytes()


def test_too_few_nouns_are_an_error():
    with pytest.raises(ValueError, match=r"needs two trained nouns.*got \['cow'\]"):
        Scenes([(Image.new("RGBA", (9, 9), SOLID), "A cow.")])


def test_an_unknown_split_and_a_negative_index_are_errors(sprites):
    with pytest.raises(ValueError, match="no split 'test'"):
        Scenes(sprites, split="test")
    with pytest.raises(IndexError):
        Scenes(sprites)[-1]


def test_shards_hold_pictures_captions_and_slots(tmp_path, sprites):
    scenes = Scenes(sprites)
    shards = Shards(write_scenes(tmp_path, scenes, 5, dialogues=2, shard_size=3))
    assert shards.sizes == (3, 3, 1)
    record = json.loads(shards[4].members["json"])
    assert record == {"caption": scenes[4].caption, "slots": scenes[4].slots.as_json()}
    assert read_slots(record["caption"]) == scenes[4].slots
    dialogue = json.loads(shards[5].members["json"])
    assert {"0.png", "1.png", "json"} == set(shards[5].members)
    assert [message["role"] for message in dialogue["messages"]] == ["user", "assistant"] * 2
    # The dialogues begin behind the scenes: no picture is written twice.
    assert [message["content"] for message in dialogue["messages"][1::2]] == [scenes[6].caption, scenes[7].caption]
    assert dialogue["messages"][2]["content"][0] == {"type": "image", "image": "1.png"}
