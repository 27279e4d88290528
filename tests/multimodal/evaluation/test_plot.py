import re

from multimodal.evaluation.plot import curve, track


def test_every_point_of_a_curve_lies_inside_its_drawing():
    drawn = curve([(float(i), (-1) ** i * 10.0**i) for i in range(8)], label="a loss")
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", drawn):
        assert 0 <= float(x) <= 920
        assert 0 <= float(y) <= 300


def test_a_long_curve_is_thinned_and_keeps_its_last_point():
    drawn = curve([(float(i), 1.0) for i in range(100_000)], label="a loss")
    assert len(drawn) < 40_000
    assert "99,999" in drawn


def test_a_score_beyond_its_track_stays_on_it():
    assert 'cx="234.0"' in track(5.0, top=1.0)
    assert 'cx="6.0"' in track(-1.0, top=1.0)
    assert track(0.0, top=0.0)
