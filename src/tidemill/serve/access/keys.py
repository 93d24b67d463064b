"""API keys: made once and shown once, kept as hashes in a file that a running server follows.

A key is `tm_<id>_<secret>`, the id to find it by, the secret 256 random bits. The file holds the SHA-256 of the secret: of so many random bits a
slow hash would protect nothing more. Lookup is by id, comparison in constant time.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tidemill.core.errors import ConfigError, Conflict, NotFound
from tidemill.core.project import check_name
from tidemill.serve.access.scopes import Caller, checked_scopes

PREFIX = "tm_"

# How often the file is looked at; a revoked key is refused from then on.
LOOK_S = 1.0

_NOBODY = "0" * 64


class KeyRing:
    """The keys of a file, as they are now. Safe from several threads.

    Raises:
        ConfigError: If the file is not there or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._looked = float("-inf")
        self._entries: Mapping[str, Mapping[str, Any]] = {}
        if not path.is_file():
            raise ConfigError(f"serve.auth.keys: {path} must exist, does not", hint="tidemill serve keys add NAME makes it")
        self._follow()

    def caller(self, key: str) -> Caller:
        """Whose key it is.

        Raises:
            PermissionError: If it is not known, revoked or expired; says which, without the key.
        """
        self._follow()
        key_id, _, secret = key.removeprefix(PREFIX).partition("_")
        entry = self._entries.get(key_id)
        # Compared also where there is no such id, so that time does not tell.
        right = hmac.compare_digest(_hash(secret), entry["sha256"] if entry is not None else _NOBODY)
        if entry is None or not right:
            raise PermissionError("the key is not known")
        ends = entry["expires"]
        if ends is not None and dt.datetime.fromisoformat(ends) <= dt.datetime.now(dt.UTC):
            raise PermissionError(f"key {key_id} of {entry['name']} ended at {ends}")
        return Caller(name=entry["name"], scopes=frozenset(entry["scopes"]))

    def _follow(self) -> None:
        """Read the file anew where it changed; one that is unreadable leaves the keys as they were."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        with self._lock:
            self._looked = now
            try:
                stat = self._path.stat()
                stamp = (stat.st_mtime_ns, stat.st_ino)
                if stamp != self._stamp:
                    self._entries = _read(self._path)
                    self._stamp = stamp
            except (OSError, ConfigError) as error:
                if self._stamp is None:
                    raise ConfigError(f"serve.auth.keys: {self._path} must be readable: {error}") from error


def add(path: Path, name: str, *, scopes: Sequence[str], expires: dt.datetime | None = None) -> str:
    """A new key for `name`, entered into the file at `path`; the only time that it is seen.

    Raises:
        Conflict: If `name` has a valid key already.
        ConfigError: If a scope names no verb.
    """
    check_name(name)
    checked_scopes(tuple(scopes))
    with _changing(path) as entries:
        if _valid(entries, name):
            raise Conflict(f"{name!r} must have no valid key, has one", hint=f"tidemill serve keys rotate {name}")
        return _enter(entries, name, scopes, expires)


def rotate(path: Path, name: str, *, overlap: dt.timedelta) -> str:
    """A new key for `name` with the scopes of the old one, which ends after `overlap`.

    Raises:
        NotFound: If `name` has no valid key.
    """
    with _changing(path) as entries:
        valid = _valid(entries, name)
        if not valid:
            raise NotFound("key of", name, {entry["name"] for entry in entries.values()})
        newest = max(valid, key=lambda entry: entry["created"])
        made = _enter(entries, name, newest["scopes"], _moment(newest["expires"]))
        until = dt.datetime.now(dt.UTC) + overlap
        for entry in valid:
            entry["expires"] = min(filter(None, (_moment(entry["expires"]), until))).isoformat(timespec="seconds")
        return made


def revoke(path: Path, which: str) -> int:
    """End the key with the id `which`, or every valid key of the name `which`, now; how many those were.

    Raises:
        NotFound: If there is none.
    """
    with _changing(path) as entries:
        found = [entries[which]] if which in entries else _valid(entries, which)
        if not found:
            raise NotFound("key", which, {*entries, *(entry["name"] for entry in entries.values())})
        for entry in found:
            entry["expires"] = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        return len(found)


def listed(path: Path) -> list[dict[str, Any]]:
    """Every key without its hash: id, name, scopes, created, expires, valid."""
    if not path.is_file():
        return []
    now = dt.datetime.now(dt.UTC)
    return [
        {"id": key_id, **{key: entry[key] for key in ("name", "scopes", "created", "expires")}, "valid": _is_valid(entry, now)}
        for key_id, entry in _read(path).items()
    ]


def _enter(entries: dict[str, dict[str, Any]], name: str, scopes: Sequence[str], expires: dt.datetime | None) -> str:
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    while key_id in entries:
        key_id = secrets.token_hex(4)
    entries[key_id] = {
        "name": name,
        "scopes": list(scopes),
        "sha256": _hash(secret),
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        "expires": expires.isoformat(timespec="seconds") if expires is not None else None,
    }
    return f"{PREFIX}{key_id}_{secret}"


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """The entries of the file, written back whole at the end; one process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        entries = _read(path) if path.is_file() else {}
        yield entries
        fresh = path.with_name(f".{path.name}.new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump({"keys": entries}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        os.close(folder)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))["keys"]
        for entry in keys.values():
            _ = [entry[key] for key in ("name", "scopes", "sha256", "created", "expires")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} must be a file of keys: {error}", hint="tidemill serve keys writes it") from error
    return dict(keys)


def _valid(entries: Mapping[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    now = dt.datetime.now(dt.UTC)
    return [entry for entry in entries.values() if entry["name"] == name and _is_valid(entry, now)]


def _is_valid(entry: Mapping[str, Any], now: dt.datetime) -> bool:
    ends = _moment(entry["expires"])
    return ends is None or ends > now


def _moment(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
