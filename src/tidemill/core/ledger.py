"""The append-only record of versions, aliases and decisions: who, when, why, on which evidence.

The truth is one table of events in SQLite, or PostgreSQL for a team; everything else is folded from it. Each event
carries the hash of the one before it, so that a change to the past shows. Changing an alias is compare-and-swap: of
two at once one wins, the other gets `Conflict`.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
import shutil
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tidemill.core.artifact import PARTIAL, hash_json, replace_folder, sweep, sync
from tidemill.core.errors import ConfigError, Conflict, DataError, NotFound, TidemillError, Unavailable
from tidemill.core.events import now
from tidemill.core.load import need
from tidemill.core.package import MANIFEST, Package
from tidemill.core.project import check_name

CHAMPION = "champion"
BUSY_TIMEOUT_S = 5.0

Kind = Literal["registered", "promoted", "rolled_back", "refused", "imported", "exported", "deployed", "not_deployed", "drift", "note"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One event of the ledger."""

    seq: int
    at: str
    actor: str
    kind: Kind
    name: str
    version: int | None
    alias: str | None
    why: str
    evidence: dict[str, Any]
    hash: str

    def __str__(self) -> str:
        """The event as a sentence."""
        subject = f"{self.name} version {self.version}" if self.version is not None else self.name
        said = {
            "registered": f"{subject} was registered",
            "promoted": f"{subject} became {self.alias}",
            "rolled_back": f"{self.alias} of {self.name} went back to version {self.version}",
            "refused": f"a candidate for {self.name} was refused" if self.version is None else f"{subject} was refused",
            "imported": f"{self.alias} of {self.name} was moved to version {self.version} from outside",
            "exported": f"{subject} was exported",
            "deployed": f"{subject} was deployed",
            "not_deployed": f"{subject} could not be deployed",
            "drift": f"drift was reported for {subject}",
            "note": f"a note on {subject}",
        }[self.kind]
        return f"{self.at[:19].replace('T', ' ')}  {said} by {self.actor}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered package."""

    name: str
    version: int
    identity: str
    path: Path
    at: str
    aliases: tuple[str, ...] = ()
    evidence: dict[str, Any]

    def open(self) -> Package:
        return Package.open(self.path, version=str(self.version))


class Ledger:
    """The ledger at `url`: a file path, `sqlite:///path`, or `postgresql://...`.

    Safe from several processes and threads (each call opens its own connection). Packages live in `packages`, beside
    an SQLite file by default.

    Raises:
        Unavailable: From every method, if another process holds the ledger for longer than five seconds.
    """

    def __init__(self, url: str | Path, *, packages: Path | None = None, actor: str | None = None) -> None:
        self.url = str(url).removeprefix("sqlite:///")
        self._postgres = self.url.startswith(("postgresql://", "postgres://"))
        if packages is None:
            if self._postgres:
                raise ConfigError("a PostgreSQL ledger needs the folder of its packages")
            packages = Path(self.url).parent / "packages"
        self.packages = packages
        self.actor = actor or _user()

    def register(self, package: Package, *, why: str = "", champion_if_first: bool = True) -> Version:
        """Copy a package in as the next version of its name; the first one becomes champion.

        A package whose identity is already registered is not registered again: its version is returned, and its folder mended
        where it is damaged.

        Raises:
            ConfigError: If the package's name cannot be that of a folder.
            Unavailable: If another process holds the ledger.
        """
        check_name(package.name)
        with self._folder(package.name) as folder:
            partial = folder / f"{PARTIAL}{uuid.uuid4().hex[:8]}"
            try:
                _copy(package, partial)
                with self._transaction() as db:
                    known = self._fold(db, package.name)
                    for version in known.values():
                        if version.identity == package.identity:
                            _mend(version, partial)
                            return version
                    number = max(known, default=0) + 1
                    replace_folder(partial, folder / str(number))
                    facts = {"identity": package.identity, "path": f"{package.name}/{number}", "summary": _summary(package)}
                    self._append(db, "registered", package.name, version=number, why=why, evidence=facts)
                    if champion_if_first and self._alias(db, package.name, CHAMPION) is None:
                        first = "the first version that keeps its contract"
                        self._append(db, "promoted", package.name, version=number, alias=CHAMPION, why=first)
                return self.version(package.name, number)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def promote(
        self,
        name: str,
        version: int,
        *,
        alias: str = CHAMPION,
        expected: int | Literal["any"] | None = "any",
        why: str,
        evidence: Mapping[str, Any] | None = None,
        kind: Kind = "promoted",
    ) -> Entry:
        """Point `alias` of `name` at `version`.

        Args:
            expected: The version that the caller believes the alias to be at (None: at none); "any" does not care.

        Raises:
            NotFound: If the version is not registered.
            Conflict: If the alias is elsewhere than `expected`, or already at `version`.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", alias):
            raise ConfigError(f"alias: must be lower-case letters, digits, - and _, got {alias!r}")
        with self._transaction() as db:
            known = self._fold(db, name)
            if version not in known:
                raise NotFound(f"version of {name}", str(version), [str(number) for number in known])
            current = self._alias(db, name, alias)
            if expected != "any" and current != expected:
                raise Conflict(
                    f"{alias} of {name} must be at version {expected}, is at {current}: someone else moved it",
                    hint="look again and decide anew",
                )
            if current == version:
                raise Conflict(f"{alias} of {name} is at version {version} already")
            return self._append(db, kind, name, version=version, alias=alias, why=why, evidence={**(evidence or {}), "before": current})

    def rollback(self, name: str, *, alias: str = CHAMPION, why: str) -> Entry:
        """Point `alias` at the version that it was at before its present one.

        Raises:
            Conflict: If it was at no other version before.
        """
        stack: list[int] = []
        for entry in self.history(name):
            if entry.alias != alias or entry.kind not in _MOVES or entry.version is None:
                continue
            if entry.kind == "rolled_back":
                stack.pop()
            else:
                stack.append(entry.version)
        if len(stack) < 2:
            raise Conflict(f"{alias} of {name} has no earlier version to go back to")
        current, before = stack[-1], stack[-2]
        return self.promote(name, before, alias=alias, expected=current, why=why, kind="rolled_back")

    def record(self, kind: Kind, name: str, *, version: int | None = None, why: str, evidence: Mapping[str, Any] | None = None) -> Entry:
        """Append an event that moves nothing: a refusal, a deployment, a drift alarm, a note."""
        if kind in _MOVES or kind == "registered":
            raise ConfigError(f"{kind} is recorded by its own method")
        with self._transaction() as db:
            return self._append(db, kind, name, version=version, why=why, evidence=dict(evidence or {}))

    def head(self) -> int:
        """The number of the newest event, 0 before the first: cheap to ask again and again, and waits for no writer.

        Raises:
            Unavailable: If the ledger does not answer.
        """
        if not self._postgres:
            with self._transaction(write=False) as db:
                return int(db.all("SELECT COALESCE(MAX(seq), 0) FROM events")[0][0])
        return _postgres_head(self.url)

    def names(self) -> list[str]:
        with self._transaction(write=False) as db:
            return [row[0] for row in db.all("SELECT DISTINCT name FROM events WHERE kind = 'registered' ORDER BY name")]

    def versions(self, name: str) -> list[Version]:
        """The versions of `name`, oldest first; empty where it is unknown."""
        with self._transaction(write=False) as db:
            return list(self._fold(db, name).values())

    def version(self, name: str, number: int) -> Version:
        for version in self.versions(name):
            if version.version == number:
                return version
        raise NotFound(f"version of {name}", str(number), [str(version.version) for version in self.versions(name)])

    def alias(self, name: str, alias: str = CHAMPION) -> int | None:
        """The version that `alias` of `name` points at."""
        with self._transaction(write=False) as db:
            return self._alias(db, name, alias)

    def resolve(self, ref: str) -> Version:
        """The version that a reference names: `NAME` (its champion, else its newest), `NAME@alias`, `NAME/number` or `NAME@number`.

        Raises:
            NotFound: If the name, alias or version is unknown; lists the known ones.
        """
        name, _, alias = ref.removeprefix("models:/").partition("@")
        name, _, number = name.partition("/")
        if alias.isdigit():
            number, alias = alias, ""
        versions = {version.version: version for version in self.versions(name)}
        if not versions:
            raise NotFound("model", name, self.names())
        if number:
            if not number.isdigit() or int(number) not in versions:
                raise NotFound(f"version of {name}", number, [str(known) for known in versions])
            return versions[int(number)]
        found = self.alias(name, alias or CHAMPION)
        if found is None and alias:
            raise NotFound(f"alias of {name}", alias, {known for version in versions.values() for known in version.aliases})
        return versions[found if found is not None else max(versions)]

    def history(self, name: str | None = None) -> list[Entry]:
        """Every event, oldest first."""
        with self._transaction(write=False) as db:
            return self._entries(db, name)

    def serving_at(self, name: str, at: str, *, alias: str = CHAMPION) -> int | None:
        """The version that `alias` pointed at on a date or time in ISO 8601."""
        moves = [entry for entry in self.history(name) if entry.alias == alias and entry.kind in _MOVES and entry.at <= at]
        return moves[-1].version if moves else None

    def verify(self) -> None:
        """Check the chain of hashes.

        Raises:
            DataError: If an event was changed, removed or put in after the fact; names the first.
        """
        before = ""
        for entry in self.history():
            if entry.hash != _hash(before, entry):
                raise DataError(f"ledger {self.url}: event {entry.seq} is not what was written")
            before = entry.hash

    @contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """The folder of a name's packages, held by this process and swept of what killed ones left."""
        folder = self.packages / name
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            sweep(folder)
            yield folder
        finally:
            os.close(held)

    def _append(
        self,
        db: _Connection,
        kind: Kind,
        name: str,
        *,
        version: int | None = None,
        alias: str | None = None,
        why: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> Entry:
        last = db.all("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")
        seq, before = (last[0][0] + 1, last[0][1]) if last else (1, "")
        draft = Entry(
            seq=seq, at=now(), actor=self.actor, kind=kind, name=name, version=version, alias=alias, why=why,
            evidence=json.loads(json.dumps(evidence or {})), hash="",
        )  # fmt: skip
        digest = _hash(before, draft)
        db.run(
            "INSERT INTO events (seq, at, actor, kind, name, version, alias, why, evidence, hash) VALUES (?,?,?,?,?,?,?,?,?,?)",
            (seq, draft.at, draft.actor, kind, name, version, alias, why, json.dumps(draft.evidence), digest),
        )
        return Entry(**{**draft.__dict__, "hash": digest})

    def _entries(self, db: _Connection, name: str | None) -> list[Entry]:
        columns = "seq, at, actor, kind, name, version, alias, why, evidence, hash"
        if name is None:
            rows = db.all(f"SELECT {columns} FROM events ORDER BY seq")
        else:
            rows = db.all(f"SELECT {columns} FROM events WHERE name = ? ORDER BY seq", (name,))
        return [Entry(**{**dict(zip(columns.split(", "), row, strict=True)), "evidence": json.loads(row[8])}) for row in rows]

    def _alias(self, db: _Connection, name: str, alias: str) -> int | None:
        moves = [entry for entry in self._entries(db, name) if entry.alias == alias and entry.kind in _MOVES]
        return moves[-1].version if moves else None

    def _fold(self, db: _Connection, name: str) -> dict[int, Version]:
        entries = self._entries(db, name)
        aliases = {entry.alias: entry.version for entry in entries if entry.kind in _MOVES and entry.alias}
        return {
            entry.version: Version(
                name=name,
                version=entry.version,
                identity=entry.evidence["identity"],
                path=self.packages / entry.evidence["path"],
                at=entry.at,
                aliases=tuple(sorted(alias for alias, version in aliases.items() if version == entry.version)),
                evidence=entry.evidence.get("summary", {}),
            )
            for entry in entries
            if entry.kind == "registered" and entry.version is not None
        }

    @contextmanager
    def _transaction(self, *, write: bool = True) -> Iterator[_Connection]:
        """One serialised transaction: committed when the block ends well, else undone. Reading makes and changes no file."""
        db = _Postgres(self.url) if self._postgres else _Sqlite(self.url, write=write)
        try:
            yield db
            db.commit()
        finally:
            db.close()


_MOVES = ("promoted", "rolled_back", "imported")

_TABLE = """CREATE TABLE IF NOT EXISTS events (
    seq BIGINT PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    version BIGINT, alias TEXT, why TEXT NOT NULL, evidence TEXT NOT NULL, hash TEXT NOT NULL)"""


class _Connection:
    """One exclusive transaction; closing without `commit` undoes it."""

    _db: Any

    def run(self, sql: str, values: tuple[Any, ...] = ()) -> Any:
        return self._db.execute(sql, values)

    def all(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return list(self.run(sql, values).fetchall())

    def commit(self) -> None:
        self._db.commit()

    def close(self) -> None:
        self._db.close()


class _Sqlite(_Connection):
    def __init__(self, path: str, *, write: bool) -> None:
        self._path = path
        try:
            if write:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._db = self._connected(path)
            else:
                self._db = self._connected(f"{Path(path).absolute().as_uri()}?mode=ro" if Path(path).exists() else ":memory:")
        except (sqlite3.OperationalError, OSError) as error:
            raise Unavailable(f"ledger {path} cannot be opened: {error}") from error
        try:
            self._begin(write)
        except TidemillError:
            self._db.close()
            raise

    def _connected(self, path: str) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, uri=path.startswith("file:"))

    def _begin(self, write: bool) -> None:
        if write:
            self.run("PRAGMA synchronous = FULL")
            self.run("BEGIN IMMEDIATE")
            self.run(_TABLE)
            return
        try:
            self._db.execute("SELECT 1 FROM sqlite_master")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
                # Whoever wrote last was ended in the middle of it; what is half done is undone by the next that may write.
                self._db.close()
                self._db = self._connected(self._path)
        except sqlite3.DatabaseError:
            pass  # told below
        self.run("BEGIN")
        if not self.all("SELECT 1 FROM sqlite_master WHERE name = 'events'"):  # nothing was ever written
            self._db.close()
            self._db = self._connected(":memory:")
            self.run("BEGIN")
            self.run(_TABLE)

    def run(self, sql: str, values: tuple[Any, ...] = ()) -> Any:
        try:
            return self._db.execute(sql, values)
        except sqlite3.OperationalError as error:
            hints = ("another process holds it; try again, or find and end that process", "make room or mend its rights, then try again")
            raise Unavailable(f"ledger {self._path}: {error}", hint=hints["locked" not in str(error)]) from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"ledger {self._path} must be an SQLite database: {error}", hint="restore it from a backup") from error

    def commit(self) -> None:
        self.run("COMMIT")


class _Postgres(_Connection):
    def __init__(self, url: str) -> None:
        psycopg = need("psycopg", "a PostgreSQL ledger")
        try:
            self._db = psycopg.connect(url, connect_timeout=int(BUSY_TIMEOUT_S))
            self._db.execute(f"SET lock_timeout = '{int(BUSY_TIMEOUT_S * 1000)}ms'")
            self._db.execute("SELECT pg_advisory_xact_lock(7450931)")
            self._db.execute(_TABLE)
        except psycopg.OperationalError as error:
            raise Unavailable(f"ledger at PostgreSQL does not answer: {error}") from error

    def run(self, sql: str, values: tuple[Any, ...] = ()) -> Any:
        return self._db.execute(sql.replace("?", "%s"), values)


def _postgres_head(url: str) -> int:
    """As `Ledger.head`: one connection and one indexed look-up, without the lock that writers take."""
    psycopg = need("psycopg", "a PostgreSQL ledger")
    try:
        with psycopg.connect(url, connect_timeout=int(BUSY_TIMEOUT_S)) as db:
            return int(db.execute("SELECT COALESCE(MAX(seq), 0) FROM events").fetchone()[0])
    except psycopg.errors.UndefinedTable:  # nothing was ever written
        return 0
    except psycopg.OperationalError as error:
        raise Unavailable(f"ledger at PostgreSQL does not answer: {error}") from error


def _hash(before: str, entry: Entry) -> str:
    return hash_json([before, {key: value for key, value in entry.__dict__.items() if key != "hash"}])


def _copy(package: Package, target: Path) -> None:
    """The package's own files, and no other that lies in its folder."""
    for name in [MANIFEST, *package.manifest["files"]]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package.path / name, target / name)
    sync(target)


def _mend(version: Version, copy: Path) -> None:
    """Put a whole copy in the place of a registered package that is not whole any more."""
    try:
        version.open()
    except DataError:
        replace_folder(copy, version.path)


def _summary(package: Package) -> dict[str, Any]:
    """The numbers that a list of versions shows."""
    quality = package.evidence().get("quality", {})
    return {key: quality[key] for key in ("metric", "value", "low", "high") if key in quality}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
