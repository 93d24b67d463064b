"""The feature matrix of one split: Parquet rows through `features.onnx`, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.artifact import Artifact
from tidemill.core.errors import ConfigError, DataError
from tidemill.core.folds import Folds
from tidemill.core.graph import BulkGraph
from tidemill.core.parallel import ordered_map
from tidemill.core.schema import Schema
from tidemill.core.source import row_bytes
from tidemill.models.base import Batch

if TYPE_CHECKING:
    import pyarrow as pa

OUTPUT = "features"

# A batch under way, and what is read of a file at once.
BATCH_BYTES = 16 << 20
BUFFER_BYTES = 64 << 10
LEAST_ROWS = 1_024


class FeatureMatrix:
    """A `Matrix` over a split of a data artifact.

    Where features were learnt from the target, the training rows have them as `training.onnx` makes them, each from the folds
    that the row is not in; those of other splits are what a package answers with.

    The first pass keeps the batches where all of them fit in `cache_bytes`; later passes then cost nothing. Where they
    do not fit, each pass reads and computes them again, and no more than a few batches are in memory.

    Args:
        batch_rows: Rows of a batch at most; fewer where they would take more than some 16 MiB.
        like: Another split of the same artifacts, whose graph this one shares where it is the same.
        share: Which part of the rows this is, and of how many: consecutive row groups, of about as many rows each.

    Raises:
        ConfigError: If there are fewer row groups than parts.
        DataError: If the split has no files. While iterating: if a target is null or not among the classes, or a weight
            is null, negative or not finite.
    """

    def __init__(
        self,
        data: Artifact,
        features: Artifact,
        split: str,
        *,
        threads: int = 1,
        cache_bytes: int = 0,
        batch_rows: int = 65_536,
        like: FeatureMatrix | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.made_from = (data, features, split)
        facts = data.read_json("schema.json")
        layout = features.read_json("features.json")
        self.names: list[str] = list(layout["names"])
        self.num_features = len(self.names)
        self.tables: dict[str, dict[str, int]] = layout.get("embedding", {})
        """Features that are codes of categories, with the rows and the width of the table of each."""
        self.files = sorted((data.path / split).glob("*.parquet"))
        if not self.files:
            raise DataError(f"{data.path / split} must hold Parquet files, holds none", hint="run the data stage again")
        sizes = [_group_rows(file) for file in self.files]
        self._runs, self._first, self.num_rows = _runs(sizes, *share)
        self._schema = Schema.from_json(layout["inputs"])
        self._target: str = facts["target"]
        self._classes: list[Any] | None = facts["classes"]
        self._weight: str | None = facts["weight"]
        # Rows that categories were learnt from must be told what the other folds teach.
        taught = split == "train" and "folds" in layout
        self._folds = Folds.from_json(layout["folds"]) if taught else None
        graph, inputs = ("training.onnx", self._folds.schema(self._schema)) if self._folds else ("features.onnx", self._schema)
        # Batches go through the graph side by side, each on one thread.
        shared = like._graph if like is not None and like._graph_name == graph else None
        self._graph_name: str = graph
        self._graph: BulkGraph = shared or BulkGraph(features.path / graph, inputs, threads=1)
        self._threads = threads
        self._batch_rows = min(batch_rows, max(LEAST_ROWS, BATCH_BYTES // self._row_bytes()))
        self._fits = self.num_rows * self.num_features * 4 <= cache_bytes
        self._kept: list[Batch] | None = None
        self._targets: tuple[np.ndarray, np.ndarray | None] | None = None

    def batches(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        rows = self._folds.beside(self.rows(), self._first) if self._folds else self.rows()
        for batch in ordered_map(self._batch, rows, self._threads):
            if self._fits:
                kept.append(batch)
            yield batch
        if self._fits:
            self._kept = kept

    def targets(self) -> tuple[np.ndarray, np.ndarray | None]:
        if self._targets is None:
            wanted = [name for name in (self._target, self._weight) if name is not None]
            y_N, weight_N, first = np.empty(self.num_rows), np.empty(self.num_rows) if self._weight is not None else None, 0
            for rows in self.rows(wanted):
                part = slice(first, first := first + rows.num_rows)
                y_N[part], weights = self._labels(rows)
                if weight_N is not None:
                    weight_N[part] = weights
            self._targets = y_N, weight_N
        return self._targets

    def rows(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Raw rows in the order of `batches`: what the graph and the folds read, the target and the weight; or `columns`."""
        import pyarrow.parquet as pq

        extra = [name for name in (self._target, self._weight, *(self._folds.columns if self._folds else ())) if name is not None]
        wanted = columns if columns is not None else list(dict.fromkeys([*self._schema.names, *extra]))
        texts = [column.name for column in self._schema if column.type == "string"]
        for number, groups in self._runs:
            # Not mapped, for mapped pages count as memory until the file is closed.
            with pq.ParquetFile(self.files[number], read_dictionary=texts, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet:
                yield from parquet.iter_batches(self._batch_rows, columns=wanted, row_groups=list(groups))

    def _row_bytes(self) -> int:
        """What a row takes in memory, raw and as features."""
        import pyarrow.parquet as pq

        facts = pq.read_metadata(self.files[0])
        names = set(self._schema.names)
        size = max((row_bytes(facts.row_group(number), names) for number in range(facts.num_row_groups)), default=0)
        return size + 8 * self.num_features

    def _batch(self, rows: pa.RecordBatch) -> Batch:
        x_NF = self._graph.run(rows, [OUTPUT])[OUTPUT]
        return Batch(x_NF, *self._labels(rows))

    def _labels(self, rows: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray | None]:
        y_N = class_indices(rows[self._target], self._classes, name=self._target) if self._classes else finite_numbers(rows, self._target)
        return y_N, None if self._weight is None else row_weights(rows, self._weight)


def class_indices(values: pa.Array, classes: list[Any], *, name: str) -> np.ndarray:
    """The place of each value in `classes`, float64.

    Raises:
        DataError: If a value is null or not among them.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    found = pc.index_in(values, value_set=pa.array(classes, values.type))
    if found.null_count:
        strange = values.filter(found.is_null())[0].as_py()
        raise DataError(f"target {name!r} must be one of its {len(classes)} classes, got {strange!r}", field=name)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.float64)


def split_files(data: Artifact, split: str) -> list[Path]:
    """The Parquet files of a split, in order; none where it has no rows."""
    rows = int(data.read_json("schema.json")["rows"].get(split, 0))
    return sorted((data.path / split).glob("*.parquet")) if rows else []


def finite_numbers(rows: pa.RecordBatch, name: str) -> np.ndarray:
    """A column as float64 [N].

    Raises:
        DataError: If a value is null or not finite.
    """
    import pyarrow as pa

    values = rows[name]
    numbers = np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if values.null_count or not np.isfinite(numbers).all():
        raise DataError(f"column {name!r} must be finite numbers without null", field=name, hint="drop those rows in prepare")
    return numbers


def row_weights(rows: pa.RecordBatch, name: str) -> np.ndarray:
    """A column of weights, float64 [N].

    Raises:
        DataError: If one is null, negative or not finite.
    """
    weight_N = finite_numbers(rows, name)
    if (weight_N < 0).any():
        raise DataError(f"weight column {name!r} must be at least 0, got {weight_N.min()}", field=name)
    return weight_N


def _group_rows(file: Path) -> list[int]:
    import pyarrow.parquet as pq

    facts = pq.read_metadata(file)
    return [facts.row_group(number).num_rows for number in range(facts.num_row_groups)]


def _runs(sizes: list[list[int]], part: int, parts: int) -> tuple[list[tuple[int, range]], int, int]:
    """The row groups of one of several parts, as runs in files; the place of its first row among all; and its rows.

    Args:
        sizes: Rows of each group of each file.
    """
    if parts == 1:
        return [(file, range(len(found))) for file, found in enumerate(sizes)], 0, sum(map(sum, sizes))
    groups = [(file, number) for file, found in enumerate(sizes) for number in range(len(found))]
    if len(groups) < parts:
        raise ConfigError(
            f"train.parallel.data: each worker must have a row group to read, got {parts} workers for {len(groups)}",
            hint="take fewer workers",
        )
    ends_G = np.cumsum([sizes[file][number] for file, number in groups])
    cuts = [0]
    for one in range(1, parts):  # where the rows before are nearest to their share, leaving a group for each
        nearest = int(np.abs(ends_G - ends_G[-1] * one / parts).argmin()) + 1
        cuts.append(min(max(nearest, cuts[-1] + 1), len(groups) - (parts - one)))
    cuts.append(len(groups))
    mine = groups[cuts[part] : cuts[part + 1]]
    first = int(ends_G[cuts[part] - 1]) if cuts[part] else 0
    by_file = {file: [number for where, number in mine if where == file] for file, _ in mine}
    runs = [(file, range(numbers[0], numbers[-1] + 1)) for file, numbers in by_file.items()]
    return runs, first, int(ends_G[cuts[part + 1] - 1]) - first
