"""Class weights: rows of rare classes made to count as much as the project says, for any kind of model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tidemill.core.errors import ConfigError, nearest
from tidemill.models.base import Batch, Matrix


class Reweighted:
    """A matrix with each row's weight multiplied by its class's."""

    def __init__(self, matrix: Matrix, weight_K: np.ndarray) -> None:
        self.names, self.num_rows, self.num_features = matrix.names, matrix.num_rows, matrix.num_features
        self.tables = getattr(matrix, "tables", {})
        self.layout = getattr(matrix, "layout", {})
        self.matrix = matrix
        self.weight_K = weight_K

    def batches(self) -> Iterator[Batch]:
        for batch in self.matrix.batches():
            yield Batch(batch.x_NF, batch.y_N, self._weighted(batch.y_N, batch.weight_N))

    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        y_N, weight_N = self.matrix.targets()
        return y_N, self._weighted(y_N, weight_N)

    def _weighted(self, y_N: np.ndarray, weight_N: np.ndarray | None) -> np.ndarray:
        class_weight_N = self.weight_K[y_N.astype(np.int64)]
        return class_weight_N if weight_N is None else np.asarray(class_weight_N * weight_N)


def class_weights(train: Matrix, setting: Literal["balanced"] | Mapping[str, float], classes: Sequence[Any]) -> np.ndarray:
    """The weight of each class, shape (K,), float64.

    "balanced" gives every class the same total weight, and the rows a mean weight of 1. A table names classes as text
    (`true`, `false` for booleans); those that it leaves out keep 1.

    Raises:
        ConfigError: If the table names a class that the target does not have.
    """
    if isinstance(setting, Mapping):
        names = [class_name(value) for value in classes]
        for name in setting:
            if name not in names:
                close = nearest(name, names)
                hint = f"did you mean {close!r}?" if close else f"classes: {', '.join(names[:12])}"
                raise ConfigError(f"model.class_weight.{name}: must be a class of the target", hint=hint)
        return np.array([setting.get(name, 1.0) for name in names], np.float64)
    y_N, weight_N = train.targets()
    total_K = np.bincount(y_N.astype(np.int64), weights=weight_N, minlength=len(classes))
    present = total_K > 0
    return np.where(present, total_K.sum() / (present.sum() * np.where(present, total_K, 1.0)), 1.0)


def class_name(value: Any) -> str:
    """A class as text, booleans as in TOML."""
    return str(value).lower() if isinstance(value, bool) else str(value)
