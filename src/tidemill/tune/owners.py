"""Which workers are alive: each holds a lock that is let go when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

from tidemill.core.errors import Unavailable
from tidemill.core.load import need

CONNECT_TIMEOUT_S = 10

# Seconds until PostgreSQL gives up a machine that fell silent, so that its trials go to others.
SILENT_S = 60


class Owners(Protocol):
    """The workers of a search. `me` is this process, alive until `close`."""

    me: str

    def is_alive(self, owner: str) -> bool: ...
    def renew(self) -> None: ...
    def close(self) -> None: ...


class FolderOwners:
    """Workers on one machine, each with a file of the folder that it holds locked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.me = uuid.uuid4().hex
        self._held = self._path(self.me).open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def is_alive(self, owner: str) -> bool:
        if owner == self.me:
            return True
        try:
            descriptor = os.open(self._path(owner), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            self._path(owner).unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)

    def renew(self) -> None:
        """The kernel does not forget a lock."""

    def close(self) -> None:
        self._path(self.me).unlink(missing_ok=True)
        self._held.close()

    def _path(self, owner: str) -> Path:
        return self._folder / f"worker-{owner}.lock"


class PostgresOwners:
    """Workers on several machines, each with an advisory lock of a session of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open()

    def _open(self) -> None:
        self.me = uuid.uuid4().hex
        self._session = postgres(self._url)
        self._session.autocommit = True
        for name, value in (("idle", SILENT_S // 2), ("interval", SILENT_S // 6), ("count", 3)):
            self._session.execute(f"SET tcp_keepalives_{name} = {value}")
        self._session.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (_lock_of(self.me),))

    def is_alive(self, owner: str) -> bool:
        if owner == self.me:
            return True
        with postgres(self._url) as db:
            (taken,) = db.execute("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", (_lock_of(owner),)).fetchone()
        return not taken

    def renew(self) -> None:
        """Come back as another worker where the session was lost, and with it what this one had claimed."""
        try:
            self._session.execute("SELECT 1")
        except need("psycopg", "tune.storage").OperationalError:
            self._open()

    def close(self) -> None:
        self._session.close()


def postgres(url: str) -> Any:
    """A connection; the password comes from where libpq looks for it.

    Raises:
        Unavailable: If there is no answer.
        MissingDependency: If psycopg is not installed.
    """
    psycopg = need("psycopg", "tune.storage")
    try:
        return psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT_S)
    except psycopg.OperationalError as error:
        raise Unavailable(
            f"tune.storage: PostgreSQL does not answer: {error}", hint="is its address right, its password in PGPASSWORD?"
        ) from error


def _lock_of(owner: str) -> str:
    return f"tidemill tune worker {owner}"
