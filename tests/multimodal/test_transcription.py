from itertools import pairwise

import pytest
import torch

from encoders.sound import RATE
from multimodal.transcription import joined, most_tokens, windows


@pytest.mark.parametrize("seconds", [1.0, 28.0, 28.5, 52.0, 52.1, 100.0, 3600.0])
def test_windows_cover_a_recording_and_share_their_overlap(seconds: float) -> None:
    sound = torch.arange(int(seconds * RATE)).double()
    parts = windows(sound)
    assert parts[0][0] == 0
    assert parts[-1][-1] == sound[-1]
    assert all(len(part) <= 28 * RATE for part in parts)
    for one, other in pairwise(parts):
        assert one[-1] - other[0] + 1 == 4 * RATE


def test_a_window_must_be_longer_than_what_it_shares() -> None:
    with pytest.raises(ValueError, match=r"the overlap \(5.0\) must be at least 0 and below the window \(4.0\)"):
        windows(torch.zeros(10), window=4.0, overlap=5.0)


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (["so it goes"], "so it goes"),
        (["one two three four", "three four five"], "one two three four five"),
        # A word that the edge cut off, on either side.
        (["one two three fou", "ree two three four five"], "one two three four five"),
        (["One, two three.", "two three four"], "One, two three four"),
        (["the end", "another beginning"], "the end another beginning"),
        (["something", "", "else"], "something else"),
        (["yes", "yes"], "yes"),
        (["", ""], ""),
    ],
)
def test_texts_are_joined_where_they_agree(texts: list[str], whole: str) -> None:
    assert joined(texts).lower().replace(",", "").replace(".", "") == whole.lower().replace(",", "")


def test_what_is_said_twice_far_from_the_seam_stays_twice() -> None:
    refrain = "we shall overcome"
    long = f"{refrain} {' '.join(f'word{i}' for i in range(40))}"
    assert joined([long, f"word38 word39 {refrain}"]).count(refrain) == 2


def test_an_answer_may_be_as_long_as_one_can_speak() -> None:
    assert most_tokens(0.5) == 12
    assert most_tokens(28.0) == 232
