"""The project's sources as rows of an engine, and what their content is, so that a changed one is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tidemill.core.artifact import hash_file, hash_json, write_json
from tidemill.core.engine import DataEngine, EngineConfig, Rows, Source, Target, open_engine, row_hash
from tidemill.core.objects import object_version
from tidemill.core.source import is_remote, source_files, source_objects
from tidemill.data.config import DataConfig

HASHES = "hashes.json"
QUERIES = "queries"


def scanned(engine: DataEngine, config: DataConfig, folder: Path, *, cache: Path | None = None) -> dict[str, Rows]:
    """Every source by name, nothing read yet but what tells its columns and types; a query's rows as they were hashed.

    Args:
        cache: The folder that `content_hashes` was given.

    Raises:
        DataError: If a source is missing or not what it should be.
    """
    rows = {}
    for name, config_of_one in config.sources().items():
        source = config_of_one.resolved(folder)
        kept = _kept(cache, source)
        if kept and kept.is_dir():
            source = Source(path=str(kept), format="parquet")
        rows[name] = engine.scan(source, None)
    return rows


def content_hashes(config: DataConfig, folder: Path, *, cache: Path | None = None, engine: EngineConfig | None = None) -> dict[str, str]:
    """One hash per source: of all its files' bytes, of its objects' ETags, or of its query's rows in any order.

    Only the rows of a query tell whether something changed: it is run. They are kept in `cache` for the stage that follows.

    Args:
        cache: Folder that remembers the hashes of files, so that one whose size and time did not change is not read again.

    Raises:
        DataError: If a source is missing.
        Unavailable: If a database or an object store does not answer.
    """
    known = _read(cache / HASHES) if cache else {}
    seen: dict[str, str] = {}
    hashes = {}
    for name, config_of_one in config.sources().items():
        source = config_of_one.resolved(folder)
        if source.query is not None:
            hashes[name] = _hash_of_rows(source, cache, engine or EngineConfig())
            continue
        if is_remote(source):
            objects, _ = source_objects(source)
            hashes[name] = hash_json([[entry.below, entry.size, object_version(entry, source)] for entry in objects])
            continue
        files, _ = source_files(source)
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


class RowsHash:
    """Number of rows and two sums of their hashes, which no order changes."""

    def init(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def update(self, state: tuple[int, int, int], batch: pa.RecordBatch) -> tuple[int, int, int]:
        hashes = row_hash(batch, batch.schema.names)
        again = row_hash(batch, batch.schema.names, salt="again")
        return self.merge(state, (len(hashes), int(hashes.sum(dtype=np.uint64)), int(again.sum(dtype=np.uint64))))

    def merge(self, left: tuple[int, int, int], right: tuple[int, int, int]) -> tuple[int, int, int]:
        return left[0] + right[0], (left[1] + right[1]) % 2**64, (left[2] + right[2]) % 2**64


def _hash_of_rows(source: Source, cache: Path | None, config: EngineConfig) -> str:
    kept = _kept(cache, source)
    with open_engine(config, scratch=kept.parent if kept else None) as engine:
        rows = engine.scan(source, None)
        if kept:
            engine.write(rows, Target(path=kept))
            rows = engine.scan(Source(path=str(kept), format="parquet"), None)
        shape = [[field.name, str(field.type)] for field in rows.schema]
        state: tuple[int, int, int] = engine.reduce(rows, RowsHash())
        return hash_json([shape, *map(str, state)])


def _kept(cache: Path | None, source: Source) -> Path | None:
    """Where a query's rows lie between being hashed and being prepared."""
    if cache is None or source.query is None:
        return None
    return cache / QUERIES / hash_json([source.url, source.query])[:16]


def _read(cache: Path) -> dict[str, Any]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
