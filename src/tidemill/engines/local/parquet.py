"""Parquet files read without DuckDB, where an aggregation wants but to look at columns: row groups in parallel, text as dictionaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.core.engine import Source
from tidemill.core.errors import DataError
from tidemill.core.source import row_bytes, source_files
from tidemill.engines.local.rows import QueryRows

# What is decoded at once, by each thread.
PIECE_ROWS = 131_072
PIECE_BYTES = 32 << 20
BUFFER_BYTES = 64 << 10


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file."""

    file: Path
    metadata: pq.FileMetaData
    number: int


class ParquetRows(QueryRows):
    """Rows of local Parquet files that lie as they are: whatever DuckDB makes of them is what they hold."""

    def __init__(self, relation: duckdb.DuckDBPyRelation, connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> None:
        super().__init__(relation, connection)
        self._files = files

    def row_groups(self, columns: Sequence[str]) -> list[RowGroup] | None:
        """Where the rows are, in order; None where DuckDB takes one of the columns for another type than Arrow does."""
        found = []
        wanted = [self.schema.field(name).type for name in columns]
        for file in self._files:
            metadata = pq.read_metadata(file)
            schema = metadata.schema.to_arrow_schema()
            if [schema.field(name).type for name in columns] != wanted:
                return None
            found += [RowGroup(file, metadata, number) for number in range(metadata.num_row_groups)]
        return found


def parquet_files(source: Source) -> list[Path] | None:
    """The files of a source that is nothing but Parquet files on this machine; None for any other."""
    if source.query is not None or "://" in source.path:
        return None
    files, form = source_files(source)
    plain = form == "parquet" and not any("=" in part for file in files for part in file.parts[len(Path(source.path).parts) - 1 : -1])
    return files if plain else None


def read(group: RowGroup, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The columns of a row group, text as dictionaries, in batches whose sizes depend on nothing but the file.

    Raises:
        DataError: If the file is not whole.
    """
    schema = group.metadata.schema.to_arrow_schema()
    texts = [name for name in columns if pa.types.is_string(schema.field(name).type)]
    try:
        # Not mapped, for mapped pages count as memory until the file is closed.
        with pq.ParquetFile(
            group.file, metadata=group.metadata, read_dictionary=texts, buffer_size=BUFFER_BYTES, pre_buffer=False
        ) as file:  # fmt: skip
            rows = max(1_024, min(PIECE_ROWS, PIECE_BYTES // row_bytes(group.metadata.row_group(group.number), columns)))
            yield from file.iter_batches(rows, row_groups=[group.number], columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"source {group.file} must be a whole Parquet file: {error}") from error
