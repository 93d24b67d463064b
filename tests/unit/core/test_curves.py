from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from tidemill.core import curves
from tidemill.core.errors import DataError
from tidemill.core.metrics import evaluate


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(3)
    p = rng.random(3_000)
    return (rng.random(3_000) < p).astype(int), p, rng.random(3_000) + 0.1


@given(st.integers(0, 2**32), st.booleans())
def test_a_short_roc_curve_is_exact(seed, weighted):
    rng = np.random.default_rng(seed)
    y, p = np.append(rng.integers(0, 2, 40), [0, 1]), rng.integers(0, 6, 42) / 5
    weight = rng.random(42) if weighted else None
    curve = curves.roc_curve(y, p, weight=weight)
    fpr, tpr, threshold = sk.roc_curve(y, p, sample_weight=weight, drop_intermediate=False)
    area = evaluate("binary", y, p, weight=weight)["roc_auc"]
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(area)
    for point in zip(curve["fpr"][1:], curve["tpr"][1:], curve["threshold"][1:], strict=True):
        assert min(np.abs(np.array(point) - other).max() for other in zip(fpr[1:], tpr[1:], threshold[1:], strict=True)) < 1e-12


def test_long_curves_are_thinned_without_bending(scored):
    y, p, weight = scored
    roc = curves.roc_curve(y, p, weight=weight)
    assert len(roc["fpr"]) <= 200
    assert (roc["fpr"][0], roc["tpr"][0], roc["fpr"][-1], roc["tpr"][-1]) == pytest.approx((0, 0, 1, 1))
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(evaluate("binary", y, p, weight=weight)["roc_auc"], abs=2e-3)
    pr = curves.precision_recall_curve(y, p, weight=weight)
    assert len(pr["recall"]) <= 200
    assert (np.diff(pr["recall"]) >= 0).all()
    assert pr["recall"][-1] == pytest.approx(1)
    at = pr["threshold"][100]
    assert pr["precision"][100] == pytest.approx(sk.precision_score(y, p >= at, sample_weight=weight))
    assert pr["recall"][100] == pytest.approx(sk.recall_score(y, p >= at, sample_weight=weight))
    json.dumps([roc, pr], allow_nan=False)


def test_curves_of_one_class_are_refused():
    with pytest.raises(DataError, match="both classes"):
        curves.roc_curve(np.ones(3), np.array([0.1, 0.2, 0.3]))
    with pytest.raises(DataError, match="positives"):
        curves.precision_recall_curve(np.zeros(3), np.array([0.1, 0.2, 0.3]))


def test_calibration_bins_hold_every_row_and_their_means(scored):
    y, p, weight = scored
    for by in ("mass", "width"):
        made = curves.calibration_bins("binary", y, p, by=by)
        assert sum(item["rows"] for item in made) == len(y)
        assert all(abs(item["predicted"] - item["observed"]) < 0.08 for item in made)
        assert all(item["low"] <= item["predicted"] <= item["high"] for item in made)
    mass = curves.calibration_bins("binary", y, p)
    assert len(mass) == 10
    assert {item["rows"] for item in mass} <= {299, 300, 301}
    first = p <= mass[0]["high"]
    weighted = curves.calibration_bins("binary", y, p, weight=weight)[0]
    assert weighted["observed"] == pytest.approx(np.average(y[first], weights=weight[first]))


def test_equal_predictions_share_a_calibration_bin():
    made = curves.calibration_bins("binary", np.array([0, 1, 0, 1, 1, 1]), np.array([0.2, 0.2, 0.2, 0.2, 0.2, 0.9]), bins=3)
    assert [(item["rows"], item["predicted"]) for item in made] == [(5, pytest.approx(0.2)), (1, pytest.approx(0.9))]


def test_calibration_of_classes_and_values():
    p = np.tile([0.6, 0.3, 0.1], (4, 1))
    (only,) = curves.calibration_bins("multiclass", np.array([0, 0, 1, 2]), p)
    assert (only["predicted"], only["observed"]) == pytest.approx((0.6, 0.5))
    y = np.arange(100.0)
    assert [item["observed"] for item in curves.calibration_bins("regression", y, y + 1, bins=2)] == pytest.approx([24.5, 74.5], abs=1)


def test_residuals_and_confusions_count_every_row(scored):
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=1_000), np.zeros(1_000)
    y[0] = 1e9
    found = curves.residual_histogram(y, p, bins=20)
    assert len(found["edges"]) == 21
    assert found["edges"][-1] < 10
    assert sum(found["counts"]) + found["below"] + found["above"] == 1_000
    labels, p, weight = scored
    matrix = curves.confusion_matrix("binary", labels, p, weight=weight)
    assert np.array(matrix) == pytest.approx(sk.confusion_matrix(labels, p > 0.5, sample_weight=weight))
    wide = np.eye(3)[[0, 1, 2, 2]]
    assert curves.confusion_matrix("multiclass", np.array([0, 1, 2, 0]), wide) == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]


def test_slices_find_where_the_model_is_bad():
    rng = np.random.default_rng(0)
    n = 4_000
    p = rng.random(n)
    carrier = rng.choice(np.array(["AA", "UA", "ZZ"], dtype=object), n, p=[0.5, 0.4, 0.1])
    distance = rng.normal(1000, 200, n)
    bad = (carrier == "ZZ") | (distance > 1200)
    y = (rng.random(n) < np.where(bad, 0.5, p)).astype(int)
    carrier[:150] = None
    found = curves.slices("binary", y, p, {"carrier": carrier, "distance": distance}, min_rows=100, bins=4)
    assert [(item.column, item.value) for item in found[:1]] == [("carrier", "ZZ")]
    assert found[1].column == "distance"
    assert found[1].value.endswith(f"{distance.max():.6g}")
    assert found[0].low <= found[0].score <= found[0].high < evaluate("binary", y, p)["roc_auc"]
    assert found[0].gain < 0 < found[-1].gain
    assert {item.value for item in found if item.column == "carrier"} == {"AA", "UA", "ZZ", "null"}
    assert sum(item.rows for item in found if item.column == "distance") == n
    assert [item.score for item in found] == sorted(item.score for item in found)


def test_slices_of_a_loss_put_the_largest_first_and_keep_to_the_limits():
    y = np.array([0.0] * 50 + [10.0] * 50)
    columns = {"kind": np.repeat(["even", "odd"], 50), "rare": np.array(["x"] * 99 + ["y"])}
    found = curves.slices("regression", y, np.zeros(100), columns, min_rows=10)
    assert [(item.value, item.score) for item in found] == [("odd", 10.0), ("x", pytest.approx(7.07, abs=0.1)), ("even", 0.0)]
    assert len(curves.slices("regression", y, np.zeros(100), columns, min_rows=10, limit=1)) == 1


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (np.array([True, False] * 50), {"True", "False"}),
        (np.arange(100) % 5, {"0", "1", "2", "3", "4"}),
        (np.array([0.1, 2.0] * 50), {"0.1", "2"}),
        (np.where(np.arange(100) < 30, np.nan, 1.5), {"1.5", "null"}),
        (np.datetime64("2024-01-01") + np.arange(100) // 50, {"2024-01-01", "2024-01-02"}),
        (np.array(["a"] * 60 + ["\uffff"] * 40), {"a", "null"}),
    ],
)
def test_slice_labels_read_well(values, labels):
    found = curves.slices("regression", np.arange(100.0), np.zeros(100), {"c": values}, min_rows=1, resamples=2, metric="mae")
    assert {item.value for item in found} == labels


def test_many_numbers_are_cut_at_quantiles_and_an_atom_stays_alone():
    values = np.concatenate([np.zeros(600), np.arange(1.0, 401)])
    found = curves.slices("regression", np.ones(1000), np.zeros(1000), {"c": values}, metric="mae", resamples=2, min_rows=1)
    assert {item.value: item.rows for item in found} == {"0": 600, "1 to 150": 150, "151 to 400": 250}


def test_slices_that_leave_the_metric_undefined_are_left_out():
    y = np.array([1] * 20 + [0, 1] * 20)
    columns = {"c": np.array(["one class"] * 20 + ["both"] * 40)}
    found = curves.slices("binary", y, np.linspace(0, 1, 60), columns, min_rows=5)
    assert [item.value for item in found] == ["both"]
    with pytest.raises(DataError, match="'c' must have 60 values"):
        curves.slices("binary", y, np.linspace(0, 1, 60), {"c": np.zeros(3)})
