"""Rows as they are before anything is made of them: row groups of Parquet files, or a table in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from tidemill.core.artifact import Artifact
from tidemill.core.errors import DataError
from tidemill.core.source import row_bytes
from tidemill.train.torch.loader.columns import Columns, joined

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# What is decoded of a row group at once, and what is read of a file.
PIECE_BYTES = 16 << 20
LEAST_ROWS = 1_024
BUFFER_BYTES = 64 << 10

# Rows of a block of a table in memory.
TABLE_ROWS = 4_096

R = TypeVar("R")


class Raw(Protocol):
    """Rows in blocks. Safe from several threads."""

    sizes: list[int]
    sizes_bytes: list[int]
    fingerprint: str

    def pieces(self, block: int, columns: Sequence[str], picks: np.ndarray | None = None) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Columns of a block's rows in order, or of those at `picks`, some at a time, each with its rows' places in the block."""

    def where(self, block: int, place: int) -> str:
        """A row in words, for an error."""


class ParquetRows:
    """The rows of a split of a data artifact, a block for each row group.

    Args:
        columns: What is read of them, to know how much memory it takes.

    Raises:
        DataError: If the split has no files.
    """

    def __init__(self, data: Artifact, split: str, columns: Sequence[str]) -> None:
        import pyarrow.parquet as pq

        self.files = sorted((data.path / split).glob("*.parquet"))
        if not self.files:
            raise DataError(f"{data.path / split} must hold Parquet files, holds none", hint="run the data stage again")
        self._groups: list[tuple[Path, pq.FileMetaData, int]] = []
        for file in self.files:
            metadata = pq.read_metadata(file)
            self._groups += [(file, metadata, number) for number in range(metadata.num_row_groups)]
        self.sizes = [metadata.row_group(number).num_rows for _, metadata, number in self._groups]
        names = set(columns)
        self.row_bytes = [row_bytes(metadata.row_group(number), names) for _, metadata, number in self._groups]
        self.sizes_bytes = [size * each for size, each in zip(self.sizes, self.row_bytes, strict=True)]
        facts = [(file.name, file.stat().st_size, metadata.num_rows) for file, metadata, _ in self._groups]
        self.fingerprint = digest(facts)

    def pieces(self, block: int, columns: Sequence[str], picks: np.ndarray | None = None) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, metadata, number = self._groups[block]
        schema = metadata.schema.to_arrow_schema()
        texts = [name for name in columns if pa.types.is_string(schema.field(name).type)]
        size = max(LEAST_ROWS, PIECE_BYTES // max(1, self.row_bytes[block]))
        first = 0
        try:
            # Not mapped, for mapped pages count as memory until the file is closed.
            with pq.ParquetFile(
                file, metadata=metadata, read_dictionary=texts, buffer_size=BUFFER_BYTES, pre_buffer=False
            ) as parquet:  # fmt: skip
                for batch in parquet.iter_batches(size, row_groups=[number], columns=list(columns), use_threads=False):
                    end = first + batch.num_rows
                    if picks is None:
                        yield batch, np.arange(first, end)
                    else:
                        wanted = picks[np.searchsorted(picks, first) : np.searchsorted(picks, end)]
                        if len(wanted):
                            yield batch.take(pa.array(wanted - first)), wanted
                    first = end
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} must be a whole Parquet file: {error}") from error

    def where(self, block: int, place: int) -> str:
        file, _, number = self._groups[block]
        before = sum(size for (other, *_), size in zip(self._groups[:block], self.sizes, strict=False) if other == file)
        return f"row {before + place:,} of {file} (row group {number})"


class TableRows:
    """The rows of a table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        count = table.num_rows
        self.sizes = [min(TABLE_ROWS, count - first) for first in range(0, count, TABLE_ROWS)]
        each = table.nbytes // max(1, count) + 1
        self.sizes_bytes = [size * each for size in self.sizes]
        some = table.take(np.arange(0, count, max(1, count // 100))).to_pydict()
        self.fingerprint = digest([count, str(table.schema), {name: [repr(value) for value in values] for name, values in some.items()}])

    def pieces(self, block: int, columns: Sequence[str], picks: np.ndarray | None = None) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        import pyarrow as pa

        places = np.arange(self.sizes[block]) if picks is None else picks
        rows = self._table.select(list(columns)).take(pa.array(block * TABLE_ROWS + places))
        for batch in rows.combine_chunks().to_batches():
            yield batch, places

    def where(self, block: int, place: int) -> str:
        return f"row {block * TABLE_ROWS + place:,}"


def made_of(raw: Raw, block: int, columns: Sequence[str], picks: np.ndarray | None, make: Callable[[pa.RecordBatch], R]) -> list[R]:
    """What `make` gives for the pieces of a block.

    Raises:
        DataError: If `make` fails; names the row.
    """
    return [
        blamed(make, batch, places, lambda place: raw.where(block, place)) for batch, places in raw.pieces(block, columns, picks)
    ]  # fmt: skip


def columns_of(
    raw: Raw, block: int, names: Sequence[str], picks: np.ndarray | None, make: Callable[[pa.RecordBatch], Columns]
) -> Columns | None:
    """What `make` gives for the pieces of a block, joined; None where it has no rows.

    Raises:
        DataError: If `make` fails; names the row.
    """
    made = made_of(raw, block, names, picks, make)
    return {name: joined([one[name] for one in made]) for name in made[0]} if made else None


def blamed(make: Callable[[pa.RecordBatch], R], batch: pa.RecordBatch, places: np.ndarray, where: Callable[[int], str]) -> R:
    """What `make` gives for rows; where it fails, the error names the first row that it fails for.

    Raises:
        DataError: If `make` fails.
    """
    try:
        return make(batch)
    except Exception as whole:
        first, rows = 0, batch.num_rows
        while rows > 1:  # halves the rows, keeping a half that fails
            half = rows // 2
            if _error(make, batch.slice(first, half)):
                rows = half
            else:
                first, rows = first + half, rows - half
        error = _error(make, batch.slice(first, 1)) if rows else None
        if error is None:
            raise
        message, hint, field = (error.message, error.hint, error.field) if isinstance(error, DataError) else (str(error), None, None)
        raise DataError(f"{where(int(places[first]))}: {message}", field=field, hint=hint) from whole


def digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


def _error(make: Callable[[pa.RecordBatch], object], batch: pa.RecordBatch) -> Exception | None:
    try:
        make(batch)
    except Exception as error:  # noqa: BLE001 - whatever failed for the rows together
        return error
    return None
