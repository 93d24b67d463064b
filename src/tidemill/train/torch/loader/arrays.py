"""Rows that are arrays: features, or images as they are in memory, mapped or not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.graph import Arrays
from tidemill.train.torch.loader.augment import Augment, Augmented
from tidemill.train.torch.loader.columns import Columns
from tidemill.train.torch.loader.source import BLOCK_BYTES, PIXELS, TARGET, WEIGHT


class ArraySource:
    """Arrays in memory or mapped, a row in each place of the first axis. Both come in the same order.

    Args:
        inputs: What the network takes, by name.
        target: Class indices as any whole numbers or booleans, or numbers.
        weight: At least 0.
        augment: What is done to `pixels` [N, C, H, W] in each epoch anew; None leaves them as they are.
        seed: Of what is drawn by `augment`.

    Raises:
        DataError: If the arrays are of differing lengths, or a number is not finite or a weight below 0.
    """

    targets_per_row = 1

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        target: np.ndarray,
        weight: np.ndarray | None = None,
        *,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        rows = {name: len(column) for name, column in {**inputs, TARGET: target, **({} if weight is None else {WEIGHT: weight})}.items()}
        if len(set(rows.values())) > 1:
            raise DataError(f"inputs and targets must have as many rows as each other, got {rows}")
        columns = {name: np.asarray(column) for name, column in inputs.items()}  # no memmap, which is slow to take from
        columns[TARGET] = np.asarray(target, np.int64 if target.dtype.kind in "iub" else np.float32)
        if weight is not None:
            columns[WEIGHT] = np.asarray(weight, np.float32)
            strange = np.flatnonzero(~(np.isfinite(columns[WEIGHT]) & (columns[WEIGHT] >= 0)))
            if len(strange):
                raise DataError(f"a weight must be a finite number of at least 0, got {weight[strange[0]]} in row {strange[0]}")
        strange = np.flatnonzero(~np.isfinite(columns[TARGET]))
        if len(strange):
            raise DataError(f"a target must be a finite number, got {target[strange[0]]} in row {strange[0]}")
        self._columns, self.weighted = columns, weight is not None
        self._augmented = None if augment is None else Augmented(augment, seed=seed)
        count = rows[TARGET]
        row_bytes = max(1, sum(column.nbytes for column in columns.values()) // max(1, count))
        self._block = max(1, BLOCK_BYTES // row_bytes)
        self.sizes = [min(self._block, count - first) for first in range(0, count, self._block)]
        self.sizes_bytes = [size * row_bytes for size in self.sizes]
        self.fingerprint = _digest(columns)

    def read(self, block: int, picks: np.ndarray | None = None) -> Columns:
        first = block * self._block
        return self.take(np.arange(first, first + self.sizes[block]) if picks is None else first + picks)

    def take(self, rows_N: np.ndarray) -> Columns:
        return {name: column.take(rows_N, axis=0) for name, column in self._columns.items()}

    def weights(self, block: int) -> np.ndarray:
        first = block * self._block
        return np.asarray(self._columns[WEIGHT][first : first + self.sizes[block]])

    def batch(self, columns: Columns, rows_N: np.ndarray, *, epoch: int, static: bool) -> Arrays:
        inputs = {name: column for name, column in columns.items() if name not in (TARGET, WEIGHT)}
        if self._augmented is not None:
            inputs[PIXELS] = self._augmented.apply(inputs[PIXELS], rows_N, epoch=epoch)
        return inputs

    def blank(self, count: int) -> Columns:
        return {name: np.zeros((count, *column.shape[1:]), column.dtype) for name, column in self._columns.items()}


def _digest(columns: Mapping[str, np.ndarray]) -> str:
    """Of shapes and of the rows at some hundred places: enough to tell another table from this one."""
    made = hashlib.sha256()
    for name, column in columns.items():
        made.update(f"{name}{column.dtype}{column.shape}".encode())
        made.update(np.ascontiguousarray(column[:: max(1, len(column) // 100)]).tobytes())
    return made.hexdigest()[:16]
