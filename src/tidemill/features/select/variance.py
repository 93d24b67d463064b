"""Variance: features leave that are one value in all rows, or nearly all."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tidemill.features.select.sample import sample
from tidemill.features.select.selector import Dropped, Matrix

# Rows from which the value is guessed that most rows hold; how many do is then counted over all.
GUESS_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class Variance:
    """Leaves out a feature that holds one value, or is missing, in more than a share of the training rows.

    The value is the most frequent one of 20,000 rows; its share is counted over all rows, exactly, in one more pass.
    """

    max_share: float = field(default=0.999, metadata={"min": 0.5, "max": 1.0})
    """Share of the rows that may hold the same value, in 0.5..1; at 1 only constant features leave."""

    def select(self, matrix: Matrix, *, seed: int, threads: int) -> dict[str, Dropped]:
        guessed_F = _most_frequent(sample(matrix, GUESS_ROWS, seed=seed).rows.x_NF)
        missing_F = np.isnan(guessed_F)
        same_F, rows = np.zeros(matrix.num_features, np.int64), 0
        for x_NF, _, _ in matrix.batches():
            same_F += ((x_NF == guessed_F) | (np.isnan(x_NF) & missing_F)).sum(axis=0)
            rows += len(x_NF)
        found = {}
        for name, value, same in zip(matrix.names, guessed_F.tolist(), same_F.tolist(), strict=True):
            if same == rows or same > self.max_share * rows:
                said = "missing" if np.isnan(value) else f"{value:g}"
                share = same / max(rows, 1)
                found[name] = Dropped(f"{share:.4%} of the rows are {said}" if same < rows else f"every row is {said}", share)
        return found


def _most_frequent(x_NF: np.ndarray) -> np.ndarray:
    """The value of each column that most rows hold, NaN one of them, float32 [F]."""
    made = np.empty(x_NF.shape[1], np.float32)
    for i, column in enumerate(x_NF.T):
        values, counts = np.unique(column, return_counts=True)  # NaNs are one value, the last
        made[i] = values[np.argmax(counts)] if len(values) else np.nan
    return made
