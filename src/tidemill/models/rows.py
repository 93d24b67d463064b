"""Some rows of a matrix, each as often as it was drawn: folds, bootstrap samples, every n-th row. Nothing is copied at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tidemill.models.base import Batch, Matrix


class Drawn:
    """A matrix of the rows that were drawn, in their order; a row that was drawn twice is one row of twice the weight.

    Args:
        matrix: What was drawn from.
        times_N: How often each of its rows was drawn, whole numbers >= 0.
    """

    def __init__(self, matrix: Matrix, times_N: np.ndarray) -> None:
        self.names, self.num_features = matrix.names, matrix.num_features
        self.num_rows = int(np.count_nonzero(times_N))
        self.tables = getattr(matrix, "tables", {})
        self.layout = getattr(matrix, "layout", {})
        self._matrix = matrix
        self._times_N = times_N
        self._weighs = bool((times_N > 1).any())

    def batches(self) -> Iterator[Batch]:
        start = 0
        for batch in self._matrix.batches():
            times_N = self._times_N[start : start + len(batch.y_N)]
            start += len(batch.y_N)
            kept_N = times_N > 0
            if kept_N.any():
                yield Batch(batch.x_NF[kept_N], batch.y_N[kept_N], self._weighted(batch.weight_N, times_N, kept_N))

    def targets(self) -> tuple[np.ndarray, np.ndarray | None]:
        y_N, weight_N = self._matrix.targets()
        kept_N = self._times_N > 0
        return y_N[kept_N], self._weighted(weight_N, self._times_N, kept_N)

    def _weighted(self, weight_N: np.ndarray | None, times_N: np.ndarray, kept_N: np.ndarray) -> np.ndarray | None:
        if not self._weighs:
            return None if weight_N is None else weight_N[kept_N]
        drawn_N = times_N[kept_N].astype(np.float64)
        return drawn_N if weight_N is None else np.asarray(drawn_N * weight_N[kept_N])


def every(matrix: Matrix, most: int) -> Matrix:
    """At most `most` rows of a matrix, evenly spread; the matrix itself where it has no more."""
    step = -(-matrix.num_rows // most)
    return matrix if step <= 1 else Drawn(matrix, (np.arange(matrix.num_rows) % step == 0).astype(np.uint8))


def folds(num_rows: int, num_folds: int, *, seed: int) -> np.ndarray:
    """The fold of each row, drawn by the seed: whole numbers below `num_folds`, as evenly as they go."""
    fold_N = np.arange(num_rows, dtype=np.int32) % num_folds
    np.random.default_rng(seed).shuffle(fold_N)
    return fold_N.astype(np.uint8) if num_folds < 256 else fold_N
