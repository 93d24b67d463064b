"""Rows in order, also where they are larger than memory.

DuckDB's sort spills narrow rows well, but gives up on rows of some 600 bytes or more that are together larger than its memory. Then
they are divided first: cut points from a sample of the rows, one file for each range between them, and each range is sorted alone.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.engines.local.rows import QueryRows, TooLittleMemory
from tidemill.engines.local.sql import literal, quoted

SAMPLES_PER_CHUNK = 64
SAMPLE_BYTES = 16 << 20
MAX_PARTS = 256
# A range in memory, DuckDB's copy of it and the sorted result take some four times its size.
PART_SHARE = 0.2


class SortedRows(QueryRows):
    """The rows of a query in ascending order of `keys`, then of all other columns, so that the order is one and the same.

    Args:
        memory: Bytes that DuckDB may take.
        scratch: Folder for ranges that do not fit.
    """

    def __init__(
        self, parent: QueryRows, connection: duckdb.DuckDBPyConnection, keys: Sequence[str], *, memory: int, scratch: Path
    ) -> None:
        self._parent = parent
        self._keys = list(dict.fromkeys([*keys, *parent.relation.columns]))
        self._order = ", ".join(f"{quoted(key)} ASC NULLS LAST" for key in self._keys)
        self._memory = memory
        self._scratch = scratch
        super().__init__(parent.relation.order(self._order), connection)

    def _stream(self) -> Iterator[pa.RecordBatch]:
        done = 0
        try:
            for batch in super()._stream():
                done += batch.num_rows
                yield batch
        except TooLittleMemory:
            pass
        else:
            return
        # Rows that are equal by this order are equal altogether: what was given already can be skipped by count.
        for batch in self._by_ranges():
            skipped = min(done, batch.num_rows)
            done -= skipped
            if skipped < batch.num_rows:
                yield batch.slice(skipped)

    def _by_ranges(self) -> Iterator[pa.RecordBatch]:
        folder = self._scratch / f"sort-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        try:
            total, sample = self._spool(folder / "all.parquet")
            parts = int(min(MAX_PARTS, max(2, -(-total // int(self._memory * PART_SHARE)))))
            names = self._divide(folder, sample, parts)
            (folder / "all.parquet").unlink()
            for path in names:
                with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
                    table = reader.read_all()
                path.unlink()
                with self._connection.cursor() as cursor:
                    yield from QueryRows(cursor.from_arrow(table).order(self._order), cursor)._stream()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _spool(self, path: Path) -> tuple[int, pa.Table]:
        """Write the rows as they come; returns their bytes and a sample of them."""
        total, sample, step = 0, [], 1
        with pq.ParquetWriter(path, self.schema, compression="zstd", compression_level=1) as writer:
            for position, chunk in enumerate(self._parent.chunks()):
                writer.write_batch(chunk, row_group_size=8_192)
                total += chunk.nbytes
                if position % step:
                    continue
                places = np.unique(np.linspace(0, chunk.num_rows - 1, SAMPLES_PER_CHUNK).astype(np.int64))
                sample.append(chunk.take(pa.array(places)))
                while len(sample) > 1 and sum(batch.nbytes for batch in sample) > SAMPLE_BYTES:
                    sample, step = sample[::2], step * 2
        return total, pa.Table.from_batches(sample, schema=self.schema)

    def _divide(self, folder: Path, sample: pa.Table, parts: int) -> list[Path]:
        """Write the rows of each range between the sample's cut points to a file of its own."""
        with self._connection.cursor() as cursor:
            ordered = cursor.from_arrow(sample).order(self._order).to_arrow_table()
            places = np.unique(np.linspace(0, len(ordered), parts + 1).astype(np.int64)[1:-1])
            points = ordered.take(pa.array(places))
            cuts = cursor.from_arrow(points)
            row = "{" + ", ".join(f"{literal(key)}: {quoted(key)}" for key in _telling(points, self._keys)) + "}"
            below = f"len(list_filter((SELECT list({row}) FROM ({cuts.sql_query()})), lambda cut: cut <= {row}))"
            source = f"read_parquet({literal(str(folder / 'all.parquet'))})"
            query = QueryRows(cursor.sql(f"SELECT *, {below} AS __part FROM {source}"), cursor)
            paths = [folder / f"{part:03d}.arrow" for part in range(len(places) + 1)]
            writers = [pa.ipc.new_stream(str(path), self.schema) for path in paths]
            try:
                for chunk in query.chunks():
                    numbers = chunk.column("__part")
                    rows = chunk.drop_columns(["__part"])
                    for part in pc.unique(numbers).to_pylist():
                        writers[part].write_batch(rows.filter(pc.equal(numbers, part)))
            finally:
                for writer in writers:
                    writer.close()
        return paths


def _telling(points: pa.Table, keys: Sequence[str]) -> Sequence[str]:
    """As many of the first keys as it takes to tell the cut points apart: fewer are compared faster."""
    seen: list[tuple[object, ...]] = [()] * len(points)
    for number, key in enumerate(keys, start=1):
        seen = [(*row, value) for row, value in zip(seen, points[key].to_pylist(), strict=True)]
        if len(set(seen)) == len(seen):
            return keys[:number]
    return keys
