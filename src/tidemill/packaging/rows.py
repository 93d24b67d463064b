"""The rows that a package is judged on: a split of a data artifact, or a sample in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.graph import BulkGraph
from tidemill.core.load import need

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 8_192
BUFFER_BYTES = 64 << 10


class Split:
    """The rows of one split of a data artifact, in the order in which they lie there. Reads a batch at a time.

    Raises:
        DataError: If it holds no rows.
    """

    def __init__(self, data: Path, name: str) -> None:
        parquet = need("pyarrow.parquet", "packaging a model")
        self.files = sorted((data / name).glob("*.parquet"))
        self.num_rows = sum(int(parquet.read_metadata(file).num_rows) for file in self.files)
        if not self.num_rows:
            raise DataError(f"the {name} split must hold rows, holds none", hint=f"raise data.split.{name}")

    def batches(self, columns: Sequence[str], *, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        for file in self.files:
            with pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False) as source:
                yield from source.iter_batches(batch_rows, columns=list(columns))


class Sample:
    """Rows in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.num_rows = int(table.num_rows)

    def batches(self, columns: Sequence[str], *, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        yield from self.table.select(list(columns)).combine_chunks().to_batches(max_chunksize=batch_rows)


Rows = Split | Sample


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is predicted, where the truth is known."""

    column: str
    classes: list[Any] | None = None
    """Labels in the order of the probabilities; None for numbers."""
    weight: str | None = None
    """Column of weights of the rows."""

    @property
    def columns(self) -> list[str]:
        return [self.column, *([self.weight] if self.weight else [])]

    def read(self, rows: Rows) -> tuple[np.ndarray, np.ndarray | None]:
        """True values (N,), class indices where there are classes, and weights (N,) or None.

        Raises:
            DataError: If a value is null, not finite, or no class.
        """
        parts = [(self.values(batch), self._weights(batch)) for batch in rows.batches(self.columns, batch_rows=65_536)]
        weights = [weight_N for _, weight_N in parts if weight_N is not None]
        return np.concatenate([y_N for y_N, _ in parts]), np.concatenate(weights) if weights else None

    def values(self, batch: pa.RecordBatch) -> np.ndarray:
        array = batch[self.column]
        if self.classes is None:
            return _numbers(array, self.column)
        import pyarrow as pa

        encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        # A Python dictionary, since a class may be written as 1, 1.0 or true.
        places = {label: index for index, label in enumerate(self.classes)}
        found = [places.get(value) for value in encoded.dictionary.to_pylist()]
        if array.null_count or None in found:
            strange = None if array.null_count else encoded.dictionary[found.index(None)].as_py()
            raise DataError(f"target {self.column!r} must be one of its {len(self.classes)} classes, got {strange!r}", field=self.column)
        return np.asarray(np.asarray(found, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)])

    def _weights(self, batch: pa.RecordBatch) -> np.ndarray | None:
        return _numbers(batch[self.weight], self.weight) if self.weight else None


def answers(graph: BulkGraph, rows: Rows, output: str) -> np.ndarray:
    """One output of a graph for all rows."""
    columns = graph.signature.schema.names
    return np.concatenate([graph.run(batch, [output])[output] for batch in rows.batches(columns)])


def every(rows: Rows, columns: Sequence[str], most: int) -> pa.Table:
    """The columns of at most `most` rows, evenly spread over all of them."""
    import pyarrow as pa

    step = max(1, -(-rows.num_rows // most))
    taken, first = [], 0
    for batch in rows.batches(columns):
        taken.append(batch.take(pa.array(range((-first) % step, batch.num_rows, step), pa.int64())))
        first += batch.num_rows
    return pa.Table.from_batches(taken)


def places(rows: Rows, most: int) -> np.ndarray:
    """The numbers of the rows that `every` takes."""
    return np.arange(0, rows.num_rows, max(1, -(-rows.num_rows // most)))


def _numbers(array: pa.Array, name: str) -> np.ndarray:
    import pyarrow as pa

    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise DataError(f"column {name!r} must be numbers, is {array.type}", field=name)
    numbers = np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if array.null_count or not np.isfinite(numbers).all():
        raise DataError(f"column {name!r} must be finite numbers without null", field=name, hint="drop those rows in prepare")
    return numbers
