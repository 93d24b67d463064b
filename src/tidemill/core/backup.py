"""The ledger and its packages as one archive, and back."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
import tempfile
import uuid
from pathlib import Path

from tidemill.core.artifact import PARTIAL
from tidemill.core.errors import Conflict, DataError, Unsupported
from tidemill.core.ledger import Ledger

LEDGER = "ledger.db"
PACKAGES = "packages"


def backup(ledger: Ledger, target: Path) -> int:
    """Write the ledger as it is at one moment, and the packages of its versions, to a tar archive, whole or not at all.

    Returns:
        The number of files in it.

    Raises:
        Unsupported: If the ledger is in PostgreSQL, which has tools of its own.
        DataError: If a package is damaged.
    """
    if "://" in ledger.url:
        raise Unsupported("a PostgreSQL ledger is backed up with pg_dump", hint=f"copy {ledger.packages} beside it")
    if not Path(ledger.url).exists():
        raise DataError(f"{ledger.url} must exist to be backed up")
    partial = target.parent / f"{PARTIAL}{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        with tempfile.TemporaryDirectory() as folder, tarfile.open(partial, "w") as archive:
            copy = Path(folder) / LEDGER
            source, still = sqlite3.connect(ledger.url), sqlite3.connect(copy)
            source.backup(still)
            still.close()
            source.close()
            archive.add(copy, LEDGER)
            count = 1
            frozen = Ledger(copy, packages=ledger.packages)
            for name in frozen.names():
                for version in frozen.versions(name):
                    version.open()
                    for file in sorted(path for path in version.path.rglob("*") if path.is_file()):
                        archive.add(file, f"{PACKAGES}/{file.relative_to(ledger.packages)}")
                        count += 1
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return count


def restore(source: Path, home: Path) -> int:
    """Bring a backup back into a home that has no ledger yet; every package and the chain of events is checked first.

    Returns:
        The number of events.

    Raises:
        Conflict: If there is a ledger already.
        DataError: If the archive is none, or something in it is damaged; nothing is left behind.
    """
    if (home / LEDGER).exists():
        raise Conflict(f"{home} must have no ledger yet", hint="restore into an empty home")
    home.mkdir(parents=True, exist_ok=True)
    partial = home / f"{PARTIAL}restore-{uuid.uuid4().hex[:8]}"
    try:
        try:
            with tarfile.open(source) as archive:
                archive.extractall(partial, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{source} must be an archive made by models backup: {error}") from error
        if not (partial / LEDGER).is_file():
            raise DataError(f"{source} must hold a ledger")
        ledger = Ledger(partial / LEDGER)
        ledger.verify()
        for name in ledger.names():
            for version in ledger.versions(name):
                version.open()
        events = len(ledger.history())
        if (partial / PACKAGES).is_dir():
            (home / PACKAGES).mkdir(exist_ok=True)
            for folder in (partial / PACKAGES).iterdir():
                os.replace(folder, home / PACKAGES / folder.name)
        os.replace(partial / LEDGER, home / LEDGER)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return events
