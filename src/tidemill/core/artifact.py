"""A folder with a manifest: content hash, lineage, written whole or not at all.

Stages meet only through these. A folder is filled under a temporary name beside its final one and renamed when its
manifest is complete, so that whatever carries the final name is whole; what a killed run left is swept by the next.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tidemill.core.errors import Conflict, DataError, Unavailable
from tidemill.core.events import now

MANIFEST = "manifest.json"
PARTIAL = ".partial-"


@dataclass(frozen=True)
class Artifact:
    """A finished folder. `id` is the hash of its contents, `inputs` the ids that it was made from."""

    path: Path
    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.manifest["id"])

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def facts(self) -> dict[str, Any]:
        """Small results that the stage wants to be found without opening a file."""
        return dict(self.manifest["facts"])

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """The artifact at `path`; the sizes of its files are checked, their contents by `verify`.

        Raises:
            DataError: If the folder has no readable manifest, or a file is missing or of another size.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            for name, entry in manifest["files"].items():
                if (path / name).stat().st_size != entry["bytes"]:
                    raise DataError(f"{path / name} must hold {entry['bytes']} bytes, holds {(path / name).stat().st_size}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} must be a whole artifact: {error}", hint="remove the folder and run again") from error
        return cls(path, manifest)

    def verify(self) -> None:
        """Check every byte.

        Raises:
            DataError: If a file's hash is not the manifest's; names the file.
        """
        for name, entry in self.manifest["files"].items():
            if hash_file(self.path / name) != entry["sha256"]:
                raise DataError(f"{self.path / name} is corrupted: its content is not what the manifest says")


@contextmanager
def writing(
    path: Path,
    *,
    stage: str,
    fingerprint: str = "",
    inputs: Mapping[str, str] | None = None,
    config: Any = None,
    facts: dict[str, Any] | None = None,
) -> Iterator[Path]:
    """A fresh folder to fill; it takes the name `path` when the block ends well, and vanishes when it does not.

    Args:
        path: The final folder; an older one there is replaced.
        facts: Filled inside the block, stored in the manifest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{PARTIAL}{path.name}-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        yield partial
        files = {str(file.relative_to(partial)): {"sha256": hash_file(file), "bytes": file.stat().st_size} for file in _files(partial)}
        manifest = {
            "format": 1,
            "stage": stage,
            "fingerprint": fingerprint,
            "id": hash_json({name: entry["sha256"] for name, entry in files.items()}),
            "inputs": dict(inputs or {}),
            "config": config,
            "facts": facts or {},
            "files": files,
            "created": now(),
        }
        write_json(partial / MANIFEST, manifest)
        sync(partial)
        replace_folder(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`; an older folder there goes after the new one is safe on disk."""
    old = None
    if final.exists():
        old = final.parent / f"{PARTIAL}old-{uuid.uuid4().hex[:8]}"
        os.replace(final, old)
    os.replace(new, final)
    _sync_path(final.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Call only while holding its lock."""
    for leftover in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, *, what: str | None = None, remove: bool = False) -> Iterator[None]:
    """Hold the file `path` for this process; the kernel lets go when the process ends, however it ends.

    Args:
        what: What the lock stands for, for the message; the file's folder by default.
        remove: Leave no file behind.

    Raises:
        Conflict: If another process holds it; names its process id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, what or str(path.parent)) as file:
        try:
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)


def _locked(path: Path, what: str) -> TextIO:
    """The file, locked; one that its holder removed in the meantime is not it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise Conflict(f"{what} is in use by process {holder}", hint="wait for it, or use another folder") from None
        file.close()


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """What the disk refuses inside the block, as an error that names the path and says what to do.

    Args:
        place: Named where the system does not say which path it was.

    Raises:
        Unavailable: If the disk is full, or a file or folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        said = _disk_error(error, place)
        if said is None:
            raise
        raise said from error


def _disk_error(error: OSError, place: Path) -> Unavailable | None:
    where = error.filename2 or error.filename or place
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "no space left" in str(error).lower():
        return Unavailable(
            f"{place} must have free space: {error.strerror or 'the disk is full'}",
            hint="free some and run again: what was finished is kept",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unavailable(f"{where} must be writable: {error.strerror}", hint="change its rights, or name another folder")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return Unavailable(f"{where} must be a folder that can be made: {error.strerror}", hint="name another folder")
    return None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    temporary = path.parent / f"{PARTIAL}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.write_text(_readable(value) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _readable(value: Any, depth: int = 0) -> str:
    """As `json.dumps` with `indent=1`, whose lists of plain values go through its quick encoder: some have 100,000."""
    if not isinstance(value, (dict, list, tuple, str, int, float, type(None))):
        return _readable(_plain(value), depth)
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        entries = (f"{json.dumps(key, ensure_ascii=False)}: {_readable(entry, depth + 1)}" for key, entry in value.items())
        return "{" + inner + ("," + inner).join(entries) + outer + "}"
    if isinstance(value, (list, tuple)) and value:
        if all(type(entry) in _SCALARS for entry in value):
            return "[" + inner + json.dumps(value, ensure_ascii=False, separators=("," + inner, ": "))[1:-1] + outer + "]"
        return "[" + inner + ("," + inner).join(_readable(entry, depth + 1) for entry in value) + outer + "]"
    return json.dumps(value, indent=1, ensure_ascii=False, default=_plain).replace("\n", outer)


_SCALARS = {str, int, float, bool, type(None)}


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON-able value's canonical text (sorted keys, no spaces), in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def sync(folder: Path) -> None:
    """Flush a folder's files to the disk."""
    for file in _files(folder):
        _sync_path(file)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays, paths, tuples as JSON values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not JSON-able")
