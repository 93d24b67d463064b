"""The ledger: append-only, chained, and of two at once one wins."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tidemill.core import ledger as module
from tidemill.core.errors import Conflict, DataError, NotFound, Unavailable
from tidemill.core.ledger import Ledger
from tidemill.core.package import Package, write


def package(folder: Path, marker: str, name: str = "m") -> Package:
    signature = {"kind": "row", "inputs": [], "outputs": []}
    files = {"full.onnx": marker.encode()}
    return write(folder / f"src-{marker}", name=name, task="regression", signature=signature, files=files, documents={}, lineage={})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "home" / "ledger.db", actor="ann")


def test_versions_count_up_and_the_first_is_champion(ledger: Ledger, tmp_path: Path) -> None:
    first, second = (ledger.register(package(tmp_path, marker)) for marker in ("a", "b"))
    assert (first.version, second.version) == (1, 2)
    assert first.aliases == ("champion",)
    assert second.aliases == ()
    assert ledger.resolve("m").version == 1
    assert ledger.resolve("m/2").version == 2
    assert first.open().path == tmp_path / "home" / "packages" / "m" / "1"


def test_the_same_identity_is_registered_once(ledger: Ledger, tmp_path: Path) -> None:
    made = package(tmp_path, "a")
    assert ledger.register(made).version == ledger.register(made).version == 1
    assert [entry.kind for entry in ledger.history()] == ["registered", "promoted"]


def test_promotion_is_compare_and_swap(ledger: Ledger, tmp_path: Path) -> None:
    for marker in ("a", "b", "c"):
        ledger.register(package(tmp_path, marker))
    ledger.promote("m", 2, expected=1, why="better")
    with pytest.raises(Conflict, match="must be at version 1, is at 2"):
        ledger.promote("m", 3, expected=1, why="late")
    with pytest.raises(Conflict, match="is at version 2 already"):
        ledger.promote("m", 2, why="again")
    assert ledger.alias("m") == 2


def test_of_many_at_once_one_wins(ledger: Ledger, tmp_path: Path) -> None:
    for marker in "abcdef":
        ledger.register(package(tmp_path, marker))
    outcomes: list[str] = []
    gate = threading.Barrier(5)

    def promote(version: int) -> None:
        gate.wait()
        try:
            ledger.promote("m", version, expected=1, why="race")
            outcomes.append("won")
        except Conflict:
            outcomes.append("lost")

    threads = [threading.Thread(target=promote, args=(version,)) for version in range(2, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 4 + ["won"]


def test_rollback_goes_back_step_by_step(ledger: Ledger, tmp_path: Path) -> None:
    for marker in ("a", "b", "c"):
        ledger.register(package(tmp_path, marker))
    ledger.promote("m", 2, why="")
    ledger.promote("m", 3, why="")
    assert ledger.rollback("m", why="complaints").version == 2
    assert ledger.rollback("m", why="more").version == 1
    with pytest.raises(Conflict, match="no earlier version"):
        ledger.rollback("m", why="even more")
    ledger.promote("m", 3, why="mended")
    assert ledger.rollback("m", why="not mended").version == 1


def test_other_aliases_are_their_own(ledger: Ledger, tmp_path: Path) -> None:
    for marker in ("a", "b"):
        ledger.register(package(tmp_path, marker))
    ledger.promote("m", 2, alias="challenger", expected=None, why="")
    assert ledger.alias("m") == 1
    assert ledger.resolve("m@challenger").version == 2
    with pytest.raises(NotFound, match="challenger"):
        ledger.resolve("m@chalenger")


def test_unknown_things_list_the_known(ledger: Ledger, tmp_path: Path) -> None:
    ledger.register(package(tmp_path, "a", name="flights"))
    with pytest.raises(NotFound, match="did you mean 'flights'"):
        ledger.resolve("flight")
    with pytest.raises(NotFound, match="known: 1"):
        ledger.resolve("flights/4")
    with pytest.raises(NotFound):
        ledger.promote("flights", 9, why="")


def test_what_served_on_a_date_has_an_answer(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for at, marker in (("2026-01-01T00:00:00.000Z", "a"), ("2026-02-01T00:00:00.000Z", "b")):
        monkeypatch.setattr(module, "now", lambda at=at: at)
        version = ledger.register(package(tmp_path, marker))
        if version.version > 1:
            ledger.promote("m", version.version, why="")
    assert ledger.serving_at("m", "2025-12-31") is None
    assert ledger.serving_at("m", "2026-01-15") == 1
    assert ledger.serving_at("m", "2026-02-02") == 2


def test_the_story_is_told_in_sentences(ledger: Ledger, tmp_path: Path) -> None:
    ledger.register(package(tmp_path, "a"), why="run 7")
    ledger.record("refused", "m", why="roc_auc fell")
    said = [str(entry).partition("  ")[2] for entry in ledger.history("m")]
    assert said == [
        "m version 1 was registered by ann: run 7",
        "m version 1 became champion by ann: the first version that keeps its contract",
        "a candidate for m was refused by ann: roc_auc fell",
    ]


def test_a_changed_past_is_found(ledger: Ledger, tmp_path: Path) -> None:
    ledger.register(package(tmp_path, "a"))
    ledger.verify()
    with sqlite3.connect(ledger.url) as db:
        db.execute("UPDATE events SET why = 'because' WHERE seq = 1")
    db.close()
    with pytest.raises(DataError, match="event 1"):
        ledger.verify()


def test_a_held_ledger_is_unavailable(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.register(package(tmp_path, "a"))
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0.2)
    code = (
        "import sqlite3, sys, time; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('BEGIN EXCLUSIVE');"
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, ledger.url], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Unavailable, match="another process holds it"):
            ledger.alias("m")
    finally:
        holder.kill()
        holder.communicate()
    assert ledger.alias("m") == 1


def test_a_file_that_is_no_ledger_is_said(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, not at all, by no means " * 20, encoding="utf-8")
    with pytest.raises(DataError, match="must be an SQLite database"):
        Ledger(tmp_path / "ledger.db").names()


def test_a_killed_registration_leaves_the_ledger_as_it_was(ledger: Ledger, tmp_path: Path) -> None:
    ledger.register(package(tmp_path, "a"))
    package(tmp_path, "b")
    code = (
        "import os, sys; from pathlib import Path; from tidemill.core import ledger as l; from tidemill.core.package import Package\n"
        "l.Ledger._append = lambda *a, **k: os.kill(os.getpid(), 9)\n"
        "l.Ledger(sys.argv[1]).register(Package.open(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", code, ledger.url, str(tmp_path / "src-b")], check=False)
    assert done.returncode == -9
    assert [version.version for version in ledger.versions("m")] == [1]
    assert ledger.register(Package.open(tmp_path / "src-b")).version == 2
    ledger.verify()


def test_what_a_killed_writer_left_half_done_is_undone_by_who_reads_next(tmp_path: Path) -> None:
    """A process that ends in the middle of a commit leaves its journal; a reader that may not write could not read past it."""
    whole, left = tmp_path / "whole", tmp_path / "left"
    ledger = Ledger(whole / "ledger.db")
    ledger.record("note", "tiny", why="begun")
    writer = sqlite3.connect(whole / "ledger.db", isolation_level=None)
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("BEGIN IMMEDIATE")
    for number in range(200):  # more than its cache holds, so that half of it is in the file
        writer.execute(
            "INSERT INTO events SELECT seq + 1 + ?, at, actor, kind, name, version, alias, ?, evidence, hash FROM events LIMIT 1",
            (number, "x" * 2000),
        )
    left.mkdir()
    for file in whole.glob("ledger.db*"):
        (left / file.name).write_bytes(file.read_bytes())
    writer.close()
    assert (left / "ledger.db-journal").stat().st_size > 0
    assert [entry.why for entry in Ledger(left / "ledger.db").history("tiny")] == ["begun"]
    assert not (left / "ledger.db-journal").exists()
