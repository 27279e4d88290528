from dataclasses import dataclass, field

import pytest

from multimodal.command_line import parse
from multimodal.settings import differences, from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    layers: tuple[int | str, ...] = (4, "final")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)
    learns: tuple[tuple[str, float], ...] = ((r"adapters\..*", 1.0),)


PRESETS = {"small": Outer(), "large": Outer(name="large", inner=Inner(rate=2.0))}


def test_a_preset_is_the_first_word_and_fields_are_changed_by_name() -> None:
    assert parse(PRESETS, about="", args=[]) == Outer()
    changed = parse(PRESETS, about="", args=["large", "--inner.rate", "3"])
    assert changed == Outer(name="large", inner=Inner(rate=3.0))


def test_a_config_goes_to_json_and_back(tmp_path) -> None:
    assert from_json(Outer, to_json(PRESETS["large"]), name="x") == PRESETS["large"]
    file = tmp_path / "config.json"
    file.write_text(to_json(PRESETS["large"]))
    assert parse(PRESETS, about="", args=["--config", str(file), "--name", "y"]).inner.rate == 2.0


def test_an_unknown_preset_names_its_neighbour(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(PRESETS, about="", args=["smal"])
    assert ended.value.code == 2
    assert "did you mean 'small'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('{"nam": "y"}', "unknown key 'nam'.*did you mean 'name'"),
        ('{"inner": {"rates": 1}}', "inner.*did you mean 'rate'"),
        ('{"inner": {"rate": "fast"}}', "rate"),
        ("{", "is not JSON"),
    ],
)
def test_a_wrong_config_file_is_an_error_that_names_the_key(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        from_json(Outer, text, name="config.json")


def test_differences_name_each_setting_with_both_values() -> None:
    other = Outer(name="y", inner=Inner(rate=2.0))
    assert list(differences(Outer(), other)) == [("name", "x", "y"), ("inner.rate", 0.5, 2.0)]
    assert list(differences(other, other)) == []
