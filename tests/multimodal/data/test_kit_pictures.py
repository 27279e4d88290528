"""Readers of the kit: stamps, emoji, nouns, and the white square."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import PIL.Image
import pytest

from multimodal.data.kit.cartoon import cartoon
from multimodal.data.kit.emoji import concept_of, emoji_names, noto, openmoji
from multimodal.data.kit.picture import draw_svg, head_of, noun_of, on_white, plain_words, read_picture_file
from multimodal.data.kit.stamps import cut_outs, stamps, to_learn
from tests.multimodal.data.kit_making import SVG, cut_out, emoji_folder, openmoji_folder, stamps_folder

NAMES = {
    "\U0001f428": ":koala:",
    "\u2764\ufe0f": ":red_heart:",
    "\u2764": ":red_heart:",
    "\U0001f44d\U0001f3fb": ":thumbs_up_light_skin_tone:",
    "\U0001f1e9\U0001f1ea": ":Germany:",
    "\U0001f3f3\ufe0f": ":white_flag:",
    "\U0001f468\u200d\U0001f33e": ":man_farmer:",
}


def test_stamps_come_with_the_english_line_and_their_folder(tmp_path: Path) -> None:
    captions = {"animals/cow.png": "A cow.\nde.utf8=Eine Kuh.\n", "food/pie.svg": "A pie.", "food/nothing.png": "\n"}
    read = list(stamps(stamps_folder(tmp_path, captions)))
    assert [(one.key, one.caption, one.category) for one in read] == [
        ("animals/cow.png", "A cow.", "animals"),
        ("food/pie.svg", "A pie.", "food"),
    ]
    assert all(one.draw().mode == "RGBA" for one in read)


def test_signs_and_long_explanations_are_not_learned(tmp_path: Path) -> None:
    long = "A game in which " + "one moves a piece and " * 4
    captions = {"symbols/a.png": "A letter.", "toys/dreidel.png": long, "toys/ball.png": "A ball."}
    learned = [one.key for one in stamps(stamps_folder(tmp_path, captions)) if to_learn(one)]
    assert learned == ["toys/ball.png"]


def test_only_things_with_nothing_around_them_are_cut_outs(tmp_path: Path) -> None:
    captions = {"a/cow.png": "A cow.", "a/cows.png": "Two cows.", "a/cartoon/hen.png": "A hen.", "a/sky.png": "A sky."}
    folder = stamps_folder(tmp_path, captions)
    PIL.Image.new("RGBA", (20, 20), (1, 2, 3, 255)).save(folder / "usr/share/tuxpaint/stamps/a/sky.png")
    assert [one.key for _, one in cut_outs(folder)] == ["a/cow.png"]


def test_a_folder_without_stamps_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="delete it, and the next call fetches it again"):
        list(stamps(tmp_path))


def test_emoji_names_leave_out_skin_tones_and_flags_and_count_a_concept_once(tmp_path: Path) -> None:
    names = emoji_names(emoji_folder(tmp_path, NAMES))
    assert {concept: name for concept, (_, name) in names.items()} == {
        "1F428": "koala",
        "2764": "red heart",
        "1F468-200D-1F33E": "man farmer",
    }
    assert names["2764"][0] == "\u2764\ufe0f"
    assert concept_of("\u2764\ufe0f") == "2764"


def test_drawings_get_the_names_of_their_concepts_and_nameless_ones_are_left_out(tmp_path: Path) -> None:
    names = emoji_names(emoji_folder(tmp_path / "names", NAMES))
    drawn = list(openmoji(openmoji_folder(tmp_path / "drawn", ["1F428", "2764-FE0F", "E000"]), names, pixels=72))
    assert [(one.concept, one.caption) for one in drawn] == [("1F428", "koala"), ("2764", "red heart")]
    assert drawn[0].draw().size == (72, 72)


def test_a_missing_font_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"NotoColorEmoji\.ttf is missing"):
        next(noto(tmp_path, {}))


@pytest.mark.parametrize(
    ("caption", "noun", "head"),
    [
        ("A guinea fowl.", "guinea fowl", "fowl"),
        ("Two red apples.", "two red apples", "apple"),
        ("A UK post box. Put your letter in here!", "uk post box", "box"),
        ("A bowl of soup.", "bowl", "bowl"),
        ("koala", "koala", "koala"),
        ("A girl with a ball.", "girl", "girl"),
        ("A christmas pudding is eaten in England.", "christmas pudding", "pudding"),
        ("Strawberries", "strawberries", "strawberry"),
        ("A plumber\u2019s wrench", "plumbers wrench", "wrench"),
    ],
)
def test_the_noun_is_what_the_first_phrase_names(caption: str, noun: str, head: str) -> None:
    assert (noun_of(caption), head_of(caption)) == (noun, head)


def test_captions_that_differ_only_in_signs_are_the_same_words() -> None:
    assert plain_words("A Cow!") == plain_words("a cow.")


def test_a_picture_stands_in_the_middle_of_a_white_square() -> None:
    square = np.asarray(on_white(cut_out(1), 64))
    assert square.shape == (64, 64, 3)
    assert (square[0] == 255).all()
    assert (square[32, 32] == (37, 91, 0)).all()


def test_a_picture_is_cut_to_what_is_drawn() -> None:
    small = PIL.Image.new("RGBA", (50, 50))
    small.paste((0, 0, 255, 255), (20, 10, 24, 18))
    square = np.asarray(on_white(small, 70, margin=0.1))
    drawn = np.argwhere((square != 255).any(-1))
    assert drawn.min(0)[0] in (6, 7, 8)
    assert drawn.max(0)[0] in (61, 62, 63)


def test_a_cartoon_has_few_colours_black_outlines_and_the_same_bits_every_time() -> None:
    photo = PIL.Image.effect_noise((96, 96), 40).convert("RGBA")
    mask = PIL.Image.new("L", photo.size)
    mask.paste(255, (16, 16, 80, 80))
    photo.putalpha(mask)
    drawn = cartoon(photo, Random(1))
    shown = np.asarray(drawn)
    assert len({tuple(pixel) for pixel in shown[shown[..., 3] > 0]}) <= 9
    assert tuple(shown[16, 48]) == (0, 0, 0, 255)
    assert shown[4, 4, 3] == 0
    assert drawn.tobytes() == cartoon(photo, Random(1)).tobytes() != cartoon(photo, Random(2)).tobytes()


def test_colours_hidden_under_transparent_pixels_do_not_show() -> None:
    image = PIL.Image.new("RGBA", (9, 9), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (3, 3, 6, 6))
    square = np.asarray(on_white(image, 90)).astype(int)
    # Between white and blue there is no red that outweighs the green.
    assert (square[..., 0] - square[..., 1]).max() <= 2


def test_a_drawing_in_points_has_a_size() -> None:
    text = SVG.format(54, "blue").replace("<svg ", '<svg width="700pt" height="700pt" ')
    assert draw_svg(text, 50, "one.svg").size == (50, 50)


@pytest.mark.parametrize("name", ["bad.svg", "bad.png"])
def test_a_broken_file_is_a_value_error_with_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is no picture")
    with pytest.raises(ValueError, match=name):
        read_picture_file(tmp_path / name, 32)
