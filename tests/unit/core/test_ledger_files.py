"""What the ledger does with files: looking changes none, registering mends what was damaged and sweeps what was left."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tidemill.core import ledger as module
from tidemill.core.artifact import PARTIAL
from tidemill.core.errors import ConfigError, DataError, NotFound, Unavailable
from tidemill.core.ledger import Ledger
from tidemill.core.package import Package
from tidemill.testing.packages import tiny_package


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return tiny_package(tmp_path / "made")


def test_looking_makes_no_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "home" / "ledger.db")
    assert ledger.names() == []
    assert ledger.history() == []
    assert ledger.alias("tiny") is None
    with pytest.raises(NotFound):
        ledger.resolve("tiny")
    assert not list(tmp_path.iterdir())


def test_a_ledger_that_was_only_begun_is_empty(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    assert Ledger(tmp_path / "ledger.db").names() == []
    assert (tmp_path / "ledger.db").stat().st_size == 0


@pytest.mark.parametrize("name", ["ledger.db", "with space ?#% 文字.db"])
def test_reading_while_another_writes(name: str, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0.05)
    ledger = Ledger(tmp_path / name)
    ledger.register(package)
    other = sqlite3.connect(tmp_path / name, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        assert ledger.names() == ["tiny"], "a writer that has not committed keeps no reader out"
        with pytest.raises(Unavailable, match="locked; another process holds it"):
            ledger.record("note", "tiny", why="now")
        other.execute("ROLLBACK")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unavailable, match="locked; another process holds it"):
            ledger.names()
    finally:
        other.close()
    assert ledger.names() == ["tiny"]


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, but long enough to be looked at as one" * 20)
    for call in (lambda: Ledger(tmp_path / "ledger.db").names(), lambda: Ledger(tmp_path / "ledger.db").record("note", "x", why="")):
        with pytest.raises(DataError, match=r"must be an SQLite database.*restore it from a backup"):
            call()


@pytest.mark.parametrize("damage", ["flipped", "missing", "gone"])
def test_registering_the_same_again_mends_its_folder(damage: str, tmp_path: Path, package: Package) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    first = ledger.register(package)
    graph = first.path / "full.onnx"
    if damage == "flipped":
        content = graph.read_bytes()
        graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        graph.unlink()
    else:
        first.path.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError):
        first.open()
    again = ledger.register(package)
    assert (again.version, len(ledger.versions("tiny")), len(ledger.history())) == (1, 1, 2)
    assert first.open().identity == package.identity
    assert [path.name for path in first.path.parent.iterdir()] == ["1"]


def test_only_the_packages_own_files_are_copied_and_leftovers_go(tmp_path: Path, package: Package) -> None:
    (package.path / "manifest.json").write_text("of the stage that made it")
    (package.path / "notes").mkdir()
    (package.path / "notes" / "secret.txt").write_text("mine")
    ledger = Ledger(tmp_path / "ledger.db")
    (ledger.packages / "tiny" / f"{PARTIAL}killed").mkdir(parents=True)
    version = ledger.register(package)
    copied = {path.relative_to(version.path).as_posix() for path in version.path.rglob("*") if path.is_file()}
    assert copied == {"tidemill.json", *package.manifest["files"]}
    assert [path.name for path in version.path.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["../elsewhere", "Bad Name", "", "a/b", "文字", "a\n"])
def test_a_name_that_is_no_folders(name: str, tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "made", name=name)
    with pytest.raises(ConfigError, match="name: must be lower-case letters"):
        Ledger(tmp_path / "home" / "ledger.db").register(package)
    assert not (tmp_path / "home").exists()
