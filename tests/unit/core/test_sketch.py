from __future__ import annotations

import json
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.distinct import Distinct, hash_values
from tidemill.core.errors import DataError
from tidemill.core.schema import NULL_STRING, NULL_TIMESTAMP
from tidemill.core.sketch import ColumnSketch, Counts, Histogram, Moments, Quantiles

numbers = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, float("nan"), float("inf")]), max_size=40)
texts = st.lists(st.sampled_from("abcdefghij") | st.text(max_size=4), max_size=40)


def whole(value):
    """What a sketch is, through the JSON that it will be stored as."""
    return json.loads(json.dumps(value.to_json(), allow_nan=False))


def split(values, seed, parts):
    """The array cut at `parts - 1` random places; parts may be empty."""
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(values) + 1, parts - 1))
    return np.split(values, cuts)


def folded(sketches):
    first, *rest = sketches
    for sketch in rest:
        first = first.merge(sketch)
    return first


# ---- moments ----


@given(numbers, st.integers(0, 100))
def test_moments_merge_to_those_of_the_whole(values, seed):
    array = np.array(values, dtype=np.float64)
    merged = folded([Moments.of(part) for part in split(array, seed, 4)])
    finite = array[np.isfinite(array)]
    assert (merged.count, merged.nulls, merged.infinite) == (len(finite), np.isnan(array).sum(), np.isinf(array).sum())
    if len(finite):
        assert (merged.min, merged.max) == (finite.min(), finite.max())
        assert merged.mean == pytest.approx(finite.mean(), rel=1e-12, abs=1e-9)
        assert merged.std == pytest.approx(finite.std(), rel=1e-9, abs=1e-7)
    assert Moments.from_json(whole(merged)) == merged


def test_moments_far_from_zero_keep_their_precision():
    values = 1e9 + np.random.default_rng(0).random(10_000)
    merged = folded([Moments.of(part) for part in np.split(values, 100)])
    assert merged.std == pytest.approx(values.std(), rel=1e-7)


def test_masked_numbers_are_null():
    assert Moments.of(np.array([1, 2, 9]), np.array([True, True, False])) == Moments(count=2, nulls=1, mean=1.5, m2=0.5, min=1, max=2)


# ---- counts ----


@given(texts, st.integers(0, 100))
def test_few_values_are_counted_exactly_in_any_order(values, seed):
    array = np.array(values, dtype=object)
    parts = [Counts.of(part) for part in split(array, seed, 4)]
    merged = folded(parts)
    assert merged.counts == Counter(values)
    assert merged.exact
    assert whole(folded(parts[::-1])) == whole(merged)
    assert Counts.from_json(whole(merged)) == merged


@given(texts, st.integers(0, 100), st.integers(1, 8))
def test_many_values_keep_their_counts_within_the_error(values, seed, bound):
    array = np.array(values, dtype=object)
    merged = folded([Counts.of(part, bound=bound) for part in split(array, seed, 4)])
    assert len(merged.counts) <= bound
    assert merged.total == len(values)
    assert merged.error <= len(values) / (bound + 1)
    for value, count in Counter(values).items():
        assert merged.counts.get(value, 0) <= count <= merged.counts.get(value, 0) + merged.error


def test_merging_counts_is_associative_within_the_error():
    rng = np.random.default_rng(0)
    a, b, c = (Counts.of(rng.zipf(1.3, 5_000) % 3_000, bound=50) for _ in range(3))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert left.total == right.total == 15_000
    assert [key for key, _ in left.top(3)] == [key for key, _ in right.top(3)]
    for key in {*left.counts, *right.counts}:
        assert abs(left.counts.get(key, 0) - right.counts.get(key, 0)) <= max(left.error, right.error)


def test_counts_of_integers_and_booleans_keep_their_type():
    assert Counts.of(np.array([3, 3, 1])).top(5) == [(3, 2), (1, 1)]
    assert whole(Counts.of(np.array([True, False, True])))["keys"] == [True, False]
    assert Counts.of({"a": 2, "b": 5}).top(1) == [("b", 5)]


# ---- distinct ----


@pytest.mark.parametrize("size", [0, 1, 10, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("kind", ["integers", "floats", "strings"])
def test_distinct_is_close_at_every_size(size, kind):
    values = {"integers": np.arange(size), "floats": np.arange(size) / 7, "strings": [f"id-{i}" for i in range(size)]}[kind]
    assert Distinct.of(values).estimate() == pytest.approx(size, rel=0.05, abs=0.5)


@given(st.lists(st.integers(0, 10_000), max_size=300), st.integers(0, 100))
def test_distinct_merges_to_the_whole_exactly(values, seed):
    array = np.array(values, dtype=np.int64)
    merged = folded([Distinct.of(part) for part in split(array, seed, 3)])
    assert whole(merged) == whole(Distinct.of(array)) == whole(Distinct.of(np.repeat(array, 2)))
    assert whole(Distinct.from_json(whole(merged))) == whole(merged)


def test_a_full_distinct_sketch_goes_through_json():
    full = Distinct.of(np.arange(50_000))
    assert "registers" in whole(full)
    assert Distinct.from_json(whole(full)).estimate() == full.estimate()


def test_hashes_are_the_same_everywhere_and_for_every_batch():
    assert hash_values(np.array([0, 1, -1])).tolist() == [16294208416658607535, 10451216379200822465, 16490336266968443936]
    assert hash_values(["", "a", "航班"]).tolist() == [16294208416658607535, 12166200078605247681, 5352865773118925111]
    assert hash_values(["", "a", "航班"]).tolist() == [hash_values([text])[0] for text in ("", "a", "航班")]
    texts = ["", "\0", "\0\0", "a", "b", "ab", "ba", "a\0", "\ud800", "é", "e\u0301"]
    assert len(set(hash_values(texts).tolist())) == len(texts)
    assert hash_values(np.array([0.0])) == hash_values(np.array([-0.0]))
    assert hash_values(np.array(["x", "y"])).tolist() == hash_values(["x", "y"]).tolist()
    many = [str(i) for i in range(70_000)]
    assert hash_values(many)[-1] == hash_values(many[-1:])[0]


# ---- quantiles ----


def rank_errors(sketch, values):
    """How far estimated ranks are from true ones, everywhere that either can step: (largest above, largest below)."""
    places = np.unique(np.concatenate([values, sketch.points(), sketch.points() - 1e-9]))
    true = np.searchsorted(np.sort(values), places, side="right")
    gap = sketch.ranks(places) - true
    return max(0, gap.max()), max(0, -gap.min())


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=400), st.integers(0, 100), st.sampled_from([4, 16, 512]))
def test_ranks_are_within_the_proven_bound_however_the_rows_were_cut(values, seed, capacity):
    array = np.array(values, dtype=np.float64)
    merged = folded([Quantiles.of(part, capacity=capacity) for part in split(array, seed, 7)])
    above, below = rank_errors(merged, array)
    assert above <= merged.up
    assert below <= merged.down
    assert merged.count == len(values)
    assert all(len(level) < capacity for level in merged.levels)
    if len(values) < capacity:
        assert merged.rank_error == 0
        shares = [0, 0.3, 0.5, 1]
        assert merged.quantile(shares).tolist() == np.quantile(array, shares, method="inverted_cdf").tolist()


@pytest.mark.parametrize("batch", [100, 10_000, 200_000])
@pytest.mark.parametrize("order", ["random", "sorted", "zigzag"])
def test_the_bound_is_small_for_any_order_and_batch(batch, order):
    values = np.random.default_rng(0).lognormal(size=200_000)
    if order != "random":
        values = np.sort(values)
    if order == "zigzag":
        values = np.concatenate([values[::2], values[1::2][::-1]])
    merged = folded([Quantiles.of(values[i : i + batch]) for i in range(0, len(values), batch)])
    assert merged.rank_error < 0.008
    assert sum(map(len, merged.levels)) < 5_000
    shares = np.array([0.01, 0.25, 0.5, 0.75, 0.99])
    found = np.searchsorted(np.sort(values), merged.quantile(shares), side="right") / len(values)
    assert found == pytest.approx(shares, abs=merged.rank_error + 1e-4)


def test_merging_quantiles_is_associative_within_the_bound_and_repeats():
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=3_000) for _ in range(3)]
    a, b, c = (Quantiles.of(part) for part in parts)
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    places = np.linspace(-3, 3, 50)
    assert (np.abs(left.ranks(places) - right.ranks(places)) <= (left.rank_error + right.rank_error) * 9_000).all()
    assert left.up >= a.up + b.up + c.up > 0
    assert left.down >= a.down + b.down + c.down > 0
    assert whole(left) == whole(Quantiles.of(parts[0]).merge(b).merge(c))
    assert whole(Quantiles.from_json(whole(left))) == whole(left)


def test_no_numbers_have_no_quantiles():
    empty = Quantiles()
    assert np.isnan(empty.quantile([0.5])).all()
    assert empty.counts(np.array([1.0, 2.0])).tolist() == [0, 0, 0]
    assert empty.merge(Quantiles.of(np.array([3.0]))).quantile([0.5]).tolist() == [3]


# ---- histograms ----


@given(st.lists(st.floats(-10, 10), max_size=50), st.integers(0, 100))
def test_histograms_merge_exactly_and_agree_with_exact_quantiles(values, seed):
    array, edges = np.array(values, dtype=np.float64), np.array([-5.0, 0, 0.5, 9])
    merged = folded([Histogram.of(part, edges) for part in split(array, seed, 3)])
    assert merged.counts.tolist() == Histogram.of(array, edges).counts.tolist() == Quantiles.of(array).counts(edges).tolist()
    assert whole(Histogram.from_json(whole(merged))) == whole(merged)


def test_histograms_close_their_bins_above_and_check_their_edges():
    assert Histogram.of(np.array([0, 1, 1.5, 2, 3]), np.array([1, 2])).counts.tolist() == [2, 2, 1]
    with pytest.raises(DataError, match="rise"):
        Histogram.of(np.array([1.0]), np.array([2.0, 1.0]))
    with pytest.raises(DataError, match="same edges"):
        Histogram.of(np.array([1.0]), np.array([2.0])).merge(Histogram.of(np.array([1.0]), np.array([3.0])))


# ---- columns ----

COLUMNS = {
    "boolean": (np.array([1, 0, 2, 1], dtype=np.uint8), None, 1, 2),
    "int64": (np.array([5, 5, 8, 0]), np.array([True, True, True, False]), 1, 2),
    "float32": (np.array([1.5, np.nan, np.inf, 1.5], dtype=np.float32), None, 1, 2),
    "float64": (np.array([[1.5], [np.nan], [np.nan], [2.5]]), None, 2, 2),
    "string": (np.array(["a", None, NULL_STRING, "b"], dtype=object), None, 2, 2),
    "timestamp": (np.array([0, NULL_TIMESTAMP, 86_400_000_000, 0]), None, 1, 2),
}


@pytest.mark.parametrize("kind", list(COLUMNS))
def test_a_column_is_summed_up_by_its_type(kind):
    values, valid, nulls, distinct = COLUMNS[kind]
    sketch = ColumnSketch.of(kind, values, valid)
    assert (sketch.rows, sketch.nulls, sketch.num_distinct) == (4, nulls, distinct)
    assert (sketch.counts is None) == (kind not in ("string", "boolean"))
    assert whole(ColumnSketch.from_json(whole(sketch))) == whole(sketch)
    assert whole(pickle.loads(pickle.dumps(sketch))) == whole(sketch)
    masks = np.split(valid, [1, 3]) if valid is not None else [None] * 3
    parts = [ColumnSketch.of(kind, part, mask) for part, mask in zip(np.split(values, [1, 3]), masks, strict=True)]
    assert whole(folded([ColumnSketch(type=kind), *parts])) == whole(sketch)


def test_the_same_column_from_arrow_pandas_and_graph_inputs():
    days = np.array(["2024-01-01", "NaT", "2024-03-01"], dtype="datetime64[D]")
    micros = days.astype("datetime64[us]").astype(np.int64)
    assert whole(ColumnSketch.of("timestamp", days)) == whole(ColumnSketch.of("timestamp", micros))
    nanoseconds = days.astype("datetime64[ns]")
    assert whole(ColumnSketch.of("timestamp", nanoseconds)) == whole(ColumnSketch.of("timestamp", micros))
    flags = np.array([True, None, False], dtype=object)
    assert whole(ColumnSketch.of("boolean", flags)) == whole(ColumnSketch.of("boolean", np.array([1, 2, 0], dtype=np.uint8)))
    from_arrow = np.array([3.0, np.nan])  # integers with a null
    assert whole(ColumnSketch.of("int64", from_arrow)) == whole(ColumnSketch.of("int64", np.array([3, 0]), np.array([True, False])))
    fixed = np.array(["a", "bb", NULL_STRING])
    assert whole(ColumnSketch.of("string", fixed)) == whole(ColumnSketch.of("string", fixed.astype(object)))
    not_a_number = np.array(["a", "bb", float("nan")], dtype=object)
    assert whole(ColumnSketch.of("string", fixed)) == whole(ColumnSketch.of("string", not_a_number))


def test_many_strings_are_estimated_and_types_must_agree():
    sketch = ColumnSketch.of("string", np.array([f"id-{i}" for i in range(5_000)], dtype=object))
    assert sketch.num_distinct == pytest.approx(5_000, rel=0.06)
    assert len(sketch.counts.counts) <= 1_000
    with pytest.raises(DataError, match="must agree in type"):
        sketch.merge(ColumnSketch.of("float64", np.array([1.0])))


def test_no_rows_are_a_sketch_too():
    for kind in COLUMNS:
        empty = ColumnSketch.of(kind, np.array([], dtype=object if kind == "string" else np.float64))
        assert (empty.rows, empty.num_distinct) == (0, 0)
        assert whole(empty)["type"] == kind
