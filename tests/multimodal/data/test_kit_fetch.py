"""Fetching: exact files only, whole or not at all, and words that help where it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from multimodal.data.kit.fetch import CannotFetchError, fetch, fetch_all, is_fetched
from multimodal.data.kit.packages import PACKAGES
from tests.multimodal.data.kit_making import Client, archive, package

DATA = archive({"data/cat.txt": "cat", "data/more/dog.txt": "dog", "code/run.py": "boom"})
OTHER = archive({"data/cat.txt": "another cat"})


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multimodal.data.kit.fetch.shutil.which", lambda name: f"/usr/bin/{name}")


def test_a_package_is_unpacked_with_what_is_kept_and_nothing_else(tmp_path: Path, said: list[str]) -> None:
    folder = fetch(package(DATA), tmp_path, say=said.append, client=Client({"pictures==1.0": DATA}))
    assert folder == tmp_path / "packages/pictures-1.0"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"data/cat.txt", "data/more/dog.txt", ".fetched.json"}
    assert not list((tmp_path / "archives").iterdir())


def test_pip_is_told_the_hash_and_to_take_no_other_file(tmp_path: Path, said: list[str]) -> None:
    client = Client({"pictures==1.0": DATA})
    fetch(package(DATA), tmp_path, say=said.append, client=client)
    [call] = client.calls
    assert {"download", "--no-deps", "--require-hashes"} <= set(call)
    assert not any("://" in word for word in call)


@pytest.mark.parametrize("kind", ["pip", "apt"])
def test_a_second_call_asks_no_client(tmp_path: Path, said: list[str], kind: str) -> None:
    wanted = package(DATA, client=kind)
    client = Client({"pictures==1.0": DATA, "pictures=1.0": DATA})
    fetch(wanted, tmp_path, say=said.append, client=client)
    client.calls.clear()
    fetch(wanted, tmp_path, say=said.append, client=client)
    assert client.calls == []


def test_another_pin_fetches_again(tmp_path: Path, said: list[str]) -> None:
    fetch(package(DATA), tmp_path, say=said.append, client=Client({"pictures==1.0": DATA}))
    assert not is_fetched(package(OTHER), tmp_path)
    folder = fetch(package(OTHER), tmp_path, say=said.append, client=Client({"pictures==1.0": OTHER}))
    assert (folder / "data/cat.txt").read_text() == "another cat"
    assert not (folder / "data/more").exists()


@pytest.mark.parametrize("kind", ["pip", "apt"])
def test_a_file_with_another_hash_is_refused_and_named(tmp_path: Path, said: list[str], kind: str) -> None:
    client = Client({"pictures==1.0": OTHER, "pictures=1.0": OTHER})
    with pytest.raises(CannotFetchError, match=r"pictures 1\.0 could not be fetched.*sha256.*pictures of cats"):
        fetch(package(DATA, client=kind), tmp_path, say=said.append, client=client)
    assert not (tmp_path / "packages/pictures-1.0").exists()


def test_an_archive_left_by_a_killed_call_is_used_when_it_is_whole(tmp_path: Path, said: list[str]) -> None:
    left = tmp_path / "archives/pictures-1.0"
    left.mkdir(parents=True)
    (left / "pictures.whl").write_bytes(DATA)
    client = Client({})
    fetch(package(DATA), tmp_path, say=said.append, client=client)
    assert client.calls == []


def test_an_archive_cut_short_is_fetched_again(tmp_path: Path, said: list[str]) -> None:
    left = tmp_path / "archives/pictures-1.0"
    left.mkdir(parents=True)
    (left / "pictures.whl").write_bytes(DATA[:50])
    client = Client({"pictures==1.0": DATA})
    fetch(package(DATA), tmp_path, say=said.append, client=client)
    assert len(client.calls) == 1


def test_a_folder_half_unpacked_is_not_taken_for_the_package(tmp_path: Path, said: list[str]) -> None:
    half = tmp_path / "packages/pictures-1.0.part/data"
    half.mkdir(parents=True)
    (half / "stale.txt").write_text("stale")
    assert not is_fetched(package(DATA), tmp_path)
    folder = fetch(package(DATA), tmp_path, say=said.append, client=Client({"pictures==1.0": DATA}))
    assert not (folder / "data/stale.txt").exists()


def test_members_cannot_leave_the_folder(tmp_path: Path, said: list[str]) -> None:
    data = archive({"data/../../../../evil.txt": "evil", "data/cat.txt": "cat"})
    folder = fetch(package(data), tmp_path / "deep/er", say=said.append, client=Client({"pictures==1.0": data}))
    strays = {path.name: path for path in tmp_path.rglob("evil.txt")}
    assert all(path.is_relative_to(folder) for path in strays.values())


def test_a_package_with_too_few_files_is_refused(tmp_path: Path, said: list[str]) -> None:
    with pytest.raises(CannotFetchError, match="2 files that we know, expected 9"):
        fetch(package(DATA, least=9), tmp_path, say=said.append, client=Client({"pictures==1.0": DATA}))


def test_a_machine_without_package_lists_gets_lists_of_its_own(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = Client({"pictures=1.0": DATA}, needs_lists=True)
    folder = fetch(package(DATA, client="apt"), Path("downloads"), say=said.append, client=client)
    assert (folder / "data/cat.txt").is_file()
    [update] = [call for call in client.calls if call[-1] == "update"]
    assert f"Dir::State::Lists={tmp_path}/downloads/apt/lists" in update


def test_another_version_of_debian_is_used_with_a_warning(tmp_path: Path, said: list[str]) -> None:
    folder = fetch(package(DATA, client="apt"), tmp_path, say=said.append, client=Client({"pictures": OTHER}))
    assert (folder / "data/cat.txt").read_text() == "another cat"
    assert any(line.startswith("WARNING") and "pictures=1.0" in line for line in said)


def test_without_apt_it_is_said_what_is_lost_and_the_rest_goes_on(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multimodal.data.kit.fetch.shutil.which", lambda name: None)
    both = [package(DATA, name="stamps", client="apt"), package(DATA)]
    fetched = fetch_all(tmp_path, both, say=said.append, client=Client({"pictures==1.0": DATA}))
    assert set(fetched.folders) == {"pictures"}
    assert "no apt-get" in fetched.missing["stamps"]
    assert "pictures of cats" in fetched.missing["stamps"]


def test_a_network_that_is_down_is_told_with_the_clients_words(tmp_path: Path, said: list[str]) -> None:
    with pytest.raises(CannotFetchError, match=r"Unable to locate.*pip download --no-deps pictures==1\.0"):
        fetch(package(DATA), tmp_path, say=said.append, client=Client({}))


def test_every_package_of_the_kit_is_pinned() -> None:
    assert len({one.name for one in PACKAGES}) == len(PACKAGES)
    for one in PACKAGES:
        assert len(one.sha256) == 64
        assert set(one.sha256) <= set("0123456789abcdef")
        assert one.licence
        assert one.least > 0
