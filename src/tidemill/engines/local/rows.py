"""Lazy tables of the local engine: a DuckDB query, or a function over the batches of another table."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import duckdb
import pyarrow as pa

from tidemill.core.engine import BatchFn
from tidemill.core.errors import ConfigError, DataError, TidemillError, Unavailable

T = TypeVar("T")
R = TypeVar("R")
BATCH_ROWS = 65_536


class QueryRows:
    """Rows of a DuckDB relation. Each scan runs the query anew, on a cursor of its own."""

    def __init__(self, relation: duckdb.DuckDBPyRelation, connection: duckdb.DuckDBPyConnection) -> None:
        self.relation = relation
        self._connection = connection
        self._schema: pa.Schema | None = None

    @property
    def schema(self) -> pa.Schema:
        if self._schema is None:
            with translated():
                self._schema = self.relation.limit(0).to_arrow_table().schema
        return self._schema

    def batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        return rechunked(self._read(batch_rows), batch_rows)

    def _read(self, batch_rows: int) -> Iterator[pa.RecordBatch]:
        with self._connection.cursor() as cursor, translated():
            reader = cursor.sql(self.relation.sql_query()).to_arrow_reader(batch_rows)
            try:
                yield from reader
            finally:
                reader.close()


class MappedRows:
    """What a pure function makes of another table's batches, in their order."""

    def __init__(self, parent: QueryRows | MappedRows, fn: BatchFn, schema: pa.Schema, threads: int) -> None:
        self._parent = parent
        self._fn = fn
        self.schema = schema
        self._threads = threads

    def batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        # The function sees the same batches whatever size is asked for, so that its own temporaries stay bounded.
        mapped = ordered_map(self._checked, self._parent.batches(width_rows(self._parent.schema)), self._threads)
        return rechunked(mapped, batch_rows)

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        made = self._fn(batch)
        if made.schema.names != self.schema.names or made.schema.types != self.schema.types:
            raise DataError(f"a batch function must return the columns {_shape(self.schema)}, got {_shape(made.schema)}")
        return made


def width_rows(schema: pa.Schema) -> int:
    """Rows of a batch: 65,536, fewer for tables of more than 64 columns, so that a batch stays within some 32 MiB of numbers."""
    return max(1_024, min(BATCH_ROWS, BATCH_ROWS * 64 // max(1, len(schema))))


def ordered_map(fn: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`fn` of each item, in order, computed on several threads with at most `threads` results waiting."""
    if threads < 2:
        yield from map(fn, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tidemill-rows")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(fn, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def rechunked(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `rows`, the last one excepted: sizes never depend on how threads met."""
    pending: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        pending.append(batch)
        count += batch.num_rows
        while count >= rows:
            joined = _joined(pending)
            yield joined.slice(0, rows)
            count -= rows
            pending = [joined.slice(rows)] if count else []
    if count:
        yield _joined(pending)


@contextmanager
def translated(what: str = "") -> Iterator[None]:
    """DuckDB's errors inside the block become Tidemill's; `what` begins the message."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        message = f"engine.memory: must hold the largest join or sort: {_first_line(error)}"
        raise ConfigError(message, hint="raise engine.memory, or lower engine.threads") from error
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except duckdb.Error as error:
        if isinstance(error.__cause__, (TidemillError, KeyboardInterrupt)):
            raise error.__cause__ from None
        if "no space left" in str(error).lower():
            raise Unavailable(f"the disk must have room: {_first_line(error)}", hint="free some space and run again") from error
        raise DataError(f"{what}{_first_line(error)}") from error


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches, schema=batches[0].schema).combine_chunks().to_batches()[0]


def _shape(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _first_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2] if line.strip())
