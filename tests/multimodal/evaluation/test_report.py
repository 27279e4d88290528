import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from multimodal.evaluation.report import (
    Example,
    Exchange,
    costs,
    examples,
    exchanges,
    guarantees,
    header,
    loss_curve,
    pick_random,
    pick_worst,
    scores,
    write_report,
)
from multimodal.evaluation.result import Result

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\x00'
PICTURE = Image.new("RGBA", (400, 200), (255, 0, 0, 128))


class _Page(HTMLParser):
    """Collects tags and attributes and asserts that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _page(path: Path) -> str:
    result = Result(
        task="captioning",
        data=HOSTILE,
        n=3,
        command=HOSTILE,
        metrics={"cider": 1.2, HOSTILE: 0.5},
        interval={"cider": (1.0, 1.4)},
        controls={HOSTILE: {"cider": 0.1}},
        baselines={"nearest_neighbour": {"cider": 0.4}},
        differences={HOSTILE: {"cider": (1.1, 0.9, 1.3)}},
        metadata={"cider": {"tokenizer": HOSTILE}},
    )
    sections = [
        header(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, kicker=HOSTILE),
        scores(result, title=HOSTILE),
        guarantees({"alone": 0.0, HOSTILE: 2.5e-7}, frozen_tensors=5, changed=[HOSTILE]),
        examples([Example(pictures=(PICTURE,), said=HOSTILE, true=HOSTILE, right=False, note=HOSTILE)], title=HOSTILE),
        exchanges([Exchange(prompt=(PICTURE, HOSTILE, PICTURE), said="", true=HOSTILE)], title=HOSTILE),
        loss_curve([{"step": i, "loss": 1 / (i + 1)} for i in range(30)]),
        costs({"train_seconds": 4000.0, HOSTILE: 3.0}),
    ]
    write_report(path, HOSTILE, sections)
    return path.read_text(encoding="utf-8")


def test_hostile_text_stays_text_everywhere(tmp_path: Path):
    page = _page(tmp_path / "report.html")
    tags = _Page(page).tags
    assert not [tag for tag, _ in tags if tag == "script"]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert "\x00" not in page
    assert page.count("&lt;script&gt;") >= 15


def test_the_page_loads_nothing(tmp_path: Path):
    page = _page(tmp_path / "report.html")
    tags = _Page(page).tags
    sources = [value or "" for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(sources) == 3
    assert all(source.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for source in sources)
    assert not re.search(r"url\(|@import", page)


def test_pictures_are_made_small():
    assert 'width="320" height="160"' in examples(
        [Example(pictures=(PICTURE,), said="a", true="a", right=True)], title="Pictures"
    )


def test_a_broken_guarantee_is_shown_as_broken():
    assert "broken" not in guarantees({"alone": 0.0}, frozen_tensors=3)
    assert "5 of 5 unchanged" in guarantees({"alone": 0.0}, frozen_tensors=5)
    assert guarantees({"alone": 1e-9}, frozen_tensors=3).count("held broken") == 1
    assert guarantees({}, frozen_tensors=3, changed=["text.model.norm.weight"]).count("held broken") == 2


def test_a_loss_that_is_not_a_number_leaves_a_gap_and_no_curve_is_no_section():
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": float("nan")}]
    assert loss_curve(lines[:2]) == ""
    assert loss_curve([]) == ""
    assert "nan" not in loss_curve([*lines, {"step": 4, "loss": 1.0}, {"step": 5, "accuracy": 1.0}])
    assert "<svg" in loss_curve([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}])


def test_the_random_samples_hang_on_keys_and_the_worst_have_the_lowest_scores():
    keys = [f"k{i}" for i in range(50)]
    picked = pick_random(keys, 8)
    assert [keys[i] for i in picked] == [keys[::-1][i] for i in pick_random(keys[::-1], 8)]
    assert pick_random(keys, 8, seed=1) != picked
    scored = [1.0] * 50
    scored[7], scored[30] = 0.1, 0.0
    assert pick_worst(keys, scored, 2) == [30, 7]
