"""Statistics that operators are fitted with, against NumPy over all rows at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.features import statistics
from tidemill.features.operator import Fit, Texts, Values, numbers, strings
from tidemill.features.statistics import Categories, Distribution, Histogram, MeanAndStd, Tally

SHARES = [0.0, 0.1, 0.25, 0.5, 0.9, 1.0]


def folded(fit: Fit[Any], pieces: list[np.ndarray]) -> Any:
    state = fit.init()
    for piece in pieces:
        state = fit.merge(state, fit.update(fit.init(), numbers(piece), None))
    return state


def kept(seen: Histogram) -> dict[str, Any]:
    return {"quantiles": seen.quantiles(SHARES), "most": seen.most_frequent(), "nulls": seen.nulls}


@given(
    st.lists(
        st.lists(st.floats(-1e100, 1e100) | st.integers(-3, 3).map(float) | st.just(float("nan")), max_size=30), min_size=1, max_size=4
    )
)
def test_quantiles_are_those_of_numpy(lists: list[list[float]]) -> None:
    pieces = [np.array(piece, np.float64) for piece in lists]
    seen = kept(folded(Distribution(kept), pieces))
    x = np.concatenate(pieces)
    known = x[~np.isnan(x)]
    assert seen["nulls"] == np.isnan(x).sum()
    if not len(known):
        assert seen["quantiles"] == []
        assert seen["most"] is None
        return
    np.testing.assert_allclose(seen["quantiles"], np.quantile(known, SHARES), rtol=1e-12, atol=1e-300)
    values, counts = np.unique(known, return_counts=True)
    assert seen["most"] == values[np.argmax(counts)]


def test_beyond_the_bound_bins_are_close_and_independent_of_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MAX_BINS", 2**10)
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(size=20_000), -(random.lognormal(size=10_000) ** 3), np.zeros(1000)])
    orders = (np.arange(len(x)), random.permutation(len(x)), np.argsort(x))
    states = [folded(Distribution(kept), np.array_split(x[order], 13)) for order in orders]
    for state in states:
        assert len(state.keys) <= 2**10
        for name in ("keys", "values", "counts", "shift"):
            np.testing.assert_array_equal(getattr(state, name), getattr(states[0], name))
    np.testing.assert_allclose(states[0].quantiles(SHARES), np.quantile(x, SHARES), rtol=2**-4)
    assert states[0].most_frequent() == 0.0
    assert set(states[0].values) <= set(x)
    assert states[0].counts.sum() == len(x)


def test_filled_afterwards_is_as_if_filled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MAX_BINS", 2**8)
    x = np.random.default_rng(0).lognormal(size=5_000)
    x[::4] = np.nan
    for fill in (0.0, 1.5, -3.0):
        pieces = np.array_split(x, 7)
        whole = [np.where(np.isnan(piece), fill, piece) for piece in pieces]
        fit = Distribution(kept)
        after, before = fit.filled(folded(fit, pieces), fill), folded(fit, whole)
        for name in ("keys", "values", "counts", "shift", "nulls"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        moments = MeanAndStd(vars)
        assert moments.filled(folded(moments, pieces), fill).to_json() == pytest.approx(folded(moments, whole).to_json(), rel=1e-12)


def test_what_moments_leave_out_they_leave_out_where_it_fills() -> None:
    fit = MeanAndStd(vars)
    seen = fit.filled(fit.update(fit.init(), numbers([1.0, np.nan, np.inf, -1e200]), None), 1e200)
    assert (seen.count, seen.nulls, seen.infinite, seen.mean) == (1, 0, 3, 1.0)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0), min_size=1), st.integers(2, 5))
def test_no_more_bits_are_dropped_than_the_bound_asks_for(values: list[float], bins: int) -> None:
    keys = statistics._ordered(np.sort(np.array(values)))
    shift = statistics._least_shift(keys, bins)
    assert len(np.unique(keys >> shift)) <= bins
    assert shift == 0 or len(np.unique(keys >> (shift - 1))) > bins


def test_counts_weigh_values() -> None:
    distribution: Distribution = Distribution(kept)
    weighed = distribution.update(distribution.init(), numbers([1.0, 5.0, np.nan]), np.array([3, 1, 2]))
    plain = distribution.update(distribution.init(), numbers([1, 1, 1, 5, np.nan, np.nan]), None)
    assert kept(weighed) == kept(plain)


def test_categories_rank_by_frequency_then_value() -> None:
    def ranked(seen: Tally) -> dict[str, Any]:
        return {"all": seen.ranked(), "two": seen.ranked(size=2), "often": seen.ranked(min_count=2), "nulls": seen.nulls}

    fit = Categories(ranked)
    left = fit.update(fit.init(), strings(["b", "a", None, "\uffff", "z"]), np.array([2, 2, 1, 1, 1]))
    state = fit.merge(left, fit.update(fit.init(), strings(["z", "c", "z"]), None))
    assert fit.finish(state) == {"all": ["z", "a", "b", "c"], "two": ["z", "a"], "often": ["z", "a", "b"], "nulls": 2}


def test_integer_categories_are_exact() -> None:
    fit = Categories(lambda seen: {"all": seen.ranked()})
    values = Values("integer", np.array([2**53, 2**53 + 1, 2**53 + 1, 9]), np.array([True, True, True, False]))
    state = fit.update(fit.init(), values, None)
    assert fit.finish(state) == {"all": [2**53 + 1, 2**53]}
    assert state.nulls == 1


def test_beyond_the_bound_rare_categories_of_the_largest_column_give_way() -> None:
    fit = Categories(lambda seen: seen.counts)
    often, small = fit.init(), fit.init()
    for piece in range(50):
        fit.update(often, strings(["often", "often", "now and then", *(f"once {piece} {i}" for i in range(100))]), None)
        fit.update(small, strings(["a", "b"]), None)
        statistics.bounded([often, small], 600)
        assert often.size + small.size <= 600
    assert small.counts == {"a": 50, "b": 50}
    assert small.error == 0
    assert often.ranked(size=2) == ["often", "now and then"]
    assert 0 < often.error <= 50 * 103 / 250
    assert 100 - often.error <= often.counts["often"] <= 100


def test_the_bound_counts_categories_not_how_often_they_came() -> None:
    fit = Categories(lambda seen: seen.counts)
    state = fit.init()
    for _ in range(30):
        fit.update(state, strings([str(i) for i in range(100)]), None)
        statistics.bounded([state], 100)
    assert state.error == 0
    assert state.counts == {str(i): 30 for i in range(100)}


def test_texts_are_known_where_they_are_neither_null_nor_its_mark() -> None:
    pa = pytest.importorskip("pyarrow")
    values = Texts(pa.array(["a", None, "\uffff", ""]))
    assert values.known().tolist() == [True, False, False, True]
    assert values.data.tolist() == ["a", None, None, ""]
    fit = Categories(lambda seen: seen.counts)
    state = fit.update(fit.init(), values, np.array([3, 1, 2, 1]))
    assert (state.counts, state.nulls) == ({"a": 3, "": 1}, 3)
