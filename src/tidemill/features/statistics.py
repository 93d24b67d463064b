"""Statistics that operators are fitted with: moments, distributions, category counts. Mergeable and deterministic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from tidemill.core.sketch import Moments
from tidemill.features.operator import Fit, Fitted, Texts, Values

if TYPE_CHECKING:
    import pyarrow as pa

S = TypeVar("S")
T = TypeVar("T")

# Moments leave out what is larger: its square would not fit in float64.
LARGEST = 1e145

# Distinct numbers that a distribution keeps exactly; beyond, neighbours share a bin.
MAX_BINS = 2**17

# Distinct categories of all columns of one pass that are counted exactly.
MAX_CATEGORIES = 2**20
PENDING_CATEGORIES = 2**16


@runtime_checkable
class Fillable(Fit[T], Protocol[T]):
    """A statistic of numbers that can tell afterwards what it would have been had nulls been filled."""

    def filled(self, state: T, fill: float) -> T:
        """The state as if `fill` had been where null was; may change the one that it is given."""
        ...


@dataclass(frozen=True)
class MeanAndStd:
    """Mean and standard deviation (population) of the numbers; null, infinite and beyond +-1e145 are left out."""

    summary: Callable[[Moments], Fitted]

    def init(self) -> Moments:
        return Moments()

    def update(self, state: Moments, values: Values, counts: np.ndarray | None) -> Moments:
        if counts is not None:
            values = Values("number", np.repeat(values.data, counts))
        x = values.finite
        if len(x) and max(-x.min(), x.max()) > LARGEST:
            x = x[np.abs(x) <= LARGEST]
        return state.merge(Moments.of_finite(x, nulls=values.nulls, infinite=len(values) - values.nulls - len(x)))

    def merge(self, left: Moments, right: Moments) -> Moments:
        return left.merge(right)

    def filled(self, state: Moments, fill: float) -> Moments:
        """The state as if `fill` had been where null was."""
        known = replace(state, nulls=0)
        if abs(fill) > LARGEST:
            return replace(known, infinite=state.infinite + state.nulls)
        return known.merge(Moments(count=state.nulls, mean=fill, min=fill, max=fill)) if state.nulls else known

    def finish(self, state: Moments) -> Fitted:
        return self.summary(state)


class Histogram:
    """Distinct numbers in rising order and how often each occurs; see `Distribution`.

    What is added waits until there is enough of it to be worth sorting in.
    """

    def __init__(self) -> None:
        self.shift = 0
        self.nulls = 0
        self._values = np.empty(0, np.float64)
        self._counts = np.empty(0, np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray | None]] = []

    def add(self, x: np.ndarray, counts: np.ndarray | None) -> None:
        """Take in finite numbers, no -0.0 among them, and how often each occurs, once where None."""
        self._waiting.append((x, counts))
        if sum(len(values) for values, _ in self._waiting) >= 2 * MAX_BINS:
            self._settle()

    def merge(self, other: Histogram) -> None:
        self.nulls += other.nulls
        for x, counts in other._waiting:
            self.add(x, counts)
        if len(other._values):
            self._join(other._values, other._counts, other.shift)

    @property
    def keys(self) -> np.ndarray:
        return _ordered(self.values) >> self.shift

    @property
    def values(self) -> np.ndarray:
        return self._settle()._values

    @property
    def counts(self) -> np.ndarray:
        return self._settle()._counts

    def _settle(self) -> Histogram:
        waiting, self._waiting = self._waiting, []
        once = [x for x, counts in waiting if counts is None]
        if once:
            self._join(np.sort(np.concatenate(once)), None, 0)
        counted = [(x, counts) for x, counts in waiting if counts is not None]
        if counted:
            x = np.concatenate([x for x, _ in counted])
            order = np.argsort(x, kind="stable")
            self._join(x[order], np.concatenate([counts for _, counts in counted])[order], 0)
        return self

    def _join(self, values: np.ndarray, counts: np.ndarray | None, shift: int) -> None:
        """Sort in numbers in rising order; as many bits are dropped as the bound asks for, and no more."""
        self.shift = max(self.shift, shift)
        values, counts = _binned(values, counts, self.shift)
        if len(self._values):
            values, counts = np.concatenate([self._values, values]), np.concatenate([self._counts, counts])
            order = np.argsort(values, kind="stable")  # two sorted runs, which a stable sort merges in one pass
            values, counts = _binned(values[order], counts[order], self.shift)
        if len(values) > MAX_BINS:
            self.shift = _least_shift(_ordered(values), MAX_BINS)
            values, counts = _binned(values, counts, self.shift)
        self._values, self._counts = values, counts

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
        if counts is None:
            state.nulls += values.nulls
        else:
            state.nulls += int(counts[np.isnan(values.data)].sum())
            counts = counts[np.isfinite(values.data)]
        state.add(values.finite + 0.0, counts)
        return state

    def merge(self, left: Histogram, right: Histogram) -> Histogram:
        left.merge(right)
        return left

    def filled(self, state: Histogram, fill: float) -> Histogram:
        """The state as if `fill` had been where null was."""
        if state.nulls:
            state.add(np.array([fill]) + 0.0, np.array([state.nulls]))
            state.nulls = 0
        return state

    def finish(self, state: Histogram) -> Fitted:
        return self.summary(state)


def _binned(x: np.ndarray, counts: np.ndarray | None, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Of numbers in rising order the first of each bin, and how many there are in it; each stands for one where `counts` is None."""
    keys = _ordered(x) >> shift
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]]))
    ends = np.append(starts[1:], len(x)) if len(x) else starts
    rows = ends if counts is None else np.cumsum(counts)[ends - 1]
    return x.take(starts), np.diff(rows, prepend=0)


def _ordered(x: np.ndarray) -> np.ndarray:
    """int64 keys that sort as the float64 numbers do."""
    bits = x.view(np.int64)
    return bits ^ ((bits >> 63) & np.int64(2**63 - 1))


def _least_shift(keys: np.ndarray, bins: int) -> int:
    """How many low bits of rising keys must be dropped for no more than so many different ones to be left."""
    apart = (keys[1:] ^ keys[:-1]).view(np.uint64)
    # Two neighbours differ up to the length of this in bits; without the bit below its first one it cannot be rounded up to a longer one.
    length = np.frexp((apart & ~(apart >> np.uint64(1))).astype(np.float64))[1]
    longer = len(apart) - np.cumsum(np.bincount(length, minlength=65))  # by number of bits: neighbours that differ above
    return int(np.argmax(longer < bins)) if longer[63] < bins else 63


@dataclass(frozen=True)
class Filled(Generic[S, T]):
    """Two statistics of one pass: of the numbers, and of what they are once nulls are filled with a number that the first tells.

    Neither needs to know the other's: a statistic counts nulls apart, and takes in afterwards what they became.
    """

    first: Fit[S]
    fill_of: Callable[[Fitted], float]
    second: Fillable[T]

    def init(self) -> tuple[S, T]:
        return self.first.init(), self.second.init()

    def update(self, state: tuple[S, T], values: Values, counts: np.ndarray | None) -> tuple[S, T]:
        return self.first.update(state[0], values, counts), self.second.update(state[1], values, counts)

    def merge(self, left: tuple[S, T], right: tuple[S, T]) -> tuple[S, T]:
        return self.first.merge(left[0], right[0]), self.second.merge(left[1], right[1])

    def finish(self, state: tuple[S, T]) -> tuple[Fitted, Fitted]:
        """What the first says, and the second of what was filled."""
        fitted = self.first.finish(state[0])
        return fitted, self.second.finish(self.second.filled(state[1], float(self.fill_of(fitted))))


class Tally:
    """How often each category occurs; nulls apart. See `Categories`."""

    def __init__(self) -> None:
        self.nulls = 0
        self.error = 0
        """Most by which a count is too low, and most that a category may occur which is not here."""
        self._pieces: list[tuple[pa.Array, np.ndarray]] = []
        self._whole = 0

    def __len__(self) -> int:
        """How many categories there are."""
        return len(self._summed()[0])

    @property
    def counts(self) -> dict[Any, int]:
        """How often each category occurs."""
        values, counts = self._summed()
        return dict(zip(values.to_pylist(), counts.tolist(), strict=True))

    @property
    def size(self) -> int:
        """Entries in memory: categories, some of them more than once."""
        return sum(len(values) for values, _ in self._pieces)

    def ranked(self, *, size: int | None = None, min_count: int = 1) -> list[Any]:
        """Categories, most frequent first, equal ones by value; at most `size`, each at least `min_count` times."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values, counts = self._summed()
        often = counts >= min_count
        values, counts = values.filter(pa.array(often)), counts[often]
        by_value = pc.array_sort_indices(values).to_numpy()  # texts by their UTF-8 bytes, which is by code points
        order = by_value[np.argsort(-counts[by_value], kind="stable")]
        ranked: list[Any] = values.take(pa.array(order[:size])).to_pylist()
        return ranked

    def add(self, values: pa.Array, counts: np.ndarray) -> None:
        """Take in categories, no null among them, and how often each occurs."""
        if len(values):
            self._pieces.append((values, counts))
            if self.size > 2 * max(self._whole, PENDING_CATEGORIES):
                self._summed()

    def merge(self, other: Tally) -> None:
        self.nulls += other.nulls
        self.error += other.error
        for values, counts in other._pieces:
            self.add(values, counts)

    def keep(self, most: int) -> None:
        """Leave only the `most` frequent categories or fewer (Misra and Gries 1982, merged as in Agarwal et al. 2012)."""
        import pyarrow as pa

        values, counts = self._summed()
        if len(counts) > most:
            cut = int(np.partition(counts, -most - 1)[-most - 1])
            often = counts > cut
            self._pieces = [(values.filter(pa.array(often)), counts[often] - cut)]
            self._whole = int(often.sum())
            self.error += cut

    def _summed(self) -> tuple[pa.Array, np.ndarray]:
        """Every category once, in the order in which they came first."""
        import pyarrow as pa

        if not self._pieces:
            return pa.array([], pa.string()), np.empty(0, np.int64)
        if len(self._pieces) > 1 or not self._whole:
            table = pa.table({
                "value": pa.chunked_array([values for values, _ in self._pieces]),
                "count": pa.chunked_array([pa.array(counts) for _, counts in self._pieces]),
            })  # fmt: skip
            self._pieces = []
            summed = table.group_by("value", use_threads=False).aggregate([("count", "sum")]).combine_chunks()
            values, counts = summed["value"].combine_chunks(), summed["count_sum"].to_numpy()
            self._pieces, self._whole = [(values, counts)], len(values)
        return self._pieces[0]


@runtime_checkable
class Bounded(Protocol):
    """A state with entries for categories, of which it can give some up."""

    @property
    def size(self) -> int:
        """Entries in memory, some of them maybe more than once."""
        ...

    def __len__(self) -> int:
        """Entries, once they are summed up."""
        ...

    def keep(self, most: int) -> None:
        """Leave at most `most` entries."""
        ...


def bounded(tallies: Sequence[Bounded], most: int | None = None) -> None:
    """Leave at most some `most` categories in all, 2^20 by default: those of the column with the most are thinned out first."""
    most = MAX_CATEGORIES if most is None else most
    sizes = [tally.size for tally in tallies]
    for largest in np.argsort(sizes, kind="stable")[::-1].tolist():  # as they lie, they may hold a category more than once
        if sum(sizes) > most:
            sizes[largest] = len(tallies[largest])
    while sum(sizes) > most:
        largest = int(np.argmax(sizes))
        tallies[largest].keep(sizes[largest] // 2)
        sizes[largest] = tallies[largest].size


@dataclass(frozen=True)
class Categories:
    """Counts of categories: texts or integers.

    Exact as long as all columns that are fitted together have no more than 2^20 categories. Beyond, the rare ones of the
    columns with the most give way, and counts are too low by at most `Tally.error`.
    """

    summary: Callable[[Tally], Fitted]

    def init(self) -> Tally:
        return Tally()

    def update(self, state: Tally, values: Values, counts: np.ndarray | None) -> Tally:
        import pyarrow as pa

        known = values.known()
        weights = np.ones(len(values), np.int64) if counts is None else counts
        if isinstance(values, Texts):
            first = int(np.count_nonzero(known))  # nulls come last, if the texts are grouped
            texts = values.texts[:first] if known[:first].all() else values.texts.filter(pa.array(known))
            counted = weights[known]
            state.nulls += int(weights.sum() - counted.sum())
            state.add(texts, counted)
            return state
        state.nulls += int(weights[~known].sum())
        if values.kind == "string":
            state.add(pa.array(values.data[known], pa.string()), weights[known])
        else:
            data, places = np.unique(values.data[known], return_inverse=True)
            state.add(pa.array(data), np.bincount(places, weights[known], len(data)).astype(np.int64))
        return state

    def merge(self, left: Tally, right: Tally) -> Tally:
        left.merge(right)
        return left

    def finish(self, state: Tally) -> Fitted:
        return self.summary(state)
