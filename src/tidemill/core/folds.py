"""Folds of the training rows: what is learnt from a row's target must not be given back to the same row.

A fold is a whole number per row, in 0..count - 1. Rows that are equal in the columns that tell rows apart are in one fold,
so that a copy of a row never tells its own target. Where rows repeat by nature, as in a table of a few short columns, no
columns are named, and the folds go by the position of the rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tidemill.core.schema import Column, Schema

if TYPE_CHECKING:
    import pyarrow as pa

# The column, and the input of graphs for training, that holds each row's fold.
FOLD = "__fold"

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Folds:
    """How rows go to folds. The same rows in the same order get the same folds, whatever the batches."""

    count: int
    columns: tuple[str, ...] = ()
    """Columns whose values tell the fold; none where it is the position that does."""

    def of(self, batch: pa.RecordBatch) -> np.ndarray:
        """Each row's fold, int64 [N]: from the column `FOLD` where the batch has one, else from the columns' values."""
        place = batch.schema.get_field_index(FOLD)
        if place >= 0:
            return np.asarray(batch.column(place).to_numpy(zero_copy_only=False), np.int64)
        return (content_hash(batch, self.columns) % np.uint64(self.count)).astype(np.int64)

    def beside(self, batches: Iterable[pa.RecordBatch], first: int = 0) -> Iterator[pa.RecordBatch]:
        """Consecutive batches, each with its rows' folds as the column `FOLD`.

        Args:
            first: The place of the first row among all rows.
        """
        for batch in batches:
            yield self.at(batch, np.arange(first, first := first + batch.num_rows))

    def at(self, batch: pa.RecordBatch, places_N: np.ndarray) -> pa.RecordBatch:
        """Rows that stand at some places among all rows, with their folds as the column `FOLD`."""
        import pyarrow as pa

        fold_N = self.of(batch) if self.columns else (_mixed(places_N.astype(np.uint64)) % np.uint64(self.count)).astype(np.int64)
        return batch.append_column(pa.field(FOLD, pa.int64(), nullable=False), pa.array(fold_N))

    def schema(self, inputs: Schema) -> Schema:
        """The inputs of a graph for training: those of the one that answers, and the fold."""
        return Schema((*inputs, Column(name=FOLD, type="int64", nullable=False)))

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "columns": list(self.columns)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        return cls(count=int(tree["count"]), columns=tuple(tree["columns"]))


def content_hash(batch: pa.RecordBatch, columns: Iterable[str]) -> np.ndarray:
    """A hash of each row's values, uint64 [N]; equal values of any batch hash alike, null and NaN as one.

    Made for folds: about ten times as fast as `core.engine.row_hash`, and no defence against anyone.
    """
    hashes = np.zeros(batch.num_rows, np.uint64)
    for name in columns:
        values = _hashed(batch.column(batch.schema.get_field_index(name)))
        hashes = _mixed(hashes ^ values)
    return hashes


def _hashed(column: pa.Array) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        coded = column if pa.types.is_dictionary(kind) else column.dictionary_encode()
        places = pc.fill_null(coded.indices.cast(pa.int64()), len(coded.dictionary)).to_numpy(zero_copy_only=False)
        occurs = np.zeros(len(coded.dictionary) + 1, bool)
        occurs[places] = True
        hashes = np.zeros(len(occurs), np.uint64)
        texts = coded.dictionary.filter(pa.array(occurs[:-1])).to_pylist()
        hashes[:-1][occurs[:-1]] = [0 if text is None else zlib.crc32(text.encode()) + 1 for text in texts]
        return np.asarray(_mixed(hashes)[places])
    null = column.is_null(nan_is_null=pa.types.is_floating(kind)).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(kind):
        numbers = (column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False) + 0.0).view(np.uint64)
    elif pa.types.is_boolean(kind):
        numbers = column.fill_null(False).cast(pa.uint8()).to_numpy(zero_copy_only=False).astype(np.uint64)
    else:
        numbers = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)
    return np.asarray(np.where(null, np.uint64(0), _mixed(numbers + _GOLDEN)))


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele and others, 2014)."""
    with np.errstate(over="ignore"):
        z = hashes + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))
