"""Evidence may be added to a package that is in use: its identity stays, and it is whole at every moment."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tidemill.core.errors import DataError
from tidemill.core.package import MANIFEST, Package, add_evidence
from tidemill.testing.packages import tiny_package


def test_it_is_there_and_the_identity_stays(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "p", evidence={"latency": {"p99_ms": 1.0}}, version="3")
    added = add_evidence(package, "load", {"rows_per_s": 10})
    assert added.identity == package.identity
    assert added.version == "3"
    assert Package.open(tmp_path / "p").evidence() == {"latency": {"p99_ms": 1.0}, "load": {"rows_per_s": 10}}


def test_a_newer_measurement_takes_the_place_of_the_older(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "p", evidence={"latency": {"p99_ms": 1.0}})
    for value in (2.0, 3.0, 3.0):
        package = add_evidence(package, "latency", {"p99_ms": value})
    assert Package.open(tmp_path / "p").evidence() == {"latency": {"p99_ms": 3.0}}
    assert len(list((tmp_path / "p" / "evidence").iterdir())) == 1


def test_whoever_opened_it_before_sees_the_newest(tmp_path: Path) -> None:
    before = tiny_package(tmp_path / "p", evidence={"latency": {"p99_ms": 1.0}})
    add_evidence(before, "latency", {"p99_ms": 2.0})
    assert before.evidence() == {"latency": {"p99_ms": 2.0}}


def test_a_kill_between_the_steps_leaves_the_older_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tiny_package(tmp_path / "p", evidence={"latency": {"p99_ms": 1.0}})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tidemill.core.package.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        add_evidence(package, "latency", {"p99_ms": 2.0})
    assert Package.open(tmp_path / "p").evidence() == {"latency": {"p99_ms": 1.0}}


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "p")
    threads = [threading.Thread(target=add_evidence, args=(package, f"m{i}", {"value": i})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Package.open(tmp_path / "p").evidence() == {f"m{i}": {"value": i} for i in range(8)}


def test_a_damaged_package_takes_none(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "p")
    (tmp_path / "p" / "card.md").write_text("other")
    manifest = (tmp_path / "p" / MANIFEST).read_bytes()
    with pytest.raises(DataError, match="corrupted"):
        add_evidence(package, "latency", {"p99_ms": 1.0})
    assert (tmp_path / "p" / MANIFEST).read_bytes() == manifest
