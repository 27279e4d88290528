import json
from pathlib import Path

import pytest

from multimodal.data.sentences import Slots, sentence
from multimodal.evaluation.result import Result, evaluate, read_result
from multimodal.evaluation.results import main

SCENES = [
    Slots(nouns=(noun,), count=1, size="small", background="dark blue") for noun in ("cow", "lemon", "rose", "key")
]
TRUE = [sentence(slots) for slots in SCENES]


def _result() -> Result:
    return evaluate(
        "captioning",
        [*TRUE[:3], "I | do not know"],
        TRUE,
        data="scenes",
        command="python recipes/eval_captioning.py --run runs/image_adapter",
        slots=SCENES,
        controls={"wrong_medium": TRUE[1:] + TRUE[:1], "no_medium": [""] * 4},
        baselines={"nearest_neighbour": [TRUE[0]] * 4},
        cost={"train_seconds": 1.5, "trained_parameters": 10},
        draws=200,
    )


def test_the_file_has_the_one_shape_and_reads_back_as_it_was(tmp_path: Path):
    result = _result()
    path = result.save(tmp_path / "run")
    assert path.name == "eval_captioning.json"
    assert read_result(path) == result
    record = json.loads(path.read_text())
    assert list(record)[:9] == [
        "task", "data", "n", "command", "metrics", "interval", "controls", "baselines", "cost",
    ]  # fmt: skip
    assert record["metadata"]["cider"]["tokenizer"] == "plain"


def test_scores_controls_baselines_and_differences_are_of_the_same_samples():
    result = _result()
    assert result.n == 4
    assert result.metrics["exact"] == 0.75
    assert result.controls["wrong_medium"]["exact"] == 0
    assert result.controls["wrong_medium"]["slot_noun"] == 0
    assert result.baselines["nearest_neighbour"]["exact"] == 0.25
    gap, low, high = result.differences["wrong_medium"]["exact"]
    assert gap == 0.75
    assert low <= gap <= high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "../up"}, "names a file"),
        ({"n": 0}, "must be at least 1"),
        ({"metrics": {"exact": float("nan")}}, "metrics.exact is nan"),
        ({"controls": {"no_medium": {"exact": True}}}, "controls.no_medium.exact is True"),
        ({"interval": {"exact": (0.9, 0.1)}}, "must not be above"),
        ({"interval": {"other": (0.1, 0.9)}}, "'other' has no metric"),
        ({"command": " "}, "command"),
        ({"surprise": 1}, "unknown keys"),
        ({"interval": {"exact": 3}}, "result.json"),
    ],
)
def test_a_file_out_of_shape_is_an_error_that_names_it(tmp_path: Path, change: dict, message: str):
    record = json.loads(_result().as_json()) | {"differences": {}} | change
    if "metrics" in change:
        record["interval"] = {}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message) as raised:
        read_result(path)
    assert "result.json" in str(raised.value)


def test_the_results_page_is_made_from_the_folder(tmp_path: Path):
    _result().publish(tmp_path / "results")
    bench = {"what": "image_adapter", "command": "make bench", "machine": "two cores", "ours": 9, "runs": 3}
    bench |= {"peers": {"theirs": 1}, "ratio": {"theirs": 9.0}}
    (tmp_path / "results" / "bench_image_adapter.json").write_text(json.dumps(bench))
    main([str(tmp_path / "results")])
    page = (tmp_path / "results.md").read_text()
    assert "| exact | 0.750 [" in page
    assert "cider (plain tokenizer)" in page
    assert "theirs 9.00x" in page
    assert "python recipes/eval_captioning.py --run runs/image_adapter" in page


def test_a_result_under_another_name_stops_the_page(tmp_path: Path):
    _result().publish(tmp_path).rename(tmp_path / "asr.json")
    with pytest.raises(SystemExit, match=r"name it captioning\.json"):
        main([str(tmp_path)])
