"""A quick fit for selectors that ask a model: trees on a sample of rows, without early stopping."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tidemill.core.load import load
from tidemill.features.select.sample import Sample

KIND = "xgboost"
# Shallower than a model's own: quicker, and less of the gain is chance.
DEPTH = 4


def fitted(rows: Sample, *, rounds: int, seed: int, threads: int) -> Any:
    """Trees of depth 4 fitted on the rows; their `importance()` and `predict(x_NF)` are a model's."""
    model = load("model", KIND)()
    # No rows or features by chance: two fits differ by their columns alone.
    params = dataclasses.replace(model.Params(), num_rounds=rounds, max_depth=DEPTH, learning_rate=0.1, subsample=1.0, colsample=1.0)
    return model.fit(rows, None, task=rows.task, num_classes=rows.num_classes, params=params, seed=seed, threads=threads)


def losses(model: Any, rows: Sample) -> np.ndarray:
    """The loss of each row, float64 [N]: minus the logarithm of its class's probability, or the squared error."""
    answer = np.asarray(model.predict(rows.rows.x_NF), np.float64)
    y_N = rows.rows.y_N
    if rows.num_classes is None:
        return np.asarray(np.square(answer - y_N))
    return np.asarray(-np.log(np.maximum(answer[np.arange(len(y_N)), y_N.astype(np.int64)], 1e-15)))
