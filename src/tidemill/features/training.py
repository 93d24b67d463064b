"""The training rows as selection sees them: the features that a model is trained on, with the target beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.folds import Folds
from tidemill.core.graph import BulkGraph
from tidemill.core.schema import Schema
from tidemill.features.graph import build_graph, origins
from tidemill.features.select.selector import Rows as TrainingBatch
from tidemill.features.supervision import TargetColumn

if TYPE_CHECKING:
    import pyarrow as pa

    from tidemill.core.engine import Rows


class TrainingFeatures:
    """The feature matrix of the training rows; a `Matrix` as models take it.

    Each pass reads the rows again, in the same order. No more than a batch is in memory.

    Args:
        description: What `features.json` holds.
        rows: The training rows: the inputs, the columns of the folds, the target and the weight.
    """

    def __init__(
        self, description: Mapping[str, Any], rows: Rows, target: TargetColumn, *, num_rows: int, threads: int = 1, batch_rows: int = 65_536
    ) -> None:
        self.names: Sequence[str] = list(description["names"])
        self.num_features = len(self.names)
        self.num_rows = num_rows
        self.target = target
        self.task = target.task
        self.num_classes = len(target.classes) if target.classes else None
        self.origins: Mapping[str, str] = origins(description)
        self._rows = rows
        self._batch_rows = batch_rows
        self._folds = Folds.from_json(description["folds"]) if "folds" in description else None
        schema = Schema.from_json(description["inputs"])
        if self._folds is not None:
            schema = self._folds.schema(schema)
        self._graph = BulkGraph(build_graph(description, training=self._folds is not None)[0], schema, threads=threads)

    def batches(self) -> Iterator[TrainingBatch]:
        batches = self._rows.batches(self._batch_rows)
        for rows in batches if self._folds is None else self._folds.beside(batches):
            x_NF = self._graph.run(rows, ["features"])["features"]
            yield TrainingBatch(x_NF, self.target.values(rows), self.target.weights(rows))

    def targets(self) -> tuple[np.ndarray, np.ndarray | None]:
        parts = [(self.target.values(rows), self.target.weights(rows)) for rows in self._rows.batches(self._batch_rows)]
        weights = [weight_N for _, weight_N in parts if weight_N is not None]
        return np.concatenate([y_N for y_N, _ in parts]), np.concatenate(weights) if weights else None


def features_to_train_on(description: Mapping[str, Any], graph: bytes, batch: pa.RecordBatch) -> np.ndarray:
    """What a model is trained on, float32 [N, F], for training rows in memory.

    Args:
        description: What `features.json` holds.
        graph: What `features.onnx` holds.
        batch: All of the training rows, in order.
    """
    schema = Schema.from_json(description["inputs"])
    if "folds" in description:
        folds = Folds.from_json(description["folds"])
        graph, schema, batch = build_graph(description, training=True)[0], folds.schema(schema), next(folds.beside([batch]))
    return BulkGraph(graph, schema).run(batch, ["features"])["features"]
