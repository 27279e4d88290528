import pickle

import pytest

from multimodal.data.tolerance import BadSample, Tolerance, TooManyBadSamples


def test_reasons_are_counted() -> None:
    tolerance = Tolerance()
    for reason in (None, "json", None, "image_decode", "json"):
        tolerance.count(reason)
    assert tolerance.seen == 5
    assert tolerance.skipped == {"json": 2, "image_decode": 1}


def test_a_hundred_bad_samples_in_a_row_stop_the_run() -> None:
    tolerance = Tolerance(max_bad_share=1.0)
    for _ in range(50):
        tolerance.count("json")
    tolerance.count(None)
    for _ in range(99):
        tolerance.count("no_caption", "0017: members ['png']")
    with pytest.raises(TooManyBadSamples, match=r"100 bad samples one behind the other: no_caption 100, json 50.*0017"):
        tolerance.count("no_caption")


def test_the_share_is_judged_from_200_samples_on() -> None:
    tolerance = Tolerance(max_bad_share=0.05)
    for number in range(199):
        tolerance.count("json" if number % 4 == 0 else None)
    with pytest.raises(TooManyBadSamples, match="51 of 200 samples are bad, more than max_bad_share"):
        tolerance.count("json")


def test_the_allowed_share_goes_on() -> None:
    tolerance = Tolerance(max_bad_share=0.05)
    for number in range(2000):
        tolerance.count("json" if number % 20 == 19 else None)
    assert tolerance.skipped["json"] == 100


def test_a_bad_sample_keeps_reason_and_detail_on_its_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(BadSample("json", "line 3")))
    assert (error.reason, error.detail, str(error)) == ("json", "line 3", "json: line 3")
