"""A forest's graph against its leaves summed in double precision: hundreds of trees add up many roundings."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tidemill.models.base import MemoryMatrix
from tidemill.models.random_forest import RandomForest, RandomForestParams

TASKS = {"binary": 2, "multiclass": 4, "regression": None}


def fitted(task: str, **params: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(3000, 6)).astype(np.float32)
    x_NF[:, 4] = rng.integers(0, 5, 3000)
    signal_N = x_NF[:, 0] * 3 + (x_NF[:, 4] == 2) - x_NF[:, 5] + rng.normal(size=3000)
    x_NF[rng.random(x_NF.shape) < 0.15] = np.nan
    y_N = {"binary": signal_N > 3, "multiclass": np.digitize(signal_N, [-2, 0, 2]), "regression": signal_N * 50 - 2000}[task]
    made = RandomForest().fit(
        MemoryMatrix(x_NF, y_N.astype(np.float64)), None, task=task, num_classes=TASKS[task],
        params=RandomForestParams(**params), seed=0, threads=1,
    )  # fmt: skip
    return made, x_NF, y_N.astype(np.float64)


def answers(model: Any, x_NF: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.to_onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"features": x_NF})[0])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "params", [{"num_trees": 600, "max_depth": 6}, {"num_trees": 60, "min_leaf": 0.0, "max_depth": 25}], ids=["many", "deep"]
)
def test_graph_is_within_two_millionths(task: str, params: dict[str, Any]) -> None:
    model, x_NF, _ = fitted(task, **params)
    rng = np.random.default_rng(1)
    probe_NF = rng.choice(np.float32([np.nan, np.inf, -np.inf, 0, 1e-45, 3.4e38, -3.4e38, 1]), (500, 6))
    for rows_NF in (x_NF, x_NF[:1], probe_NF):
        native = model.predict(rows_NF)
        scale = np.abs(native).max() if task == "regression" else 1.0
        assert np.abs(answers(model, rows_NF) - native).max() / scale <= 2e-6


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_one_whole_tree_answers_the_mean_of_its_leaves(task: str) -> None:
    model, x_NF, y_N = fitted(task, num_trees=1, max_depth=4, subsample=1.0, max_features=1.0)
    leaf_N = model.trees.booster.predict(_rows(x_NF), pred_leaf=True)
    p_N = model.predict(x_NF)
    p_N = p_N if task == "regression" else p_N[:, 1]
    for leaf in np.unique(leaf_N):
        inside_N = leaf_N == leaf
        assert np.ptp(p_N[inside_N]) == 0
        assert p_N[inside_N][0] == pytest.approx(y_N[inside_N].mean(), rel=1e-4, abs=2e-6)


def _rows(x_NF: np.ndarray) -> Any:
    import xgboost

    return xgboost.DMatrix(x_NF, nthread=1)
