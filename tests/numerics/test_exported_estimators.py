"""Trees of scikit-learn against their graphs, where trees go wrong: thresholds, their neighbours, missing, extremes.

scikit-learn keeps thresholds in double precision; the graph's are single, as the features are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tidemill.models.base import MemoryMatrix
from tidemill.models.sklearn import Estimator, EstimatorParams


def thresholds(estimator: Any) -> list[tuple[int, float]]:
    """Feature and threshold of every split."""
    if hasattr(estimator, "_predictors"):
        nodes = np.concatenate([tree.nodes for stage in estimator._predictors for tree in stage])
        inner = nodes[nodes["is_leaf"] == 0]
        return list(zip(inner["feature_idx"].tolist(), inner["num_threshold"].tolist(), strict=True))
    trees = [member.tree_ for member in np.ravel(getattr(estimator, "estimators_", [estimator]))]
    return [(int(f), float(t)) for tree in trees for f, t in zip(tree.feature, tree.threshold, strict=True) if f >= 0]


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize("kind", ["HistGradientBoosting", "GradientBoosting", "RandomForest", "ExtraTrees"])
def test_at_every_threshold_and_its_neighbours(kind: str, task: str) -> None:
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(1500, 3)).astype(np.float32)
    x_NF[:, 1] = (np.arange(1500) % 40 + 16_777_190).astype(np.float32)  # neighbours in single precision
    x_NF[:, 2] = (rng.integers(0, 200, 1500) / np.float32(7)).astype(np.float32)
    y_N = x_NF[:, 0] + (x_NF[:, 1] > 16_777_210) + np.sin(x_NF[:, 2]) + rng.normal(scale=0.3, size=1500)
    if kind == "HistGradientBoosting":
        x_NF[rng.random(x_NF.shape) < 0.05] = np.nan
    y_N = (y_N > 0.5).astype(np.float64) if task == "binary" else y_N
    name = f"sklearn.ensemble:{kind}{'Classifier' if task == 'binary' else 'Regressor'}"
    size = {"max_iter": 20} if kind == "HistGradientBoosting" else {"n_estimators": 10}
    params = EstimatorParams(estimator=name, arguments={**size, **({} if kind == "HistGradientBoosting" else {"max_depth": 6})})
    classes = 2 if task == "binary" else None
    fitted = Estimator().fit(MemoryMatrix(x_NF, y_N), None, task=task, num_classes=classes, params=params, seed=0, threads=1)
    probes = [x_NF, np.float32([[np.inf, -np.inf, 0], [3e38, -3e38, 1e-45], [-0.0, 0.0, 1]])]
    for feature, value in thresholds(fitted.estimator):
        near = np.float32(value)
        rows_NF = np.repeat(x_NF[1:2], 3, axis=0)
        rows_NF[:, feature] = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
        probes.append(rows_NF)
    probe_NF = np.concatenate(probes)
    expected = fitted.predict(probe_NF)
    (found,) = ort.InferenceSession(fitted.to_onnx().SerializeToString()).run(None, {"features": probe_NF})
    apart_N = np.abs(found - expected).reshape(len(probe_NF), -1).max(axis=1) / max(1.0, float(np.abs(expected).max()))
    assert apart_N.max() <= 1e-6, f"{(apart_N > 1e-6).sum()} of {len(apart_N)} rows"
