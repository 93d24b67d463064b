"""Lazy tables of the local engine: a DuckDB query, or a function over the batches of another table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from tidemill.core.engine import BatchFn
from tidemill.core.errors import ConfigError, DataError, TidemillError, Unavailable
from tidemill.core.parallel import ordered_map

BATCH_ROWS = 65_536
STREAM_ROWS = 8_192
CHUNK_ROWS = 32_768
CHUNK_BYTES = 8 << 20


class TooLittleMemory(ConfigError):
    """DuckDB's memory does not suffice for a step that cannot spill."""


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
        return rechunked(self._stream(), batch_rows)

    def chunks(self) -> Iterator[pa.RecordBatch]:
        """The batches that the engine works on: as `batches`, but of some 8 MiB at most."""
        return rechunked(self._stream(), _chunk_rows(self.schema), CHUNK_BYTES)

    def _stream(self) -> Iterator[pa.RecordBatch]:
        with self._connection.cursor() as cursor, translated():
            reader = cursor.sql(self.relation.sql_query()).to_arrow_reader(STREAM_ROWS)
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
        return rechunked(self._stream(), batch_rows)

    def chunks(self) -> Iterator[pa.RecordBatch]:
        """The batches that the engine works on: as `batches`, but of some 8 MiB at most."""
        return rechunked(self._stream(), _chunk_rows(self.schema), CHUNK_BYTES)

    def _stream(self) -> Iterator[pa.RecordBatch]:
        # The function sees the same batches whatever size is asked for, so that its own temporaries stay bounded.
        return ordered_map(self._checked, self._parent.chunks(), self._threads)

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        made = self._fn(batch)
        if made.schema.names != self.schema.names or made.schema.types != self.schema.types:
            raise DataError(f"a batch function must return the columns {_shape(self.schema)}, got {_shape(made.schema)}")
        return made


def rechunked(batches: Iterable[pa.RecordBatch], rows: int, max_bytes: int | None = None) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `rows`, the last one excepted: sizes never depend on how threads met.

    Args:
        max_bytes: Batches end earlier where they hold this much already, at the end of one that came in.
    """
    for parts in gathered(batches, rows, max_bytes):  # a generator, which can be closed before its end
        yield _joined(parts)


def gathered(batches: Iterable[pa.RecordBatch], rows: int, max_bytes: int | None = None) -> Iterator[list[pa.RecordBatch]]:
    """As `rechunked`, the pieces of each batch side by side: nothing is copied."""
    pending: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        pending.append(batch)
        count += batch.num_rows
        size += batch.nbytes if max_bytes else 0
        while count >= rows or (count and max_bytes and size >= max_bytes):
            over = max(0, count - rows)
            rest = pending[-1].slice(pending[-1].num_rows - over)
            yield [*pending[:-1], pending[-1].slice(0, pending[-1].num_rows - over)]
            count = over
            pending = [rest] if over else []
            size = rest.nbytes if over and max_bytes else 0
    if count:
        yield pending


@contextmanager
def translated(what: str = "") -> Iterator[None]:
    """DuckDB's errors inside the block become Tidemill's; `what` begins the message."""
    try:
        yield
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except (duckdb.Error, OSError) as error:
        if isinstance(error, OSError) and not _from_duckdb(error):
            raise
        if "out of memory" in str(error).lower():
            message = f"engine.memory: must hold the smaller side of a join, and the groups: {_first_line(error)}"
            raise TooLittleMemory(message, hint="raise engine.memory, or lower engine.threads") from error
        if isinstance(error.__cause__, (TidemillError, KeyboardInterrupt)):
            raise error.__cause__ from None
        if "no space left" in str(error).lower():
            raise Unavailable(f"the disk must have room: {_first_line(error)}", hint="free some space and run again") from error
        raise DataError(f"{what}{_first_line(error)}") from error


def _chunk_rows(schema: pa.Schema) -> int:
    """32,768, fewer for tables of more than 64 columns. The same for any memory and threads, so that sums are too."""
    return max(1_024, min(CHUNK_ROWS, CHUNK_ROWS * 64 // max(1, len(schema))))


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches, schema=batches[0].schema).combine_chunks().to_batches()[0]


def _shape(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _from_duckdb(error: OSError) -> bool:
    """Whether it is DuckDB's error, which arrives as Arrow's once a result streams; the system's own have a number."""
    return error.errno is None and " Error: " in str(error)


def _first_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2] if line.strip())
