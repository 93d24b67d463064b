"""How much each feature matters to a fitted model of any kind: the loss that shuffling it brings (Breiman 2001)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tidemill.core.metrics import evaluate
from tidemill.models import base
from tidemill.models.rows import every

# Rows that are looked at, and of how many features times rows.
COMPARED_ROWS = 2_000
PERMUTED_VALUES = 200_000


def permuted(fitted: Any, matrix: base.Matrix, *, seed: int) -> list[float]:
    """Each feature's share of the loss that shuffling brings, on some rows evenly spread; sums to 1, or all 0.

    Args:
        fitted: What predicts, with its `task`.
    """
    rows = max(50, min(COMPARED_ROWS, PERMUTED_VALUES // max(matrix.num_features, 1)))
    batches = list(every(matrix, rows).batches())
    x_NF = np.concatenate([batch.x_NF for batch in batches]).astype(np.float32)
    y_N = np.concatenate([batch.y_N for batch in batches]).astype(np.float64)
    return shares(added_loss(fitted, x_NF, y_N, seed=seed))


def added_loss(fitted: Any, x_NF: np.ndarray, y_N: np.ndarray, *, seed: int) -> np.ndarray:
    """How much worse the loss is with each feature shuffled, (F,)."""
    rng, task = np.random.default_rng(seed), fitted.task
    metric = "rmse" if task == "regression" else "log_loss"

    def loss() -> float:
        return float(evaluate(task, y_N, fitted.predict(x_NF), metrics=[metric])[metric])

    before, worse = loss(), []
    for feature in range(x_NF.shape[1]):
        kept_N = x_NF[:, feature].copy()
        x_NF[:, feature] = rng.permutation(kept_N)
        worse.append(loss() - before)
        x_NF[:, feature] = kept_N
    return np.array(worse)


def shares(weight_F: np.ndarray) -> list[float]:
    """Weights as shares that sum to 1, what is below 0 as 0."""
    weight_F = np.maximum(np.asarray(weight_F, np.float64), 0)
    total = weight_F.sum()
    return [float(share) for share in (weight_F / total if total > 0 else weight_F)]
