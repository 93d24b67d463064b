"""XGBoost's own predict against the graph, on the values where trees go wrong: thresholds, neighbours, missing, extremes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.models.base import MemoryMatrix
from tidemill.models.calibration import calibrate
from tidemill.models.xgboost import XGBoost, XGBoostParams

TASKS = {"binary": 2, "multiclass": 4, "regression": None}
EXTREME = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e38, -1e38, 3.4e38, -3.4e38, 1.0])


def fitted(task: str, *, calibrated: bool = False, **params: Any) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(4000, 6)).astype(np.float32)
    x_NF[:, 4] = rng.integers(0, 5, 4000)
    x_NF[:, 5] *= 1e-3
    signal_N = x_NF[:, 0] * 3 + (x_NF[:, 4] == 2) - x_NF[:, 5] * 1e3 + rng.normal(size=4000)
    x_NF[rng.random(x_NF.shape) < 0.15] = np.nan
    y_N = {"binary": signal_N > 1, "multiclass": np.digitize(signal_N, [-2, 0, 2]), "regression": signal_N * 50 - 20}[task]
    train = MemoryMatrix(x_NF[:3000], y_N[:3000].astype(np.float64))
    valid = MemoryMatrix(x_NF[3000:], y_N[3000:].astype(np.float64))
    settings = XGBoostParams(**{"num_rounds": 200, "early_stopping": 10, **params})
    made: Any = XGBoost().fit(train, valid, task=task, num_classes=TASKS[task], params=settings, seed=0, threads=1)
    return (calibrate(made, valid, task=task, num_classes=TASKS[task]) if calibrated else made), x_NF


def thresholds(model: Any, features: int) -> np.ndarray:
    """Rows of one split threshold each, beside its two neighbours among float32."""
    frame = getattr(model, "fitted", model).booster.trees_to_dataframe().dropna(subset=["Split"])
    cut_N = frame["Split"].to_numpy(np.float32)
    place_N = frame["Feature"].str.removeprefix("f").to_numpy(np.int64)
    rows = []
    for value_N in (cut_N, np.nextafter(cut_N, np.float32(-np.inf)), np.nextafter(cut_N, np.float32(np.inf))):
        x_NF = np.full((len(cut_N), features), np.nan, np.float32)
        x_NF[np.arange(len(cut_N)), place_N] = value_N
        rows.append(x_NF)
    return np.concatenate(rows)


def differences(model: Any, x_NF: np.ndarray, task: str) -> np.ndarray:
    session = ort.InferenceSession(model.to_onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    native = model.predict(x_NF)
    scale = max(1.0, float(np.abs(native).max())) if task == "regression" else 1.0
    return np.abs(session.run(None, {"features": x_NF})[0] - native).reshape(len(x_NF), -1).max(axis=1) / scale


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shape", [{"max_depth": 1}, {"max_depth": 8}, {"max_depth": 4, "gamma": 1e6}, {"subsample": 0.5, "max_bin": 16}])
def test_graph_is_within_a_millionth(task: str, shape: dict[str, Any]) -> None:
    model, x_NF = fitted(task, **shape)
    assert differences(model, x_NF, task).max() <= 1e-6


@pytest.mark.parametrize("task", TASKS)
def test_at_every_threshold_and_its_neighbours(task: str) -> None:
    model, x_NF = fitted(task, max_depth=6)
    assert differences(model, thresholds(model, x_NF.shape[1]), task).max() <= 1e-6


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_calibrated_is_within_a_millionth(task: str) -> None:
    model, x_NF = fitted(task, calibrated=True)
    assert differences(model, np.concatenate([x_NF, thresholds(model, x_NF.shape[1])]), task).max() <= 1e-6


@pytest.mark.parametrize("task", TASKS)
def test_at_extreme_values(task: str) -> None:
    model, x_NF = fitted(task)
    rng = np.random.default_rng(1)
    probe_NF = rng.choice(EXTREME, (2000, x_NF.shape[1]))
    assert differences(model, probe_NF, task).max() <= 1e-6


MODEL, _ROWS = None, None


@given(st.lists(st.lists(st.floats(width=32), min_size=6, max_size=6), min_size=1, max_size=8))
def test_any_row_is_answered_alike(rows: list[list[float]]) -> None:
    global MODEL, _ROWS
    if MODEL is None:
        MODEL, _ROWS = fitted("multiclass", num_rounds=20)
    assert differences(MODEL, np.array(rows, np.float32), "multiclass").max() <= 1e-6
