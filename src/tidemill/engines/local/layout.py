"""Files of about one size, each with the rows of one part: where one ends and the next begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.core.engine import Target, row_hash
from tidemill.engines.local.rows import MappedRows, QueryRows
from tidemill.engines.local.write import GROUP_BYTES, codec

PIECES_PER_FILE = 8


class Layout:
    """A way to lay out rows that come in the order of their parts.

    Args:
        part: Column that is another number in every part; it is not written.
        keys: Columns whose equal rows, which come together, stay in one file.
        rows: Rows after which a file is full.
    """

    def __init__(self, target: Target, *, part: str | None = None, keys: Sequence[str] = (), rows: int | None = None) -> None:
        self._target = target
        self._part = part
        self._keys = keys
        self._rows = rows

    def write(self, rows: QueryRows | MappedRows, folder: Path) -> list[dict[str, Any]]:
        schema = rows.schema
        if self._part is not None:
            schema = schema.remove(schema.get_field_index(self._part))
        files = _Files(folder, schema, self._target, self._rows)
        for piece, may_end, must_end in self._pieces(rows):
            if must_end or (may_end and files.is_full):
                files.end()
            files.add(piece.select(schema.names))
        files.end()
        if not files.written:  # the columns of no rows
            files.begin()
            files.end()
        return files.written

    def _pieces(self, rows: QueryRows | MappedRows) -> Iterator[tuple[pa.RecordBatch, bool, bool]]:
        """The rows in pieces, with whether a file may, and must, end before each."""
        before: int | None = None
        for chunk in rows.chunks():
            for batch in self._sliced(chunk):
                if self._part is None and not self._keys:
                    yield batch, True, False
                    continue
                marks = batch.column(self._part).to_numpy().view(np.uint64) if self._part else row_hash(batch, self._keys)
                starts = np.flatnonzero(marks[1:] != marks[:-1]) + 1
                ends_before = before is not None and int(marks[0]) != before
                before = int(marks[-1])
                if self._part:
                    for start, stop in zip([0, *starts.tolist()], [*starts.tolist(), len(marks)], strict=True):
                        changed = start > 0 or ends_before
                        yield batch.slice(start, stop - start), True, changed
                elif ends_before or not len(starts):
                    yield batch, ends_before, False
                else:
                    yield batch.slice(0, int(starts[0])), False, False
                    yield batch.slice(int(starts[0])), True, False

    def _sliced(self, chunk: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Pieces that are small beside a file."""
        step = chunk.num_rows
        if self._target.file_bytes:
            step = max(1, int(chunk.num_rows * self._target.file_bytes / PIECES_PER_FILE / max(1, chunk.nbytes)))
        if self._rows:
            step = min(step, max(1, self._rows // PIECES_PER_FILE))
        for start in range(0, chunk.num_rows, step):
            yield chunk.slice(start, step)


class _Files:
    """Writes row groups, and says when the file that is open has its size."""

    def __init__(self, folder: Path, schema: pa.Schema, target: Target, rows: int | None) -> None:
        self.written: list[dict[str, Any]] = []
        self._folder = folder
        self._schema = schema
        self._target = target
        self._most = rows
        self._group_bytes = min(GROUP_BYTES, target.file_bytes or GROUP_BYTES)
        self._writer: pq.ParquetWriter | None = None
        self._sink: Any = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._groups: list[int] = []
        self._packed = self._plain = 0  # of all groups so far

    @property
    def is_full(self) -> bool:
        rows = sum(self._groups) + sum(batch.num_rows for batch in self._pending)
        if self._most is not None and rows >= self._most:
            return True
        if self._target.file_bytes is None or self._sink is None:
            return False
        share = self._packed / self._plain if self._plain else 1.0
        return bool(self._sink.tell() + self._pending_bytes * share >= self._target.file_bytes)

    def begin(self) -> None:
        self._sink = pa.OSFile(str(self._folder / f"part-{len(self.written):05d}.parquet"), "wb")
        self._writer = pq.ParquetWriter(self._sink, self._schema, **codec(self._target))

    def add(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        if self._writer is None:
            self.begin()
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= self._group_bytes:
            self._flush()

    def end(self) -> None:
        """Close the file that is open, if any."""
        if self._writer is None:
            return
        self._flush()
        self._writer.close()
        self._sink.close()
        name = f"part-{len(self.written):05d}.parquet"
        size = (self._folder / name).stat().st_size
        self.written.append({"name": name, "rows": sum(self._groups), "row_groups": self._groups, "bytes": size})
        self._writer, self._sink, self._groups = None, None, []

    def _flush(self) -> None:
        if not self._pending or self._writer is None:
            return
        table = pa.Table.from_batches(self._pending, schema=self._schema)
        before = self._sink.tell()
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._packed += self._sink.tell() - before
        self._plain += self._pending_bytes
        self._groups.append(table.num_rows)
        self._pending, self._pending_bytes = [], 0
