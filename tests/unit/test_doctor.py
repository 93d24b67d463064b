"""What `tidemill doctor` finds on this machine and in a home."""

from __future__ import annotations

import sqlite3
from importlib.util import find_spec
from pathlib import Path

import pytest

from tidemill import doctor
from tidemill.core.ledger import Ledger
from tidemill.core.load import EXTRAS
from tidemill.doctor import Finding, examine


def test_everything_is_looked_at_and_what_is_not_ok_says_what_to_do(tmp_path: Path) -> None:
    found = _by_what(tmp_path / "not" / "made")
    assert set(found) >= {"python", "processor", "disk", "home", "onnxruntime", "ledger", "[serve]", "[train]", "[torch]", "[mlflow]"}
    assert all(finding.hint for finding in found.values() if finding.state != "ok")
    assert found["home"].state == "ok"
    assert "none yet" in found["ledger"].detail
    assert not (tmp_path / "not").exists(), "looking makes nothing"


def test_an_absent_library_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == "httptools" else find_spec(module))
    finding = _by_what(tmp_path)["[serve]"]
    assert finding.state == "missing"
    assert "lacks httptools" in finding.detail
    assert finding.hint == "pip install 'tidemill[serve]'"


def test_the_extras_are_those_that_a_failed_import_names() -> None:
    for extra, modules in doctor._EXTRAS.items():
        for module in modules.values():
            assert EXTRAS[module] == extra


def test_a_ledger_that_was_tampered_with(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.record("note", "flights", why="first")
    assert "1 events" in _by_what(tmp_path)["ledger"].detail
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("UPDATE events SET why = 'never'")
    db.close()
    finding = _by_what(tmp_path)["ledger"]
    assert finding.state == "warning"
    assert "event 1 is not what was written" in finding.detail


def test_a_ledger_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, and long enough to be read as one" * 20)
    finding = _by_what(tmp_path)["ledger"]
    assert finding.state == "warning"
    assert "must be an SQLite database" in finding.detail
    assert finding.hint


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    finding = _by_what(tmp_path / "file")["home"]
    assert finding.state == "missing"
    assert "--home" in finding.hint


def _by_what(home: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(home)}
