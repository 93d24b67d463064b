from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from tidemill.core.drift import (
    chi_square,
    drift,
    jensen_shannon,
    kolmogorov_smirnov,
    population_stability,
    quantile_edges,
)
from tidemill.core.errors import DataError
from tidemill.core.sketch import ColumnSketch

bins = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=12)


@given(bins)
def test_distances_are_symmetric_scale_free_and_agree_with_scipy(pairs):
    a, b = np.array(pairs).T
    assume(a.sum() and b.sum())
    assert jensen_shannon(a, b) == pytest.approx(jensenshannon(a, b, base=2), abs=1e-6)
    for distance in (population_stability, jensen_shannon, kolmogorov_smirnov):
        assert distance(a, b) == pytest.approx(distance(b, a * 7), abs=1e-9)
        assert distance(a, a) == 0
        assert distance(a, b) >= 0


def test_population_stability_is_the_sum_that_everyone_uses():
    a, b = np.array([10, 40, 50]), np.array([20, 40, 40])
    expected = (0.2 - 0.1) * np.log(0.2 / 0.1) + (0.4 - 0.5) * np.log(0.4 / 0.5)
    assert population_stability(a, b) == pytest.approx(expected)
    assert population_stability(np.array([1, 0]), np.array([0, 1]), floor=1e-4) == pytest.approx(2 * (1 - 1e-4) * np.log(1e4))


@given(bins)
def test_chi_square_is_scipys_where_no_bin_is_rare(pairs):
    a, b = np.array(pairs).T + 60
    found = chi_square(a, b)
    peer = stats.chi2_contingency(np.array([a, b]), correction=False)
    assert (found.statistic, found.degrees) == (pytest.approx(peer.statistic), peer.dof)
    assert found.p_value == pytest.approx(peer.pvalue, rel=1e-9, abs=1e-300)


def test_chi_square_merges_rare_bins_and_says_nothing_of_too_few_rows():
    assert chi_square(np.array([100_000, 0]), np.array([999, 1])).degrees == 0
    assert chi_square(np.array([3, 1, 0]), np.array([0, 1, 3])).p_value == 1
    assert chi_square(np.array([500, 300, 3, 2, 2]), np.array([500, 300, 3, 2, 2])).degrees == 2
    assert chi_square(np.array([500, 500, 0, 0]), np.array([400, 400, 100, 100])).p_value < 1e-12


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1, 2, 3]), ([0, 0], [1, 1]), ([1, -1, 3], [1, 1, 1]), ([[1]], [[1]])])
@pytest.mark.parametrize("distance", [population_stability, jensen_shannon, kolmogorov_smirnov, chi_square])
def test_distances_refuse_what_are_no_distributions(distance, a, b):
    with pytest.raises(DataError):
        distance(np.array(a), np.array(b))


def numbers(values):
    return ColumnSketch.of("float64", np.asarray(values, dtype=np.float64))


def words(values):
    return ColumnSketch.of("string", np.asarray(values, dtype=object))


def test_a_shift_is_found_and_measured_as_if_no_sketch_stood_between():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=50_000), rng.normal(0.5, size=20_000)
    found = drift(numbers(before), numbers(after))
    assert found.ks == pytest.approx(stats.ks_2samp(before, after).statistic, abs=0.01)
    edges = np.quantile(before, np.linspace(0.1, 0.9, 9))
    plain = population_stability(*(np.bincount(np.searchsorted(edges, side), minlength=10) for side in (before, after)))
    assert found.psi == pytest.approx(plain, abs=0.02)
    assert found.p_value < 1e-9
    assert found.exceeds(0.1)
    assert found.rows == 20_000


@pytest.mark.parametrize("size", [20, 100, 1_000, 20_000])
@pytest.mark.parametrize("kind", ["normal", "zeros", "words"])
def test_without_drift_alarms_stay_rare_whatever_the_number_of_rows(size, kind):
    """Two hundred samples of the reference itself: neither few rows nor many raise alarms, and the distance stays small."""

    def sample(rng, n):
        if kind == "words":
            return words(rng.choice(list("abcdefgh"), n, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.03, 0.02]))
        values = rng.normal(size=n)
        return numbers(np.where(values < 0, 0, values) if kind == "zeros" else values)

    rng = np.random.default_rng(size)
    reference = sample(rng, 50_000)
    found = [drift(reference, sample(rng, size)) for _ in range(200 if size < 20_000 else 20)]
    assert sum(item.exceeds(0.1) for item in found) <= 1
    assert np.mean([item.psi for item in found]) < max(0.01, 4 / size)
    assert np.mean([item.p_value < 0.05 for item in found]) <= 0.12


@pytest.mark.parametrize("size", [100, 1_000])
def test_a_real_change_is_found_in_few_rows_too(size):
    rng = np.random.default_rng(0)
    reference = numbers(rng.normal(size=20_000))
    assert all(drift(reference, numbers(rng.normal(1.0, size=size))).exceeds(0.2) for _ in range(20))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.full(500, 5.0), np.full(500, 3.0)),  # a constant moved down, where its own bin is open
        (np.full(500, 5.0), np.full(500, 7.0)),
        (np.zeros(500), np.repeat([0.0, 1.0], 250)),
        (np.arange(500.0), np.arange(500.0) + 5_000),
        (np.arange(500.0), np.where(np.arange(500) < 250, np.nan, np.arange(500.0))),
        (np.arange(500.0), np.where(np.arange(500) < 250, np.inf, np.arange(500.0))),
        (np.full(500, np.nan), np.arange(500.0)),
    ],
)
def test_changes_outside_the_usual_bins_are_found(before, after):
    found = drift(numbers(before), numbers(after))
    assert found.exceeds(0.2)
    assert drift(numbers(before), numbers(before)).psi == 0
    json.dumps(vars(found), allow_nan=False)


def test_nulls_are_reported():
    found = drift(numbers([1.0, 2, 3, np.nan]), numbers([np.nan, np.nan, np.nan, 4]))
    assert found.null_change == 0.5


def test_categories_that_come_and_go():
    before = words(["a"] * 600 + ["b"] * 400)
    found = drift(before, words(["a"] * 300 + ["b"] * 200 + ["new"] * 500))
    assert found.unseen == 0.5
    assert found.ks is None
    assert found.exceeds(0.2)
    gone = drift(before, words(["a"] * 500))
    assert gone.unseen == 0
    assert gone.exceeds(0.2)
    flags = [ColumnSketch.of("boolean", np.arange(400) % n == 0) for n in (2, 8)]
    assert drift(*flags).exceeds(0.2)


def test_identifiers_are_no_drift():
    """Values that never repeat say nothing by being new."""
    before, after = (words([f"{side}-{i}" for i in range(5_000)]) for side in "xy")
    found = drift(before, after)
    assert found.unseen is None
    assert found.psi == 0


def test_numbers_that_rounding_alone_parts_are_no_drift():
    frequent = np.random.default_rng(0).choice(np.float32([0.1, 0.31, 0.5, 0.83]), 5000)
    parted = np.where(np.arange(5000) % 2, np.nextafter(frequent, np.float32(1)), np.nextafter(frequent, np.float32(0)))
    found = drift(ColumnSketch.of("float64", frequent), ColumnSketch.of("float64", parted))
    assert found.psi == 0
    assert found.ks == 0
    assert found.p_value > 0.999


def test_sketches_that_went_through_json_drift_the_same():
    rng = np.random.default_rng(0)
    before, after = numbers(rng.normal(size=5_000)), numbers(rng.normal(0.3, size=900))
    stored = ColumnSketch.from_json(json.loads(json.dumps(before.to_json())))
    assert drift(stored, after) == drift(before, after)


def test_edges_set_apart_what_lies_outside():
    edges = quantile_edges(numbers(np.arange(101.0)), bins=4)
    assert edges[1:].tolist() == [25, 50, 75, 100]
    assert -1e-6 < edges[0] < 0
    assert quantile_edges(numbers([0.0] * 99 + [8.0])).tolist()[1:] == [0, 8]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="keep its type"):
        drift(numbers([1.0]), words(["a"]))
    with pytest.raises(DataError, match="must have rows, got 1 then 0"):
        drift(numbers([1.0]), numbers([]))


def test_importing_needs_numpy_only():
    heavy = ["pyarrow", "scipy", "sklearn", "pandas", "onnx", "onnxruntime", "duckdb", "narwhals"]
    code = f"import sys, tidemill.core.drift; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"
