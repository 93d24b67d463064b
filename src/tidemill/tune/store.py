"""The trials of a search, shared by its workers: SQLite in the search's folder, or PostgreSQL between machines.

A worker claims a trial in one exclusive transaction: what ended and what runs is read, trials whose worker is gone are
given up, the next one is drawn and entered. A finished trial is one row written once, so that no end of a process, at any
moment, loses it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tidemill.core.errors import Unavailable
from tidemill.core.load import need
from tidemill.tune.owners import FolderOwners, Owners, PostgresOwners, postgres
from tidemill.tune.trial import Trial

DATABASE = "trials.db"
BUSY_TIMEOUT_S = 60.0

_TABLES = (
    """CREATE TABLE IF NOT EXISTS tidemill_trials (study TEXT NOT NULL, number BIGINT NOT NULL, owner TEXT NOT NULL,
    state TEXT NOT NULL, params TEXT NOT NULL, result TEXT NOT NULL, PRIMARY KEY (study, number))""",
    """CREATE TABLE IF NOT EXISTS tidemill_studies (study TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (study, key))""",
)


@dataclass(frozen=True, kw_only=True)
class Board:
    """What a worker sees while it claims."""

    finished: list[Trial]
    """Trials that ended, by number."""
    running: list[Trial]
    """Trials that others work on, by number."""
    number: int
    """The number that the next trial gets."""
    notes: dict[str, Any]
    """What workers agreed on; a key that is added here is there for all of them from then on."""


class Store:
    """The trials of one study. One object a process; not for several threads.

    Raises:
        Unavailable: From every method, if the database does not answer.
    """

    def __init__(self, folder: Path, *, study: str, url: str | None = None) -> None:
        self.study = study
        self._url = url
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._owners: Owners = PostgresOwners(url) if url else FolderOwners(folder)
        with self._transaction(lock="") as db:
            for table in _TABLES:
                db.execute(table)

    def claim(self, choose: Callable[[Board], Mapping[str, Any] | None]) -> tuple[Trial | None, Board]:
        """The next trial, entered as this worker's, or None where `choose` gives no parameters; and what was seen."""
        self._owners.renew()
        with self._transaction() as db:
            board = self._board(db)
            agreed = set(board.notes)
            params = choose(board)
            for key in board.notes.keys() - agreed:
                db.execute("INSERT INTO tidemill_studies VALUES (?, ?, ?)", (self.study, key, json.dumps(board.notes[key])))
            if params is None:
                return None, board
            trial = Trial(number=board.number, params=dict(params))
            row = (self.study, trial.number, self._owners.me, "running", json.dumps(trial.params), "{}")
            db.execute("INSERT INTO tidemill_trials VALUES (?, ?, ?, ?, ?, ?)", row)
            return trial, board

    def finish(self, trial: Trial) -> bool:
        """Enter how a trial of this worker's ended; False where it was given up meanwhile, and what came of it does not count."""
        result = {key: value for key, value in vars(trial).items() if key not in ("number", "params", "state")}
        with self._transaction() as db:
            done = db.execute(
                "UPDATE tidemill_trials SET state = ?, result = ? WHERE study = ? AND number = ? AND owner = ? AND state = 'running'",
                (trial.state, json.dumps(result), self.study, trial.number, self._owners.me),
            )
            return bool(done.rowcount)

    def finished(self) -> list[Trial]:
        """The trials that ended, by number."""
        with self._transaction() as db:
            return [trial for trial, _ in self._rows(db) if trial.state != "running"]

    def notes(self) -> dict[str, Any]:
        """What workers agreed on."""
        with self._transaction() as db:
            return self._notes(db)

    def close(self) -> None:
        self._owners.close()

    def _board(self, db: _Database) -> Board:
        rows = self._rows(db)
        running = []
        for trial, owner in rows:
            if trial.state != "running":
                continue
            if self._owners.is_alive(owner):
                running.append(trial)
            else:
                db.execute("DELETE FROM tidemill_trials WHERE study = ? AND number = ?", (self.study, trial.number))
        finished = [trial for trial, _ in rows if trial.state != "running"]
        taken = {trial.number for trial in (*finished, *running)}
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        return Board(finished=finished, running=running, number=number, notes=self._notes(db))

    def _rows(self, db: _Database) -> list[tuple[Trial, str]]:
        rows = db.execute(
            "SELECT number, params, state, result, owner FROM tidemill_trials WHERE study = ? ORDER BY number", (self.study,)
        ).fetchall()
        return [
            (Trial(number=number, params=json.loads(params), state=state, **json.loads(result)), owner)
            for number, params, state, result, owner in rows
        ]

    def _notes(self, db: _Database) -> dict[str, Any]:
        rows = db.execute("SELECT key, value FROM tidemill_studies WHERE study = ?", (self.study,)).fetchall()
        return {key: json.loads(value) for key, value in rows}

    @contextmanager
    def _transaction(self, *, lock: str | None = None) -> Iterator[_Database]:
        """One exclusive transaction: committed when the block ends well, else undone."""
        with _postgres(self._url, self.study if lock is None else lock) if self._url else _sqlite(self._folder / DATABASE) as db:
            yield db


class _Database(Protocol):
    """What both databases offer."""

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> Any: ...


@contextmanager
def _sqlite(path: Path) -> Iterator[_Database]:
    try:
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    except sqlite3.OperationalError as error:
        raise Unavailable(f"{path} must be a database that can be opened: {error}") from error
    try:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise Unavailable(f"{path} must be a database that can be written: {error}") from error
    finally:
        db.close()


class _Marked:
    """PostgreSQL that takes `?` for a value, as SQLite does."""

    def __init__(self, db: Any) -> None:
        self._db = db

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> Any:
        return self._db.execute(sql.replace("?", "%s"), values)


@contextmanager
def _postgres(url: str, lock: str) -> Iterator[_Database]:
    psycopg = need("psycopg", "tune.storage")
    db = postgres(url)
    try:
        db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"tidemill tune {lock}",))
        yield _Marked(db)
        db.commit()
    except psycopg.OperationalError as error:
        raise Unavailable(f"tune.storage: PostgreSQL does not answer: {error}") from error
    finally:
        db.close()
