"""Rows of a data artifact through the feature graph, in workers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tidemill.core.artifact import Artifact
from tidemill.core.folds import Folds
from tidemill.core.graph import Arrays, BulkGraph
from tidemill.core.schema import Schema
from tidemill.train.matrix import OUTPUT
from tidemill.train.torch.loader.columns import Columns, joined
from tidemill.train.torch.loader.labels import Labels
from tidemill.train.torch.loader.raw import ParquetRows, blamed, digest


class TableSource:
    """A split's rows as `features`, float32 [N, F].

    Training rows have features that were learnt from the target as `training.onnx` makes them, each from the folds that the row is not in.

    Args:
        class_weight: What the rows of each class count, times their weight.

    Raises:
        DataError: If the split has no files.
    """

    targets_per_row = 1

    def __init__(self, data: Artifact, features: Artifact, split: str, *, class_weight: Sequence[float] | None = None) -> None:
        layout = features.read_json("features.json")
        self.names: list[str] = list(layout["names"])
        self._schema = Schema.from_json(layout["inputs"])
        self._labels = Labels.of(data, class_weight=class_weight)
        self._folds = Folds.from_json(layout["folds"]) if split == "train" and "folds" in layout else None
        graph, inputs = ("training.onnx", self._folds.schema(self._schema)) if self._folds else ("features.onnx", self._schema)
        self._graph = BulkGraph(features.path / graph, inputs, threads=1)
        taught = self._folds.columns if self._folds else ()
        self._wanted = list(dict.fromkeys([*self._schema.names, *self._labels.columns, *taught]))
        self._raw = ParquetRows(data, split, self._wanted)
        self._starts = np.concatenate([[0], np.cumsum(self._raw.sizes)])
        self.sizes, self.weighted = self._raw.sizes, self._labels.weighted
        row_bytes = 4 * len(self.names) + 8 + 4 * self.weighted
        self.sizes_bytes = [size * row_bytes for size in self.sizes]
        self.fingerprint = digest([self._raw.fingerprint, features.id, class_weight])

    def read(self, block: int, picks: np.ndarray | None = None) -> Columns:
        made = []
        for batch, places in self._raw.pieces(block, self._wanted, picks):
            if self._folds:
                batch = self._folds.at(batch, self._starts[block] + places)
            made.append(blamed(self._columns, batch, places, lambda place: self._raw.where(block, place)))
        if len(made) == 1:
            return made[0]
        return {name: joined([one[name] for one in made]) for name in made[0]} if made else self.blank(0)

    def weights(self, block: int) -> np.ndarray:
        return self._labels.weights(self._raw, block)

    def batch(self, columns: Columns, rows_N: np.ndarray, *, epoch: int, static: bool) -> Arrays:
        return {OUTPUT: columns[OUTPUT]}

    def blank(self, count: int) -> Columns:
        return {OUTPUT: np.zeros((count, len(self.names)), np.float32), **self._labels.blank(count)}

    def _columns(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        return {OUTPUT: self._graph.run(batch, [OUTPUT])[OUTPUT], **self._labels.read(batch)}
