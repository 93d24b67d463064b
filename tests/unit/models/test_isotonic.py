from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from tidemill.core.errors import DataError
from tidemill.core.metrics import evaluate
from tidemill.models import export, native
from tidemill.models.base import MemoryMatrix
from tidemill.models.calibration import Calibrated, calibrate
from tidemill.models.calibration.isotonic import STEEPEST, Isotonic, Piecewise, binned, fit_curve
from tidemill.models.linear import Linear, LinearParams
from tidemill.models.random_forest import RandomForest, RandomForestParams


def outcomes(seed: int, num: int = 8000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores whose true probabilities are no logistic curve of them, and weights."""
    rng = np.random.default_rng(seed)
    score_N = rng.normal(scale=2, size=num)
    return score_N, rng.random(num) < np.where(score_N < 0, 0.1, 0.1 + 0.7 * np.tanh(score_N)), rng.uniform(0.5, 2, num)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_curve_is_scikit_learns(weighted: bool) -> None:
    score_N, positive_N, weight_N = outcomes(0)
    given_N = weight_N if weighted else None
    x_B, p_B = fit_curve(score_N, positive_N, given_N)
    mean_B, share_B, weight_B = binned(score_N, positive_N, given_N)
    least = 1 / (len(score_N) + 2)
    peer = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(mean_B, share_B, sample_weight=weight_B)
    probe_N = np.concatenate([np.linspace(-20, 20, 999), mean_B])
    ours_N = Piecewise([x_B], [p_B]).apply(probe_N[:, None])[:, 1]
    np.testing.assert_allclose(ours_N, peer.predict(probe_N), atol=1e-6)
    # and next to that of single rows
    rows = IsotonicRegression(out_of_bounds="clip").fit(score_N, positive_N, sample_weight=given_N)
    assert np.average(np.abs(rows.predict(score_N) - np.interp(score_N, x_B, p_B))) < 0.01


def test_bins_keep_equal_scores_and_all_weight_together() -> None:
    rng = np.random.default_rng(0)
    score_N, weight_N = rng.integers(0, 7, 1000) / 3, rng.random(1000)
    mean_B, share_B, weight_B = binned(score_N, score_N > 1, weight_N)
    assert mean_B == pytest.approx(np.arange(7) / 3)
    assert share_B.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert weight_B == pytest.approx(np.bincount((score_N * 3).round().astype(int), weight_N))


def test_it_beats_the_logistic_curve_where_that_does_not_fit() -> None:
    train, valid, test = (matrix(seed) for seed in (0, 1, 2))
    fitted = Linear().fit(train, None, task="binary", num_classes=2, params=LinearParams(), seed=0, threads=1)
    (batch,) = test.batches()
    losses = []
    for method in ("platt", "isotonic"):
        model = calibrate(fitted, valid, task="binary", num_classes=2, method=method)
        losses.append(evaluate("binary", batch.y_N, model.predict(batch.x_NF), metrics=["log_loss"])["log_loss"])
    assert losses[1] < 0.97 * losses[0]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["linear", "random_forest"])
def test_graph_native_and_saved_agree(classes: int, kind: str, tmp_path: Path) -> None:
    task = "binary" if classes == 2 else "multiclass"
    train, valid, test = (matrix(seed, classes) for seed in (0, 1, 2))
    model: Any = Linear() if kind == "linear" else RandomForest()
    params: Any = LinearParams() if kind == "linear" else RandomForestParams(num_trees=20)
    fitted = model.fit(train, None, task=task, num_classes=classes, params=params, seed=0, threads=1)
    made = calibrate(fitted, valid, task=task, num_classes=classes, method="isotonic")
    (batch,) = test.batches()
    expected = made.predict(batch.x_NF)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    assert ((expected > 0) & (expected < 1)).all()
    session = ort.InferenceSession(made.to_onnx().SerializeToString())
    np.testing.assert_allclose(session.run(None, {"features": batch.x_NF})[0], expected, atol=1e-5)
    native.save(made, tmp_path / "native", kind=kind)
    loaded = native.load(tmp_path / "native")
    assert isinstance(loaded, Calibrated)
    assert loaded.curve == made.curve
    np.testing.assert_array_equal(loaded.predict(batch.x_NF), expected)


@given(
    steps=st.lists(st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 0.015)), min_size=1, max_size=20), min_size=3, max_size=3),
    scores=st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_any_curves_are_the_same_in_the_graph(steps: list[list[tuple[float, float]]], scores: list[list[float]]) -> None:
    score_NK = np.array(scores, np.float32)
    odds = [(np.cumsum([gap for gap, _ in curve]) - 10).astype(np.float32).astype(np.float64) for curve in steps]
    link = Piecewise(odds, [0.01 + np.cumsum([gap * slope for gap, slope in curve]) for curve in steps])
    np.testing.assert_allclose(run_link(link, score_NK), link.apply(score_NK), atol=3e-5)
    single = Piecewise(odds[:1], link.probability[:1])
    np.testing.assert_allclose(run_link(single, score_NK[:, :1]), single.apply(score_NK[:, :1]), atol=3e-5)


def test_scores_that_lie_on_one_another_make_no_jump() -> None:
    score_N = np.repeat([1.0, 1.0 + 1e-6, 2.0], 300)
    x_B, p_B = fit_curve(score_N, np.repeat([False, True, True], 300))
    assert (np.diff(p_B) <= STEEPEST * np.diff(x_B) + 1e-7).all()
    assert p_B[-1] == pytest.approx(1, abs=2e-3)


def test_few_rows_are_refused_with_what_to_do() -> None:
    fitted = Linear().fit(matrix(0), None, task="binary", num_classes=2, params=LinearParams(), seed=0, threads=1)
    with pytest.raises(DataError, match="isotonic needs at least 500 validation rows, got 499") as error:
        calibrate(fitted, matrix(1, num=499), task="binary", num_classes=2, method="isotonic")
    assert "use platt" in str(error.value.hint)
    (batch,) = matrix(1).batches()
    rare = MemoryMatrix(batch.x_NF, (np.arange(len(batch.y_N)) < 19).astype(np.float64))
    with pytest.raises(DataError, match="20 validation rows of each class, got 19"):
        calibrate(fitted, rare, task="binary", num_classes=2, method="isotonic")


def test_a_curve_is_written_as_numbers() -> None:
    curve = Isotonic(odds=((0.5, 1.0), (2.0,)), probability=((0.1, 0.2), (0.5,)))
    assert Isotonic.from_json(curve.to_json()) == curve


def matrix(seed: int, classes: int = 2, num: int = 6000) -> MemoryMatrix:
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(num, 2)).astype(np.float32)
    chance_N = np.where(x_NF[:, 0] < 0, 0.1, 0.1 + 0.8 * np.tanh(2 * x_NF[:, 0]))
    y_N = (rng.random(num) < chance_N).astype(np.float64)
    return MemoryMatrix(x_NF, y_N if classes == 2 else y_N + (rng.random(num) < chance_N / 2))


def run_link(link: Any, score_NS: np.ndarray) -> np.ndarray:
    """A link's nodes over scores handed in as they are."""
    from onnx import helper

    scores = [helper.make_node("Identity", ["features"], [export.SCORE])], []
    width = score_NS.shape[1]
    model = export.assemble(scores, link, num_features=width, num_classes=max(width, 2))
    return np.asarray(ort.InferenceSession(model.SerializeToString()).run(None, {"features": score_NS})[0])
