from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.project import build
from tidemill.models import native
from tidemill.models.base import MemoryMatrix
from tidemill.models.config import ModelConfig
from tidemill.models.interval import Ranged, conformal_widening, fit_interval
from tidemill.models.linear import Linear, LinearParams
from tidemill.models.xgboost import XGBoost, XGBoostParams


def matrix(seed: int, num: int = 4000) -> MemoryMatrix:
    """A target whose spread grows with the second feature, and whose upper tail is long."""
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(num, 3)).astype(np.float32)
    y_N = 5 * x_NF[:, 0] + np.exp(x_NF[:, 1]) * (rng.exponential(size=num) - 1)
    x_NF[rng.random(x_NF.shape) < 0.05] = np.nan
    return MemoryMatrix(x_NF, y_N)


def fit(level: float = 0.9, *, valid: MemoryMatrix | None = None, **params: Any) -> Ranged:
    model, settings = XGBoost(), XGBoostParams(**{"num_rounds": 60, "learning_rate": 0.2, "max_depth": 4, **params})
    train, valid = matrix(0), matrix(1) if valid is None else valid
    fitted = model.fit(train, valid, task="regression", num_classes=None, params=settings, seed=0, threads=1)
    return fit_interval(model, fitted, train, valid, level=level, task="regression", params=settings, seed=0, threads=1)


@pytest.fixture(scope="module")
def ranged() -> Ranged:
    return fit()


def covered(ranged: Ranged, matrix: MemoryMatrix) -> float:
    (batch,) = matrix.batches()
    low_N, high_N = ranged.predict_interval(batch.x_NF).T
    return float(np.mean((low_N <= batch.y_N) & (batch.y_N <= high_N)))


def test_it_covers_new_rows_as_often_as_it_says(ranged: Ranged) -> None:
    assert covered(ranged, matrix(2, 20_000)) == pytest.approx(0.9, abs=0.02)


def test_it_is_wide_where_the_target_spreads(ranged: Ranged) -> None:
    x_NF = np.float32([[0, -1.5, 0], [0, 1.5, 0]])
    low_N, high_N = ranged.predict_interval(x_NF).T
    assert (high_N - low_N)[1] > 4 * (high_N - low_N)[0]


def test_it_always_holds_the_prediction(ranged: Ranged) -> None:
    crossed = Ranged(ranged.fitted, ranged.quantiles, level=0.9, widening=-50.0)
    (batch,) = matrix(3).batches()
    for one in (ranged, crossed):
        low_N, high_N = one.predict_interval(batch.x_NF).T
        p_N = one.predict(batch.x_NF)
        assert ((low_N <= p_N) & (p_N <= high_N)).all()


def test_graph_and_library_agree(ranged: Ranged) -> None:
    (batch,) = matrix(3, 500).batches()
    session = ort.InferenceSession(ranged.to_onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    prediction, interval = session.run(["prediction", "interval"], {"features": batch.x_NF})
    assert interval.dtype == np.float32
    np.testing.assert_allclose(prediction, ranged.predict(batch.x_NF), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(interval, ranged.predict_interval(batch.x_NF), rtol=1e-5, atol=1e-5)


def test_saved_and_loaded_is_the_same(ranged: Ranged, tmp_path: Path) -> None:
    native.save(ranged, tmp_path / "native", kind="xgboost")
    loaded = native.load(tmp_path / "native")
    assert isinstance(loaded, Ranged)
    (batch,) = matrix(3).batches()
    np.testing.assert_array_equal(loaded.predict_interval(batch.x_NF), ranged.predict_interval(batch.x_NF))
    assert loaded.level == 0.9
    assert loaded.to_onnx() == ranged.to_onnx()
    (tmp_path / "native" / "quantiles.ubj").write_bytes(b"{")
    with pytest.raises(DataError, match="must hold"):
        native.load(tmp_path / "native")


def test_the_prediction_is_the_one_without_interval(ranged: Ranged) -> None:
    plain = XGBoost().fit(
        matrix(0), matrix(1), task="regression", num_classes=None, seed=0, threads=1,
        params=XGBoostParams(num_rounds=60, learning_rate=0.2, max_depth=4),
    )  # fmt: skip
    (batch,) = matrix(3).batches()
    np.testing.assert_array_equal(ranged.predict(batch.x_NF), plain.predict(batch.x_NF))
    assert ranged.predict_interval(batch.x_NF[:0]).shape == (0, 2)


def test_outside_memory_it_is_the_same() -> None:
    (batch,) = matrix(3).batches()
    inside, outside = (fit(external_memory=outside).predict_interval(batch.x_NF) for outside in (False, True))
    np.testing.assert_allclose(outside, inside, rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(9, 200), st.sampled_from([0.5, 0.8, 0.9]), st.integers(0, 2**31))
def test_the_widening_covers_the_rows_it_was_made_from(num: int, level: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y_N, p_N = rng.integers(0, 9, num).astype(float), rng.integers(0, 9, num).astype(float)
    quantile_N2 = rng.normal(4, 3, size=(num, 2))
    weight_N = rng.integers(1, 4, num).astype(float)
    for weights in (None, weight_N):
        widening = conformal_widening(y_N, p_N, quantile_N2, level=level, weight_N=weights)
        low_N, high_N = np.minimum(quantile_N2[:, 0] - widening, p_N), np.maximum(quantile_N2[:, 1] + widening, p_N)
        inside_N = (low_N <= y_N + 1e-5) & (y_N - 1e-5 <= high_N)
        assert np.average(inside_N, weights=weights) >= level


def test_a_widening_needs_enough_rows() -> None:
    y_N = np.arange(18.0)
    with pytest.raises(DataError, match=r"0\.95 needs at least 19 validation rows, got 18"):
        conformal_widening(y_N, y_N - 1, np.stack([y_N, y_N], axis=1), level=0.95)
    assert conformal_widening(np.arange(19.0), np.zeros(19), np.zeros((19, 2)), level=0.95) == 18


def test_what_cannot_have_an_interval_says_so() -> None:
    common: dict[str, Any] = {"level": 0.9, "params": LinearParams(), "seed": 0, "threads": 1}
    with pytest.raises(Unsupported, match="needs a model that fits quantiles, Linear does not"):
        fit_interval(Linear(), None, matrix(0), matrix(1), task="regression", **common)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="needs a regression task, got binary"):
        fit_interval(XGBoost(), None, matrix(0), matrix(1), task="binary", **common)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="needs validation rows"):
        fit_interval(XGBoost(), None, matrix(0), None, task="regression", **common)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=r"model\.interval: needs a kind that fits quantiles, got 'linear'"):
        build(ModelConfig, {"kind": "linear", "interval": 0.9}, path="model")
    for wrong in (0.05, 1, True, "0.9"):
        with pytest.raises(ConfigError, match=r"model\.interval: must be a share in 0\.1\.\.0\.99"):
            build(ModelConfig, {"interval": wrong}, path="model")
