"""Statistics that operators are fitted with: moments, distributions, category counts. Mergeable and deterministic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tidemill.core.sketch import Moments
from tidemill.features.operator import Fitted, Values

# Moments leave out what is larger: its square would not fit in float64.
LARGEST = 1e145

# Distinct numbers that a distribution keeps exactly; beyond, neighbours share a bin.
MAX_BINS = 2**17


@dataclass(frozen=True)
class MeanAndStd:
    """Mean and standard deviation (population) of the numbers; null, infinite and beyond +-1e145 are left out."""

    summary: Callable[[Moments], Fitted]

    def init(self) -> Moments:
        return Moments()

    def update(self, state: Moments, values: Values, counts: np.ndarray | None) -> Moments:
        x = values.data if counts is None else np.repeat(values.data, counts)
        with np.errstate(invalid="ignore"):
            x = np.where(np.abs(x) > LARGEST, np.inf, x)
        return state.merge(Moments.of(x))

    def merge(self, left: Moments, right: Moments) -> Moments:
        return left.merge(right)

    def finish(self, state: Moments) -> Fitted:
        return self.summary(state)


@dataclass
class Histogram:
    """Distinct numbers in rising order and how often each occurs; see `Distribution`."""

    shift: int = 0
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    values: np.ndarray = field(default_factory=lambda: np.empty(0, np.float64))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    nulls: int = 0

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Quantiles, linear between neighbours as NumPy's default; [] where there is no number."""
        if not len(self.counts):
            return []
        ends = np.cumsum(self.counts)
        places = np.asarray(shares, np.float64) * (ends[-1] - 1)
        low = np.floor(places).astype(np.int64)
        below = self.values[np.searchsorted(ends, low, side="right")]
        above = self.values[np.searchsorted(ends, np.minimum(low + 1, ends[-1] - 1), side="right")]
        part = places - low
        return [float(value) for value in np.where(below == above, below, below * (1 - part) + above * part)]

    def most_frequent(self) -> float | None:
        """The number that occurs most often, the smallest of several."""
        return float(self.values[np.argmax(self.counts)]) if len(self.counts) else None


@dataclass(frozen=True)
class Distribution:
    """The distribution of the numbers; null and infinite are left out.

    Exact up to 2^17 distinct numbers. Beyond, numbers that share the leading bits of their float64 share a bin, which
    keeps its smallest number; as few bits are dropped as needed, so that the relative error stays below 2^-m for m
    bits of mantissa kept (typically 13 to 16). The state does not depend on the order of the rows or the merges.
    """

    summary: Callable[[Histogram], Fitted]
    """What is made of the distribution; a module-level function or an operator's method, so that it can be pickled."""

    def init(self) -> Histogram:
        return Histogram()

    def update(self, state: Histogram, values: Values, counts: np.ndarray | None) -> Histogram:
        kept = np.isfinite(values.data)
        weights = np.ones(len(values), np.int64) if counts is None else counts
        x = values.data[kept] + 0.0
        if counts is None:
            distinct, occurs = np.unique(x, return_counts=True)
        else:
            distinct, places = np.unique(x, return_inverse=True)
            occurs = np.bincount(places, weights[kept], len(distinct))
        piece = Histogram(0, _ordered(distinct), distinct, occurs.astype(np.int64), int(weights[np.isnan(values.data)].sum()))
        return self.merge(state, piece)

    def merge(self, left: Histogram, right: Histogram) -> Histogram:
        shift = max(left.shift, right.shift)
        keys = np.concatenate([left.keys >> (shift - left.shift), right.keys >> (shift - right.shift)])
        values = np.concatenate([left.values, right.values])
        counts = np.concatenate([left.counts, right.counts])
        order = np.argsort(keys, kind="stable")  # two sorted runs, which a stable sort merges in one pass
        keys, values, counts = _grouped(keys[order], values[order], counts[order], exact=shift == 0)
        while len(keys) > MAX_BINS:
            shift += 1
            keys, values, counts = _grouped(keys >> 1, values, counts, exact=False)
        return Histogram(shift, keys, values, counts, left.nulls + right.nulls)

    def finish(self, state: Histogram) -> Fitted:
        return self.summary(state)


def _ordered(x: np.ndarray) -> np.ndarray:
    """int64 keys that sort as the float64 numbers do."""
    bits = x.view(np.int64)
    return bits ^ ((bits >> 63) & np.int64(2**63 - 1))


def _grouped(keys: np.ndarray, values: np.ndarray, counts: np.ndarray, *, exact: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted bins with equal keys made one: the smallest value (where `exact`, there is but one), the sum of counts."""
    if not len(keys):
        return keys, values, counts
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], values[starts] if exact else np.minimum.reduceat(values, starts), np.add.reduceat(counts, starts)


@dataclass
class Tally:
    """How often each category occurs, exactly; nulls apart. Takes memory for every distinct category."""

    counts: dict[Any, int] = field(default_factory=dict)
    nulls: int = 0

    def ranked(self, *, size: int | None = None, min_count: int = 1) -> list[Any]:
        """Categories, most frequent first, equal ones by value; at most `size`, each at least `min_count` times."""
        kept = [(-count, value) for value, count in self.counts.items() if count >= min_count]
        kept.sort()
        return [value for _, value in kept[:size]]


@dataclass(frozen=True)
class Categories:
    """Exact counts of categories: texts or integers."""

    summary: Callable[[Tally], Fitted]

    def init(self) -> Tally:
        return Tally()

    def update(self, state: Tally, values: Values, counts: np.ndarray | None) -> Tally:
        known = values.known()
        weights = np.ones(len(values), np.int64) if counts is None else counts
        state.nulls += int(weights[~known].sum())
        data, weights = values.data[known], weights[known]
        if values.kind != "string":
            data, places = np.unique(data, return_inverse=True)
            weights = np.bincount(places, weights, len(data)).astype(np.int64)
        counted = dict(zip(data.tolist(), weights.tolist(), strict=True))
        if len(counted) == len(data) and not state.counts:
            state.counts = counted
            return state
        totals = state.counts
        for value, count in zip(data.tolist(), weights.tolist(), strict=True):
            totals[value] = totals.get(value, 0) + count
        return state

    def merge(self, left: Tally, right: Tally) -> Tally:
        totals, get = left.counts, left.counts.get
        for value, count in right.counts.items():
            totals[value] = get(value, 0) + count
        left.nulls += right.nulls
        return left

    def finish(self, state: Tally) -> Fitted:
        return self.summary(state)
