"""The embedded engine: DuckDB reads, joins and sorts within the project's memory; Arrow batches carry the rest."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import duckdb
import narwhals as nw
import numpy as np
import pyarrow as pa

from tidemill.core.allocator import lean, trim
from tidemill.core.engine import BatchFn, EngineConfig, Mergeable, Partitioning, Rows, Source, Target, Written, memory_bytes, row_hash
from tidemill.core.errors import DataError
from tidemill.core.parallel import ordered_map
from tidemill.engines.local.layout import Layout
from tidemill.engines.local.parquet import ParquetRows, parquet_files, read
from tidemill.engines.local.rows import MappedRows, QueryRows, translated
from tidemill.engines.local.scan import scan_relation
from tidemill.engines.local.sort import SortedRows
from tidemill.engines.local.sql import literal, quoted
from tidemill.engines.local.write import write_folder

S = TypeVar("S")
LocalRows = QueryRows | MappedRows

# DuckDB counts its own buffers only. Beside them live the interpreter with its libraries, batches under way, Parquet pages, sketches.
BESIDE = 512 << 20
BESIDE_PER_THREAD = 32 << 20
LEAST_MEMORY = 48 << 20
# Below this for each thread, a sort gives up instead of spilling.
MEMORY_PER_THREAD = 128 << 20
SPOOL_ROWS = 8_192
PART = "__tidemill_part"
PREFIX, SUFFIX = "tidemill-", "-scratch"


class LocalEngine:
    """The data engine on this machine. See `core.engine.DataEngine` for what its verbs promise.

    Args:
        config: Memory and threads.
        scratch: Folder under which to spill; the system's temporary folder when absent.
    """

    def __init__(self, config: EngineConfig | None = None, *, scratch: Path | None = None) -> None:
        config = config or EngineConfig()
        budget = memory_bytes(config.memory)
        threads = config.threads or len(os.sched_getaffinity(0))
        self._lean = lean(budget)
        self.threads = max(1, min(threads, budget // 4 // BESIDE_PER_THREAD))
        self._memory = max(LEAST_MEMORY, budget // 4, budget - BESIDE - self.threads * BESIDE_PER_THREAD)
        self.scratch = _scratch_folder(scratch)
        self._finalizer = weakref.finalize(self, _remove, self.scratch, _lock(self.scratch), os.getpid())
        self._spooled = 0
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{self._memory}B",
                "threads": max(1, min(threads, self._memory // MEMORY_PER_THREAD)),
                "temp_directory": str(self.scratch / "spill"),
                "preserve_insertion_order": True,
                "autoinstall_known_extensions": False,
            },
        )
        self._connection.execute("SET GLOBAL TimeZone = 'UTC'")
        # Prefetching takes a row group at once, however large it is; progress is the caller's to show.
        for setting in ("GLOBAL disable_parquet_prefetching = true", "enable_progress_bar = false"):
            self._connection.execute(f"SET {setting}")

    def scan(self, source: Source, columns: Sequence[str] | None = None) -> LocalRows:
        relation = scan_relation(self._connection, source, columns, scratch=self.scratch)
        files = parquet_files(source)
        return QueryRows(relation, self._connection) if files is None else ParquetRows(relation, self._connection, files)

    def map_batches(self, rows: Rows, fn: BatchFn, schema: pa.Schema) -> LocalRows:
        return MappedRows(_local(rows), fn, schema, self.threads)

    def exchange(self, rows: Rows, by: Partitioning) -> LocalRows:
        known = self._check_keys(rows, by)
        if by.parts < 1:
            raise DataError(f"exchange needs at least one part, got {by.parts}")
        if by.kind in ("sort", "range"):
            parent = QueryRows(self._relation(rows), self._connection)
            return SortedRows(parent, self._connection, by.keys, memory=self._memory, scratch=self.scratch)
        columns = ", ".join(quoted(name) for name in known)
        return self._query(f"SELECT {columns} FROM ({self._in_parts(rows, by)})")

    def _check_keys(self, rows: Rows, by: Partitioning) -> list[str]:
        known: list[str] = rows.schema.names
        missing = [key for key in by.keys if key not in known]
        if missing:
            raise DataError(f"exchange needs the column {missing[0]!r}, the rows have {', '.join(known)}", field=missing[0])
        return known

    def _in_parts(self, rows: Rows, by: Partitioning, file_bytes: int | None = None) -> str:
        """The query of the rows with their part, parts one after the other."""
        kept, parts = _local(rows), by.parts
        path = ""
        if by.kind == "round_robin" or not parts:
            path = self._spool(kept)
            parts = parts or -(-_size(path) // (file_bytes or _size(path)))
            kept = self._query(f"FROM read_parquet({path})")
        if by.kind == "round_robin":
            numbered = f"(SELECT *, file_row_number, file_row_number % {parts} AS {PART} FROM read_parquet({path}, file_row_number = true))"
        else:

            def with_part(batch: pa.RecordBatch) -> pa.RecordBatch:
                return batch.append_column(field, pa.array((row_hash(batch, by.keys) % np.uint64(parts)).astype(np.int64)))

            field = pa.field(PART, pa.int64(), nullable=False)
            path = self._spool(MappedRows(kept, with_part, rows.schema.append(field), self.threads))
            numbered = f"(SELECT *, file_row_number FROM read_parquet({path}, file_row_number = true))"
        columns = ", ".join(quoted(name) for name in [*rows.schema.names, PART])
        return f"SELECT {columns} FROM {numbered} ORDER BY {PART}, file_row_number"

    def reduce(self, rows: Rows, agg: Mergeable[S]) -> S:
        rows = _local(rows)
        columns: Sequence[str] = getattr(agg, "columns", ())
        groups = rows.row_groups(columns) if columns and isinstance(rows, ParquetRows) else None
        if groups is None:
            parts = ordered_map(lambda batch: agg.update(agg.init(), batch), rows.chunks(), self.threads)
        else:
            parts = ordered_map(lambda group: _folded(agg, read(group, columns)), groups, self.threads)
        state = agg.init()
        for number, part in enumerate(parts):
            state = agg.merge(state, part)
            if self._lean and number % 8 == 7:
                trim()
        return state

    def write(self, rows: Rows, target: Target) -> Written:
        by = target.partition
        if by is None and target.file_bytes is None:
            return write_folder(_local(rows), target)
        if by is None:
            return write_folder(_local(rows), target, files=Layout(target))
        if by.kind in ("hash", "round_robin"):
            self._check_keys(rows, by)
            return write_folder(self._query(self._in_parts(rows, by, target.file_bytes)), target, files=Layout(target, part=PART))
        most = None
        if by.kind == "range" and by.parts > 1:
            rows = self._query(f"FROM read_parquet({self._spool(_local(rows))})")
            most = -(-rows.relation.count("*").fetchall()[0][0] // by.parts)
        ordered = self.exchange(rows, replace(by, parts=1))
        return write_folder(_local(ordered), target, files=Layout(target, keys=by.keys, rows=most))

    def frame(self, rows: Rows) -> nw.LazyFrame[Any]:
        return nw.from_native(self._relation(rows))

    def rows(self, frame: Any) -> LocalRows:
        try:
            native = nw.to_native(nw.from_native(frame))
        except TypeError:
            raise DataError(f"must be a Narwhals lazy frame, got {type(frame).__name__}") from None
        if isinstance(native, duckdb.DuckDBPyRelation):
            return QueryRows(_without_huge(native), self._connection)
        wrapped = nw.from_native(native)
        eager = wrapped.collect("pyarrow") if isinstance(wrapped, nw.LazyFrame) else wrapped
        return QueryRows(self._connection.from_arrow(eager.to_arrow()), self._connection)

    def close(self) -> None:
        self._connection.close()
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _query(self, sql: str) -> QueryRows:
        with translated():
            return QueryRows(self._connection.sql(sql), self._connection)

    def _relation(self, rows: Rows) -> duckdb.DuckDBPyRelation:
        rows = _local(rows)
        return rows.relation if isinstance(rows, QueryRows) else self._connection.sql(f"FROM read_parquet({self._spool(rows)})")

    def _spool(self, rows: LocalRows) -> str:
        """Rows that Python made, as one Parquet file in the scratch folder: its path as SQL."""
        self._spooled += 1
        folder = self.scratch / f"spool-{self._spooled}"
        written = write_folder(rows, Target(path=folder, rows_per_group=SPOOL_ROWS), groups_per_file=2**31)
        return literal(str(folder / written.files[0]))


def _folded(agg: Mergeable[S], batches: Iterable[pa.RecordBatch]) -> S:
    state = agg.init()
    for batch in batches:
        state = agg.update(state, batch)
    return state


def _local(rows: Rows) -> LocalRows:
    if not isinstance(rows, (QueryRows, MappedRows)):
        raise DataError(f"rows must come from this engine, got {type(rows).__name__}")
    return rows


def _size(path: str) -> int:
    return Path(path[1:-1].replace("''", "'")).stat().st_size


def _without_huge(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Sums of integers are 128 bits wide in DuckDB: back to 64, or an error where one does not fit."""
    kinds = dict(zip(relation.columns, map(str, relation.types), strict=True))
    if not any("HUGEINT" in kind for kind in kinds.values()):
        return relation
    parts = [f"CAST({quoted(name)} AS BIGINT) AS {quoted(name)}" if "HUGEINT" in kind else quoted(name) for name, kind in kinds.items()]
    return relation.project(", ".join(parts))


def _scratch_folder(parent: Path | None) -> Path:
    """A new folder under `parent`, locked by this process; what killed processes left in the system's is removed."""
    if parent is None:
        for leftover in Path(tempfile.gettempdir()).glob(f"{PREFIX}*{SUFFIX}"):
            _remove_dead(leftover)
    else:
        parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=parent))


def _lock(folder: Path) -> int:
    """A descriptor that holds `folder` until this process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _remove_dead(folder: Path) -> None:
    try:
        if time.time() - folder.stat().st_mtime < 60:  # its owner may not hold it yet
            return
        os.close(_lock(folder))
    except OSError:
        return
    shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, descriptor: int, owner: int) -> None:
    if os.getpid() != owner:  # a forked child does not own it
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)
