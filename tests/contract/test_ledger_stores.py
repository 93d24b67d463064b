"""A ledger keeps the same promises on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tidemill.core.errors import Conflict, NotFound, Unavailable
from tidemill.core.ledger import Ledger
from tidemill.core.package import Package, write


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Ledger]:
    """Opens the same, at first empty, ledger again and again, as separate processes would."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgresql":
        psycopg = pytest.importorskip("psycopg")
        server = request.getfixturevalue("postgresql")
        database = f"ledger_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        url = f"{server.rpartition('/')[0]}/{database}"
    return lambda: Ledger(url, packages=tmp_path / "packages", actor="ann")


def package(folder: Path, marker: str) -> Package:
    signature = {"kind": "row", "inputs": [], "outputs": []}
    files: dict[str, bytes | Path] = {"full.onnx": marker.encode()}
    return write(folder / f"made-{marker}", name="m", task="regression", signature=signature, files=files, documents={}, lineage={})


def test_what_one_writes_another_reads(opened: Callable[[], Ledger], tmp_path: Path) -> None:
    for marker in "ab":
        opened().register(package(tmp_path, marker), why=f"made of {marker}, 100 % of it")
    assert [version.version for version in opened().versions("m")] == [1, 2]
    assert opened().alias("m") == 1
    assert opened().resolve("m/2").open().path.is_dir()
    assert [entry.kind for entry in opened().history("m")] == ["registered", "promoted", "registered"]
    assert opened().history("m")[0].why == "made of a, 100 % of it"


def test_an_empty_ledger_knows_nothing(opened: Callable[[], Ledger]) -> None:
    assert opened().versions("m") == []
    with pytest.raises(NotFound):
        opened().resolve("m")


def test_promotion_and_rollback_are_told(opened: Callable[[], Ledger], tmp_path: Path) -> None:
    for marker in "ab":
        opened().register(package(tmp_path, marker))
    opened().promote("m", 2, expected=1, why="better")
    with pytest.raises(Conflict):
        opened().promote("m", 1, expected=1, why="late")
    assert opened().alias("m") == 2
    opened().rollback("m", why="worse live")
    assert opened().alias("m") == 1
    assert [entry.why for entry in opened().history("m")][-2:] == ["better", "worse live"]


def test_of_many_at_once_one_wins(opened: Callable[[], Ledger], tmp_path: Path) -> None:
    for marker in "abcde":
        opened().register(package(tmp_path, marker))
    outcomes: list[str] = []
    start = threading.Barrier(4)

    def promote(version: int) -> None:
        start.wait()
        try:
            opened().promote("m", version, expected=1, why=f"version {version}")
            outcomes.append("won")
        except Conflict:
            outcomes.append("lost")

    threads = [threading.Thread(target=promote, args=(version,)) for version in (2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost", "lost", "lost", "won"]


def test_a_ledger_that_does_not_answer_is_unavailable(free_port: int, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(Unavailable, match="does not answer"):
        Ledger(f"postgresql://nobody@127.0.0.1:{free_port}/x", packages=tmp_path).versions("m")


def test_the_head_moves_with_every_event_and_waits_for_nobody(opened: Callable[[], Ledger], tmp_path: Path) -> None:
    ledger = opened()
    assert ledger.head() == 0
    ledger.register(package(tmp_path, "a"))
    before = ledger.head()
    ledger.record("deployed", "m", version=1, why="at http://127.0.0.1:8000")
    assert opened().head() == before + 1
    assert "m version 1 was deployed by" in str(ledger.history("m")[-1])


def test_a_version_is_named_by_its_number_too(opened: Callable[[], Ledger], tmp_path: Path) -> None:
    opened().register(package(tmp_path, "a"))
    assert opened().resolve("m@1") == opened().resolve("m/1")
    with pytest.raises(NotFound, match="version of m '2'"):
        opened().resolve("m@2")
