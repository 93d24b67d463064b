from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from tidemill.core.errors import DataError, Unsupported
from tidemill.core.metrics import evaluate
from tidemill.models import export, native
from tidemill.models.base import MemoryMatrix
from tidemill.models.calibration import MAX_CLASSES, Calibrated, calibrate
from tidemill.models.calibration.odds import log_odds
from tidemill.models.calibration.platt import OneVersusRest, Platt, fit_curve
from tidemill.models.linear import Linear, LinearParams


def test_the_curve_that_made_the_outcomes_is_found() -> None:
    rng = np.random.default_rng(0)
    score_N = rng.normal(scale=40, size=200_000)
    positive_N = rng.random(len(score_N)) < 1 / (1 + np.exp(-(0.05 * score_N - 1.5)))
    slope, offset = fit_curve(score_N, positive_N)
    assert slope == pytest.approx(0.05, rel=0.03)
    assert offset == pytest.approx(-1.5, rel=0.03)


def test_it_is_the_logistic_regression_of_smoothed_targets() -> None:
    rng = np.random.default_rng(1)
    score_N, weight_N = rng.normal(size=300), rng.random(300)
    positive_N = rng.random(300) < 0.3
    plus, minus = weight_N[positive_N].sum(), weight_N[~positive_N].sum()
    target_N = np.where(positive_N, (plus + 1) / (plus + 2), 1 / (minus + 2))
    twice = np.concatenate([weight_N * target_N, weight_N * (1 - target_N)])
    peer = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    peer.fit(np.tile(score_N, 2)[:, None], np.repeat([1, 0], 300), sample_weight=twice)
    assert fit_curve(score_N, positive_N, weight_N) == pytest.approx((peer.coef_[0, 0], peer.intercept_[0]), rel=1e-4)


@given(
    scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    outcomes=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_any_scores_give_a_finite_curve(scores: list[float], outcomes: list[bool]) -> None:
    positive_N = np.array(outcomes[: len(scores)])
    slope, offset = fit_curve(np.array(scores), positive_N)
    assert np.isfinite([slope, offset]).all()


def test_a_perfect_score_stays_short_of_certainty() -> None:
    score_N = np.concatenate([np.full(50, -3.0), np.full(50, 3.0)])
    slope, offset = fit_curve(score_N, score_N > 0)
    p = 1 / (1 + np.exp(-(slope * score_N + offset)))
    np.testing.assert_allclose(p, np.where(score_N > 0, 51 / 52, 1 / 52), rtol=1e-5)


@given(st.lists(st.lists(st.floats(-500, 500), min_size=3, max_size=3), min_size=1, max_size=20))
def test_log_odds_are_exact_where_probabilities_round(scores: list[list[float]]) -> None:
    score_NK = np.array(scores)
    p_NK = export.softmax(score_NK)
    inner = (p_NK > 1e-6) & (p_NK < 1 - 1e-6)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(log_odds(score_NK)[inner], np.log(p_NK / (1 - p_NK))[inner], rtol=1e-6, atol=1e-6)
    assert np.isfinite(log_odds(score_NK)).all()


@given(
    scores=st.lists(st.lists(st.floats(-300, 300, width=32), min_size=4, max_size=4), min_size=1, max_size=8),
    slope=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    offset=st.lists(st.floats(-5, 5), min_size=4, max_size=4),
)
def test_graph_and_numpy_agree_over_classes(scores: list[list[float]], slope: list[float], offset: list[float]) -> None:
    score_NK = np.array(scores, np.float32)
    link = OneVersusRest(np.array(slope, np.float32), np.array(offset, np.float32))
    expected = link.apply(score_NK)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    np.testing.assert_allclose(run_link(link, score_NK), expected, atol=2e-5)  # float32 of scores of 300 times 3


@given(scores=st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=8), slope=st.floats(-3, 3), offset=st.floats(-5, 5))
def test_graph_and_numpy_agree_for_two_classes(scores: list[float], slope: float, offset: float) -> None:
    score_N1 = np.array(scores, np.float32)[:, None]
    link = export.Sigmoid(float(np.float32(slope)), float(np.float32(offset)))
    np.testing.assert_allclose(run_link(link, score_N1), link.apply(score_N1), atol=2e-5)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_it_mends_probabilities_that_are_off(task: str, tmp_path: Path) -> None:
    classes = 2 if task == "binary" else 3
    train, valid, test = (matrix(seed, classes, noise) for seed, noise in ((0, 0.2), (1, 3.0), (2, 3.0)))
    fitted = fit(task, classes, train)  # far too sure of itself for the noisier rows
    calibrated = calibrate(fitted, valid, task=task, num_classes=classes)
    (batch,) = test.batches()
    losses = [evaluate(task, batch.y_N, model.predict(batch.x_NF), metrics=["log_loss"])["log_loss"] for model in (fitted, calibrated)]  # type: ignore[arg-type]
    assert losses[1] < 0.7 * losses[0]
    native.save(calibrated, tmp_path / "native", kind="linear")
    loaded = native.load(tmp_path / "native")
    assert isinstance(loaded, Calibrated)
    np.testing.assert_array_equal(loaded.predict(batch.x_NF), calibrated.predict(batch.x_NF))
    session = ort.InferenceSession(calibrated.to_onnx().SerializeToString())
    np.testing.assert_allclose(session.run(None, {"features": batch.x_NF})[0], calibrated.predict(batch.x_NF), atol=1e-6)
    assert calibrated.importance() == fitted.importance()


def test_what_cannot_be_calibrated_is_named() -> None:
    rows = matrix(0, 2, 0.5)
    fitted = fit("binary", 2, rows)
    with pytest.raises(Unsupported, match="needs a binary or multiclass task, got regression"):
        calibrate(fitted, rows, task="regression", num_classes=None)
    with pytest.raises(Unsupported, match="at most 200 classes, got 201"):
        calibrate(fitted, rows, task="multiclass", num_classes=MAX_CLASSES + 1)
    with pytest.raises(DataError, match="needs validation rows"):
        calibrate(fitted, MemoryMatrix(np.empty((0, 2), np.float32), np.empty(0)), task="binary", num_classes=2)
    with pytest.raises(Unsupported, match="Scoreless has none"):
        calibrate(Scoreless(), rows, task="binary", num_classes=2)


def test_a_curve_is_written_as_numbers() -> None:
    curve = Platt(slope=(1.5, 0.1, 0.3), offset=(0.0, 1.0, -1e-17))
    assert Platt.from_json(curve.to_json()) == curve


class Scoreless:
    best_round = None

    def predict(self, x_NF: Any) -> Any:
        return np.zeros((len(x_NF), 2))

    def to_onnx(self) -> Any:
        return None

    def importance(self) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        pass


def matrix(seed: int, classes: int, noise: float) -> MemoryMatrix:
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(4000, 2)).astype(np.float32)
    signal_N = x_NF[:, 0] + rng.normal(scale=noise, size=4000)
    edges = [0.3] if classes == 2 else [-0.5, 0.5]
    return MemoryMatrix(x_NF, np.digitize(signal_N, edges).astype(np.float64))


def fit(task: str, classes: int, train: MemoryMatrix) -> Any:
    return Linear().fit(train, None, task=task, num_classes=classes, params=LinearParams(), seed=0, threads=1)


def run_link(link: Any, score_NS: np.ndarray) -> np.ndarray:
    """A link's nodes over scores handed in as they are."""
    from onnx import helper

    scores = [helper.make_node("Identity", ["features"], [export.SCORE])], []
    width = score_NS.shape[1]
    model = export.assemble(scores, link, num_features=width, num_classes=max(width, 2))
    return np.asarray(ort.InferenceSession(model.SerializeToString()).run(None, {"features": score_NS})[0])
