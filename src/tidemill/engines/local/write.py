"""Rows as a folder of Parquet files with a manifest: all of it or nothing, the same bytes every time."""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.core.artifact import PARTIAL, replace_folder, sync, write_json
from tidemill.core.engine import Target, Written
from tidemill.core.errors import Unavailable
from tidemill.core.source import WRITTEN
from tidemill.engines.local.rows import MappedRows, QueryRows, gathered

GROUPS_PER_FILE = 64
GROUP_BYTES = 64 << 20


class Files(Protocol):
    """Another way to lay rows out in files than row groups of one number of rows: writes them, and says what it wrote."""

    def write(self, rows: QueryRows | MappedRows, folder: Path) -> list[dict[str, Any]]: ...


def write_folder(
    rows: QueryRows | MappedRows, target: Target, *, groups_per_file: int = GROUPS_PER_FILE, files: Files | None = None
) -> Written:
    """Write `rows` in order to `target.path`, which appears, or changes, only when all of it is on the disk.

    Raises:
        Unavailable: If the disk is full.
    """
    final = target.path
    partial = final.parent / f"{PARTIAL}{final.name}-{uuid.uuid4().hex[:8]}"
    try:
        with _room_for(final):
            partial.mkdir(parents=True)
            written = files.write(rows, partial) if files else _write_files(rows, target, partial, groups_per_file)
            total = sum(entry["rows"] for entry in written)
            write_json(partial / WRITTEN, {"format": 1, "rows": total, "files": written})
            sync(partial)
            replace_folder(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Written(files=tuple(entry["name"] for entry in written), rows=total)


def codec(target: Target) -> dict[str, Any]:
    """The arguments of Parquet's writer that say how to pack."""
    return {"compression": target.codec, "compression_level": 1 if target.codec == "zstd" else None}


def _write_files(rows: QueryRows | MappedRows, target: Target, folder: Path, groups_per_file: int) -> list[dict[str, Any]]:
    groups = gathered(rows.chunks(), target.rows_per_group, GROUP_BYTES)
    files: list[dict[str, Any]] = []
    ended = False
    while not ended:
        name = f"part-{len(files):05d}.parquet"
        sizes: list[int] = []
        with pq.ParquetWriter(folder / name, rows.schema, **codec(target)) as writer:
            while len(sizes) < groups_per_file:
                group = next(groups, None)
                if group is None:
                    ended = True
                    break
                table = pa.Table.from_batches(group, schema=rows.schema)
                writer.write_table(table, row_group_size=len(table))
                sizes.append(len(table))
        if sizes or not files:
            files.append({"name": name, "rows": sum(sizes), "row_groups": sizes, "bytes": (folder / name).stat().st_size})
        else:
            (folder / name).unlink()
    return files


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower():
            raise Unavailable(f"the disk must have room for {path}: no space left", hint="free some space and run again") from error
        raise
