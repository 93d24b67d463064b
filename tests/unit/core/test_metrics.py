from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from tidemill.core import metrics
from tidemill.core.errors import ConfigError, DataError, NotFound
from tidemill.core.metrics import METRICS, default_metric, evaluate, interval, paired_difference

BINARY = {
    "roc_auc": sk.roc_auc_score,
    "average_precision": sk.average_precision_score,
    "log_loss": sk.log_loss,
    "brier": sk.brier_score_loss,
    "accuracy": lambda y, p, **kw: sk.accuracy_score(y, p > 0.5, **kw),
    "balanced_accuracy": lambda y, p, **kw: sk.balanced_accuracy_score(y, p > 0.5, **kw),
    "precision": lambda y, p, **kw: sk.precision_score(y, p > 0.5, zero_division=0, **kw),
    "recall": lambda y, p, **kw: sk.recall_score(y, p > 0.5, **kw),
    "f1": lambda y, p, **kw: sk.f1_score(y, p > 0.5, **kw),
}
MULTICLASS = {
    "accuracy": lambda y, p, **kw: sk.accuracy_score(y, p.argmax(1), **kw),
    "balanced_accuracy": lambda y, p, **kw: sk.balanced_accuracy_score(y, p.argmax(1), **kw),
    "f1": lambda y, p, **kw: sk.f1_score(y, p.argmax(1), average="macro", **kw),
    "log_loss": sk.log_loss,
    "roc_auc": lambda y, p, **kw: sk.roc_auc_score(y, p, multi_class="ovr", average="macro", **kw),
    "brier": lambda y, p, **kw: sk.brier_score_loss(y, p, scale_by_half=False, **kw),
}
REGRESSION = {
    "rmse": sk.root_mean_squared_error,
    "mae": sk.mean_absolute_error,
    "r2": sk.r2_score,
    "mape": sk.mean_absolute_percentage_error,
}


@st.composite
def binary_rows(draw):
    """Both classes, scores with many ties, weights or none."""
    n = draw(st.integers(2, 60))
    levels = draw(st.sampled_from([3, 10, 10_000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    y = rng.integers(0, 2, n)
    y[:2] = 0, 1
    weight = draw(st.sampled_from([None, rng.integers(1, 5, n).astype(float), rng.random(n) + 0.01]))
    return y, rng.integers(0, levels + 1, n) / levels, weight


@given(binary_rows())
def test_binary_metrics_equal_scikit_learns_with_ties_and_weights(rows):
    y, p, weight = rows
    got = evaluate("binary", y, p, weight=weight)
    for name, peer in BINARY.items():
        assert got[name] == pytest.approx(peer(y, p, sample_weight=weight), abs=1e-12, rel=1e-12), name


@given(binary_rows())
def test_whole_weights_mean_repeated_rows(rows):
    y, p, weight = rows
    times = np.ones(len(y), int) if weight is None else np.ceil(weight).astype(int)
    weighted = evaluate("binary", y, p, weight=times)
    repeated = evaluate("binary", np.repeat(y, times), np.repeat(p, times))
    assert weighted == pytest.approx(repeated, abs=1e-12)


@given(st.integers(0, 2**32), st.sampled_from([3, 5]), st.booleans())
def test_multiclass_metrics_equal_scikit_learns(seed, num_classes, weighted):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, 30)])
    p = rng.integers(1, 6, (len(y), num_classes)) * 1.0
    p /= p.sum(axis=1, keepdims=True)
    weight = rng.random(len(y)) + 0.1 if weighted else None
    got = evaluate("multiclass", y, p, weight=weight)
    for name, peer in MULTICLASS.items():
        assert got[name] == pytest.approx(peer(y, p, sample_weight=weight), abs=1e-12, rel=1e-12), name


@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([0.0, 1e6]))
def test_regression_metrics_equal_scikit_learns(seed, weighted, offset):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=40) + offset
    p = y + rng.normal(size=40)
    weight = rng.random(40) + 0.1 if weighted else None
    got = evaluate("regression", y, p, weight=weight)
    for name, peer in REGRESSION.items():
        assert got[name] == pytest.approx(peer(y, p, sample_weight=weight), rel=1e-9), name
    assert got["median_ae"] == pytest.approx(sk.median_absolute_error(y, p, sample_weight=weight))


def test_the_median_error_is_midway_where_half_lies_on_either_side():
    y = np.zeros(4)
    assert evaluate("regression", y, np.array([1.0, 2, 4, 8]), metrics=["median_ae"]) == {"median_ae": 3.0}
    weighted = evaluate("regression", y, np.array([1.0, 2, 4, 8]), weight=np.array([0.0, 1, 2, 0]), metrics=["median_ae"])
    assert weighted == {"median_ae": 4.0}


def test_ks_is_the_two_sample_statistic():
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 500)
    p = np.round(rng.random(500) * 0.7 + 0.3 * y, 2)
    assert evaluate("binary", y, p, metrics=["ks"])["ks"] == pytest.approx(ks_2samp(p[y == 1], p[y == 0]).statistic)


def test_ece_counts_the_gap_of_each_bin_by_its_share():
    y = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    p = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    # half the rows say 0.1 and a quarter come true; half say 0.9 and all do
    assert evaluate("binary", y, p, metrics=["ece"])["ece"] == pytest.approx(0.5 * 0.15 + 0.5 * 0.1)
    calibrated = np.random.default_rng(0).random(200_000)
    came = (np.random.default_rng(1).random(200_000) < calibrated).astype(int)
    assert evaluate("binary", came, calibrated, metrics=["ece"])["ece"] < 0.01


def test_multiclass_calibration_error_is_of_the_most_probable_class():
    y = np.array([0, 0, 1, 2])
    p = np.tile([0.6, 0.3, 0.1], (4, 1))
    assert evaluate("multiclass", y, p, metrics=["ece"])["ece"] == pytest.approx(0.1)


def test_every_task_has_one_default_metric_and_two_columns_are_binary():
    assert [default_metric(task) for task in ("binary", "multiclass", "regression")] == ["roc_auc", "log_loss", "rmse"]
    y, p = np.array([0, 1, 1, 0]), np.array([0.2, 0.7, 0.4, 0.6])
    assert evaluate("binary", y, np.column_stack([1 - p, p])) == pytest.approx(evaluate("binary", y, p))
    assert list(evaluate("binary", y, p)) == [name for name, metric in METRICS.items() if "binary" in metric.tasks]


def test_booleans_and_float32_are_taken():
    y, p = np.array([False, True, True]), np.array([0.0, 1.0, 0.25], dtype=np.float32)
    got = evaluate("binary", y, p)
    assert got["roc_auc"] == 1.0
    assert got["log_loss"] == pytest.approx((math.log(4) + 2 * np.finfo(np.float32).eps) / 3, rel=1e-4)


def test_what_the_rows_leave_undefined_is_nan():
    ones, p = np.ones(3, int), np.array([0.2, 0.6, 0.7])
    got = evaluate("binary", ones, p)
    assert math.isnan(got["roc_auc"])
    assert math.isnan(got["ks"])
    assert got["recall"] == pytest.approx(2 / 3)
    zeros = evaluate("binary", 1 - ones, p)
    assert all(math.isnan(zeros[name]) for name in ("roc_auc", "average_precision", "ks", "recall"))
    assert evaluate("binary", ones, p / 10)["precision"] == 0
    assert math.isnan(evaluate("regression", ones, p)["r2"])
    assert math.isnan(evaluate("regression", ones * 0, p)["mape"])
    assert math.isnan(interval("roc_auc", ones, p, seed=0, resamples=5).low)


@pytest.mark.parametrize(
    ("task", "y", "p", "weight", "says"),
    [
        ("binary", [], [], None, "at least one row"),
        ("binary", [0, 1], [0.5, np.nan], None, "p must be finite, got 1 NaN"),
        ("regression", [0, np.inf], [0.5, 1], None, "y must be finite"),
        ("binary", [0, 2], [0.5, 0.5], None, "class indices in 0..1, got 0 to 2"),
        ("binary", [0, 0.5], [0.5, 0.5], None, "class indices"),
        ("binary", [0, 1], [0.5, 1.5], None, "probabilities in 0..1"),
        ("binary", [0, 1], [0.5], None, r"shape \(2,\)"),
        ("multiclass", [0, 1], [0.5, 0.5], None, r"\(2, classes\)"),
        ("multiclass", [0, 3], [[0.5, 0.5, 0], [0, 0, 1]], None, r"0\.\.2"),
        ("binary", [0, 1], [0.5, 0.5], [1, -1], "weight"),
        ("binary", [0, 1], [0.5, 0.5], [0, 0], "not all 0"),
        ("binary", [0, 1], [0.5, 0.5], [1], "weight must be 2"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused(task, y, p, weight, says):
    with pytest.raises(DataError, match=says):
        evaluate(task, np.array(y), np.array(p), weight=None if weight is None else np.array(weight))


def test_unknown_and_unfit_metrics_are_named():
    y, p = np.array([0, 1]), np.array([0.1, 0.9])
    with pytest.raises(NotFound, match="did you mean 'roc_auc'"):
        evaluate("binary", y, p, metrics=["rocauc"])
    with pytest.raises(ConfigError, match="must judge a binary task, got one for regression; known: roc_auc"):
        evaluate("binary", y, p, metrics=["rmse"])
    with pytest.raises(ConfigError, match="resamples"):
        interval("roc_auc", y, p, seed=0, resamples=0)
    with pytest.raises(ConfigError, match="forecast"):
        default_metric("forecast")


# ---- resampling ----


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(3)
    p = rng.random(1_500)
    return (rng.random(1_500) < p).astype(int), np.round(p, 2)


@pytest.mark.parametrize("name", list(METRICS))
def test_resampled_values_are_the_metric_of_the_rows_drawn(name):
    """The vectorised bootstrap equals drawing rows and computing each metric anew."""
    rng = np.random.default_rng(11)
    task = METRICS[name].tasks[-1]
    y = rng.integers(0, 3 if task == "multiclass" else 2, 80)
    p = rng.integers(1, 5, (80, 3)) / 1.0 if task == "multiclass" else rng.integers(0, 9, 80) / 8
    p = p / p.sum(axis=1, keepdims=True) if task == "multiclass" else p
    weight = rng.random(80)
    _, (values,) = metrics._bootstrap(name, y, [p], seed=7, resamples=20, weight=weight, task=task)
    draws = np.random.default_rng(7)
    for value in values:
        drawn = draws.integers(0, 80, 80)
        direct = evaluate(task, y[drawn], p[drawn], weight=weight[drawn], metrics=[name])[name]
        assert value == pytest.approx(direct, abs=1e-9, nan_ok=True)


def test_intervals_hold_the_point_repeat_by_seed_and_do_not_depend_on_blocks(scored, monkeypatch):
    y, p = scored
    first = interval("roc_auc", y, p, seed=1, resamples=300)
    assert first.low < first.point < first.high
    assert interval("roc_auc", y, p, seed=1, resamples=300) == first
    assert interval("roc_auc", y, p, seed=2, resamples=300) != first
    monkeypatch.setattr(metrics, "_CELLS", 10_000)
    blocks = interval("roc_auc", y, p, seed=1, resamples=300)
    assert (blocks.low, blocks.high) == pytest.approx((first.low, first.high), rel=1e-12)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    """The mean absolute error of a standard normal is sqrt(2 / pi)."""
    rng = np.random.default_rng(0)
    truth, hits = math.sqrt(2 / math.pi), 0
    for trial in range(200):
        found = interval("mae", np.zeros(150), rng.normal(size=150), seed=trial, resamples=200, level=0.9)
        hits += found.low <= truth <= found.high
    assert 0.83 <= hits / 200 <= 0.96


def test_a_wider_level_gives_a_wider_interval(scored):
    y, p = scored
    narrow, wide = (interval("log_loss", y, p.clip(0.01, 0.99), seed=0, resamples=400, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_paired_difference_sees_what_the_intervals_of_each_cannot(scored):
    y, p = scored
    worse = np.clip(p + np.random.default_rng(0).normal(0, 0.1, len(p)), 0, 1)
    found = paired_difference("roc_auc", y, p, worse, seed=0, resamples=400)
    expected = evaluate("binary", y, worse)["roc_auc"] - evaluate("binary", y, p)["roc_auc"]
    assert found.estimate == pytest.approx(expected)
    assert found.lower < found.estimate < found.upper < 0
    assert found.drop == -found.lower > 0
    assert interval("roc_auc", y, p, seed=0).low < evaluate("binary", y, worse)["roc_auc"]
    equal = paired_difference("roc_auc", y, p, p, seed=0, resamples=50)
    assert (equal.estimate, equal.lower, equal.upper) == (0, 0, 0)


def test_a_difference_is_a_gain_whichever_way_the_metric_points(scored):
    y, p = scored
    better = np.clip(0.8 * p + 0.2 * y, 0, 1)
    for name in ("log_loss", "brier", "roc_auc"):
        assert paired_difference(name, y, p, better, seed=0, resamples=100).lower > 0
        assert paired_difference(name, y, better, p, seed=0, resamples=100).upper < 0


def test_multiclass_intervals_work_and_skip_what_is_undefined():
    rng = np.random.default_rng(0)
    y = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    p = rng.dirichlet(np.ones(3), 8)
    found = interval("roc_auc", y, p, seed=0, resamples=100)
    assert found.low <= found.point <= found.high


def test_importing_needs_numpy_only():
    heavy = ["pyarrow", "scipy", "sklearn", "pandas", "onnx", "onnxruntime", "duckdb", "narwhals"]
    code = f"import sys, tidemill.core.metrics, tidemill.core.curves; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_intervals_of_several_metrics_are_those_of_each_alone() -> None:
    rng = np.random.default_rng(4)
    y, p = rng.integers(0, 2, 300), rng.random(300)
    resamples = {"roc_auc": 40, "log_loss": 15, "accuracy": 40}
    together = metrics.intervals(resamples, y, p, seed=7, task="binary")
    for name, number in resamples.items():
        assert together[name] == metrics.interval(name, y, p, seed=7, resamples=number, task="binary")
