"""The project's sources as rows of an engine, and what their content is, so that a changed file is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.core.artifact import hash_file, hash_json, write_json
from tidemill.core.engine import DataEngine, Rows
from tidemill.core.source import source_files
from tidemill.data.config import DataConfig

HASHES = "hashes.json"


def scanned(engine: DataEngine, config: DataConfig, folder: Path) -> dict[str, Rows]:
    """Every source by name, nothing read yet but what tells its columns and types.

    Raises:
        DataError: If a source is missing or not what it should be.
    """
    return {name: engine.scan(source.resolved(folder), None) for name, source in config.sources().items()}


def content_hashes(config: DataConfig, folder: Path, *, cache: Path | None = None) -> dict[str, str]:
    """One hash per source of all its files' bytes.

    Args:
        cache: Folder that remembers the hashes of files, so that one whose size and time did not change is not read again.

    Raises:
        DataError: If a source is missing.
    """
    known = _read(cache / HASHES) if cache else {}
    seen: dict[str, str] = {}
    hashes = {}
    for name, source in config.sources().items():
        files, _ = source_files(source.resolved(folder))
        parts = []
        for file in files:
            stat = file.stat()
            key = f"{file}|{stat.st_size}|{stat.st_mtime_ns}"
            seen[key] = known.get(key) or hash_file(file)
            parts.append([file.name, seen[key]])
        hashes[name] = hash_json(parts)
    if cache and not seen.keys() <= known.keys():
        cache.mkdir(parents=True, exist_ok=True)
        write_json(cache / HASHES, known | seen)
    return hashes


def _read(cache: Path) -> dict[str, Any]:
    import json

    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
