"""The training rows as selection sees them: the features that were fitted on them, with the target beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.graph import BulkGraph
from tidemill.core.schema import Schema
from tidemill.features.graph import build_graph

if TYPE_CHECKING:
    import pyarrow as pa

    from tidemill.core.engine import Rows


@dataclass(frozen=True, kw_only=True)
class TargetColumn:
    """What is predicted, as the data artifact's `schema.json` says it."""

    name: str
    task: str
    classes: tuple[Any, ...] | None = None
    """Labels in order; None for a number."""
    weight: str | None = None
    """Column of weights of the rows."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> TargetColumn:
        classes = facts.get("classes")
        task = facts.get("task") or ("multiclass" if classes else "regression")
        return cls(name=facts["target"], task=task, classes=tuple(classes) if classes else None, weight=facts.get("weight"))

    @property
    def columns(self) -> list[str]:
        return [self.name, *([self.weight] if self.weight else [])]

    def values(self, batch: pa.RecordBatch) -> np.ndarray:
        """The target of each row, float64 [N]: the index of its class, or the number.

        Raises:
            DataError: If a value is null, or no class.
        """
        array = batch.column(batch.schema.get_field_index(self.name))
        if self.classes is None:
            return _numbers(array, self.name)
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        found = pc.index_in(array, value_set=pa.array(list(self.classes)).cast(array.type))
        if found.null_count:
            strange = array.filter(found.is_null())[0].as_py()
            raise DataError(f"target {self.name!r} must be one of its {len(self.classes)} classes, got {strange!r}", field=self.name)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.float64)

    def weights(self, batch: pa.RecordBatch) -> np.ndarray | None:
        """The weight of each row, float64 [N]; None where rows have none."""
        return _numbers(batch.column(batch.schema.get_field_index(self.weight)), self.weight) if self.weight else None


class TrainingBatch(NamedTuple):
    """Rows of a feature matrix, as models take them."""

    x_NF: np.ndarray
    y_N: np.ndarray
    weight_N: np.ndarray | None


class TrainingFeatures:
    """The feature matrix of the training rows; a `Matrix` as models take it.

    Each pass reads the rows again, in the same order. No more than a batch is in memory.

    Args:
        description: What `features.json` holds.
        rows: The training rows, with the target and the weight beside the inputs.
    """

    def __init__(
        self, description: Mapping[str, Any], rows: Rows, target: TargetColumn, *, num_rows: int, threads: int = 1, batch_rows: int = 65_536
    ) -> None:
        self.names: Sequence[str] = list(description["names"])
        self.num_features = len(self.names)
        self.num_rows = num_rows
        self.target = target
        self._rows = rows
        self._batch_rows = batch_rows
        self._graph = BulkGraph(build_graph(description)[0], Schema.from_json(description["inputs"]), threads=threads)

    def batches(self) -> Iterator[TrainingBatch]:
        for rows in self._rows.batches(self._batch_rows):
            x_NF = self._graph.run(rows, ["features"])["features"]
            yield TrainingBatch(x_NF, self.target.values(rows), self.target.weights(rows))

    def targets(self) -> tuple[np.ndarray, np.ndarray | None]:
        parts = [(self.target.values(rows), self.target.weights(rows)) for rows in self._rows.batches(self._batch_rows)]
        weights = [weight_N for _, weight_N in parts if weight_N is not None]
        return np.concatenate([y_N for y_N, _ in parts]), np.concatenate(weights) if weights else None


def _numbers(array: pa.Array, name: str) -> np.ndarray:
    import pyarrow as pa

    numbers = np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if array.null_count or not np.isfinite(numbers).all():
        raise DataError(f"column {name!r} must be finite numbers without null", field=name, hint="drop those rows in prepare")
    return numbers
