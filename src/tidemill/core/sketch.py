"""Summaries of columns that can be computed in pieces and merged: moments, counts, distinct values, quantiles, histograms.

Every sketch is a value: `of(values)` makes one, `merge` makes a new one of two, `to_json` and `from_json` are exact, and
no randomness is involved. What is exact stays exact under merging in any order; what is not says its error, which holds in
any order. A `ColumnSketch` holds those that suit a column's type.

| sketch       | answers                       | error                                                              |
|--------------|-------------------------------|--------------------------------------------------------------------|
| `Moments`    | count, mean, deviation, range | rounding                                                           |
| `Counts`     | how often each value occurs   | none up to `bound` values, then at most `error`, kept in the sketch |
| `Distinct`   | how many values there are     | 1.6 % standard error                                               |
| `Quantiles`  | ranks and quantiles           | at most `rank_error`, proven and kept in the sketch                |
| `Histogram`  | rows between fixed edges      | none                                                               |
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.core.distinct import Distinct
from tidemill.core.errors import DataError
from tidemill.core.schema import NULL_BOOLEAN, NULL_STRING, NULL_TIMESTAMP, ColumnType

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Key = str | int | bool


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean, squared deviations and range of the finite numbers; nulls and infinities are counted apart."""

    count: int = 0
    nulls: int = 0
    infinite: int = 0
    mean: float = 0.0
    m2: float = 0.0
    min: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, values: Array, valid: Array | None = None) -> Moments:
        """The moments of an array of numbers, shape (N,); NaN and what `valid` calls false are null."""
        numbers = values.astype(np.float64)
        known = ~np.isnan(numbers) if valid is None else valid & ~np.isnan(numbers)
        finite = numbers[known & np.isfinite(numbers)]
        seen = int(known.sum())
        return cls.of_finite(finite, nulls=len(numbers) - seen, infinite=seen - len(finite))

    @classmethod
    def of_finite(cls, numbers: Floats, *, nulls: int = 0, infinite: int = 0) -> Moments:
        """The moments of finite numbers, shape (N,), and how many null and infinite ones there are beside."""
        if len(numbers) == 0:
            return cls(nulls=nulls, infinite=infinite)
        mean = float(numbers.mean())
        apart = numbers - mean
        m2 = float(np.square(apart, out=apart).sum())
        low, high = float(numbers.min()), float(numbers.max())
        return cls(count=len(numbers), nulls=nulls, infinite=infinite, mean=mean, m2=m2, min=low, max=high)

    def merge(self, other: Moments) -> Moments:
        """The moments of both together (Chan, Golub and LeVeque 1979)."""
        nulls, infinite = self.nulls + other.nulls, self.infinite + other.infinite
        if self.count == 0 or other.count == 0:
            one = self if other.count == 0 else other
            return Moments(**{**vars(one), "nulls": nulls, "infinite": infinite})
        count, delta = self.count + other.count, other.mean - self.mean
        return Moments(
            count=count,
            nulls=nulls,
            infinite=infinite,
            mean=self.mean + delta * other.count / count,
            m2=self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            min=min(v for v in (self.min, other.min) if v is not None),
            max=max(v for v in (self.max, other.max) if v is not None),
        )

    @property
    def variance(self) -> float:
        """Population variance; NaN where nothing was counted."""
        return self.m2 / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation; NaN where nothing was counted."""
        return math.sqrt(self.variance) if self.count else math.nan

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Moments:
        return cls(**tree)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How often each value occurs: exact up to `bound` distinct values, the frequent ones beyond.

    A value occurs at least `counts[value]` times (0 where absent) and at most `error` times more; `error` is at most
    total / (bound + 1). Misra and Gries (1982), merged as in Agarwal et al. (2012, Mergeable Summaries); the result does not
    depend on the order of equal counts.
    """

    counts: dict[Key, int] = field(default_factory=dict)
    total: int = 0
    error: int = 0
    bound: int = 1000

    @classmethod
    def of(cls, values: Array | Mapping[Key, int], *, bound: int = 1000) -> Counts:
        """The counts of an array of strings, integers or booleans without nulls, or of values that are counted already."""
        if isinstance(values, Mapping):
            counts = dict(values)
        elif values.dtype.kind in "OU":
            counts = dict(Counter(values.tolist()))
        else:
            keys, times = np.unique(values, return_counts=True)
            counts = dict(zip(keys.tolist(), times.tolist(), strict=True))
        return cls(counts=counts, total=sum(counts.values()), bound=bound)._trimmed()

    def merge(self, other: Counts) -> Counts:
        counts = Counter(self.counts)
        counts.update(other.counts)
        error, bound = self.error + other.error, min(self.bound, other.bound)
        return Counts(counts=dict(counts), total=self.total + other.total, error=error, bound=bound)._trimmed()

    def _trimmed(self) -> Counts:
        if len(self.counts) <= self.bound:
            return self
        cut = int(np.sort(np.fromiter(self.counts.values(), np.int64, len(self.counts)))[-self.bound - 1])
        kept = {key: count - cut for key, count in self.counts.items() if count > cut}
        return Counts(counts=kept, total=self.total, error=self.error + cut, bound=self.bound)

    @property
    def exact(self) -> bool:
        return self.error == 0

    def top(self, number: int) -> list[tuple[Key, int]]:
        """The most frequent values with their counts, most frequent first, equal ones in order of value."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:number]

    def to_json(self) -> dict[str, Any]:
        keys, counts = zip(*self.top(len(self.counts)), strict=True) if self.counts else ((), ())
        return {"keys": list(keys), "counts": list(counts), "total": self.total, "error": self.error, "bound": self.bound}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Counts:
        counts = dict(zip(tree["keys"], tree["counts"], strict=True))
        return cls(counts=counts, total=tree["total"], error=tree["error"], bound=tree["bound"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantiles:
    """Ranks and quantiles of finite numbers, from a few thousand of them; exact while there are fewer than `capacity`.

    Level h holds sorted values that stand for 2^h each. A full level is halved into the next by keeping the first or the
    second of each pair of neighbours, which moves the rank of any number by at most 2^h, up or down (Manku, Rajagopalan and
    Lindsay 1998; Karnin, Lang and Liberty 2016, with the coin replaced by whichever side has moved less). The moves are
    added up, so that the bound is proven for the very data: about 0.1 % for each doubling of the rows beyond a batch.
    """

    levels: tuple[Floats, ...] = ()
    up: int = 0
    """Most by which a rank can be too high, in values."""
    down: int = 0
    """Most by which a rank can be too low, in values."""
    capacity: int = 512

    @classmethod
    def of(cls, values: Array, *, capacity: int = 512) -> Quantiles:
        """The sketch of an array of finite numbers."""
        return cls(levels=(np.sort(values.astype(np.float64)),), capacity=capacity)._compacted()

    def merge(self, other: Quantiles) -> Quantiles:
        height = max(len(self.levels), len(other.levels))
        pairs = zip(_padded(self.levels, height), _padded(other.levels, height), strict=True)
        levels = tuple(np.sort(np.concatenate(pair)) for pair in pairs)
        capacity = min(self.capacity, other.capacity)
        return Quantiles(levels=levels, up=self.up + other.up, down=self.down + other.down, capacity=capacity)._compacted()

    def _compacted(self) -> Quantiles:
        levels, up, down = list(self.levels), self.up, self.down
        for h in range(64):
            if h >= len(levels) or len(levels[h]) < self.capacity:
                continue
            whole = len(levels[h]) // 2 * 2
            first = up <= down
            promoted = levels[h][0 if first else 1 : whole : 2]
            up, down = (up + 2**h, down) if first else (up, down + 2**h)
            levels[h] = levels[h][whole:]
            if h + 1 == len(levels):
                levels.append(promoted)
            else:
                levels[h + 1] = np.sort(np.concatenate([levels[h + 1], promoted]))
        return Quantiles(levels=tuple(levels), up=up, down=down, capacity=self.capacity)

    @property
    def count(self) -> int:
        """How many numbers were seen; exact."""
        return sum(len(level) << h for h, level in enumerate(self.levels))

    @property
    def rank_error(self) -> float:
        """Most by which a rank can be wrong, as a share of all numbers."""
        return max(self.up, self.down) / self.count if self.count else 0.0

    def points(self) -> Floats:
        """The values held, sorted: the only places where the estimated distribution steps."""
        return np.sort(np.concatenate(self.levels)) if self.levels else np.empty(0)

    def ranks(self, values: Array) -> Floats:
        """How many numbers are at most each value, within `down` below and `up` above."""
        total = np.zeros(len(values))
        for h, level in enumerate(self.levels):
            total += np.searchsorted(level, values, side="right") * 2.0**h
        return total

    def quantile(self, shares: Sequence[float] | Array) -> Floats:
        """The smallest value that each share of the numbers does not exceed; NaN where nothing was seen."""
        if self.count == 0:
            return np.full(len(shares), np.nan)
        values = np.concatenate(self.levels)
        weights = np.repeat(2.0 ** np.arange(len(self.levels)), [len(level) for level in self.levels])
        order = np.argsort(values, kind="stable")
        place = np.searchsorted(np.cumsum(weights[order]), np.asarray(shares) * self.count, side="left")
        found: Floats = values[order][place.clip(0, len(values) - 1)]
        return found

    def counts(self, edges: Array) -> Floats:
        """How many numbers lie in each bin of a `Histogram` with these edges."""
        return np.diff(self.ranks(edges), prepend=0.0, append=float(self.count))

    def to_json(self) -> dict[str, Any]:
        levels = [level.tolist() for level in self.levels]
        return {"levels": levels, "up": self.up, "down": self.down, "capacity": self.capacity}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Quantiles:
        levels = tuple(np.array(level, dtype=np.float64) for level in tree["levels"])
        return cls(levels=levels, up=tree["up"], down=tree["down"], capacity=tree["capacity"])


def _padded(levels: tuple[Floats, ...], height: int) -> tuple[Floats, ...]:
    return levels + (np.empty(0),) * (height - len(levels))


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """Numbers counted between fixed edges: up to the first, (first, second], ..., above the last; E edges, E + 1 counts."""

    edges: Floats
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, values: Array, edges: Array) -> Histogram:
        """The histogram of numbers without nulls. `edges` are shape (E,), rising."""
        edges = np.asarray(edges, dtype=np.float64)
        if len(edges) == 0 or not (np.diff(edges) > 0).all():
            raise DataError(f"edges of a histogram must rise and be at least one, got {edges.tolist()[:12]}")
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        return cls(edges=edges, counts=counts)

    def merge(self, other: Histogram) -> Histogram:
        if not np.array_equal(self.edges, other.edges):
            raise DataError("histograms must have the same edges to be merged")
        return Histogram(edges=self.edges, counts=self.counts + other.counts)

    def to_json(self) -> dict[str, Any]:
        return {"edges": self.edges.tolist(), "counts": self.counts.tolist()}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Histogram:
        return cls(edges=np.array(tree["edges"], dtype=np.float64), counts=np.array(tree["counts"], dtype=np.int64))


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnSketch:
    """The distribution of one column: what `baseline.json` holds and live traffic is compared with.

    Numbers and times have moments and quantiles (times in microseconds UTC), strings and booleans have counts.
    """

    type: ColumnType
    rows: int = 0
    nulls: int = 0
    distinct: Distinct = field(default_factory=Distinct)
    moments: Moments | None = None
    quantiles: Quantiles | None = None
    counts: Counts | None = None

    @classmethod
    def of(cls, kind: ColumnType, values: Array, valid: Array | None = None) -> ColumnSketch:
        """The sketch of a column of type `kind`, shape (N,) or (N, 1).

        Args:
            values: As Arrow's `to_numpy` gives them (NaN, None or NaT is null) or as graph inputs (the nulls of `core.schema`).
            valid: False where null, for types that cannot say so themselves.
        """
        values = np.ravel(values)
        known = _known(kind, values, None if valid is None else np.ravel(valid))
        nulls = len(values) - len(known)
        if kind in ("string", "boolean"):
            counted = Counter(known.tolist())
            distinct = Distinct.of(list(map(str, counted)))
            return cls(type=kind, rows=len(values), nulls=nulls, distinct=distinct, counts=Counts.of(counted))
        finite = known[np.isfinite(known)] if known.dtype.kind == "f" else known
        moments = Moments.of(known)
        return cls(type=kind, rows=len(values), nulls=nulls, distinct=Distinct.of(known), moments=moments, quantiles=Quantiles.of(finite))

    def merge(self, other: ColumnSketch) -> ColumnSketch:
        """The sketch of both together.

        Raises:
            DataError: If one counts values and the other measures numbers.
        """
        if (self.type in _COUNTED) != (other.type in _COUNTED):
            raise DataError(f"sketches of one column must agree in type to be merged, got {self.type} and {other.type}")
        return ColumnSketch(
            type=self.type,
            rows=self.rows + other.rows,
            nulls=self.nulls + other.nulls,
            distinct=self.distinct.merge(other.distinct),
            moments=_merged(self.moments, other.moments),
            quantiles=_merged(self.quantiles, other.quantiles),
            counts=_merged(self.counts, other.counts),
        )

    @property
    def num_distinct(self) -> int:
        """How many different values there are, null not counted: exact for few strings and booleans, else estimated."""
        if self.counts is not None and self.counts.exact:
            return len(self.counts.counts)
        return min(round(self.distinct.estimate()), self.rows - self.nulls)

    def to_json(self) -> dict[str, Any]:
        parts = {"distinct": self.distinct, "moments": self.moments, "quantiles": self.quantiles, "counts": self.counts}
        tree = {name: part.to_json() for name, part in parts.items() if part is not None}
        return {"type": self.type, "rows": self.rows, "nulls": self.nulls, **tree}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> ColumnSketch:
        kinds: dict[str, Any] = {"distinct": Distinct, "moments": Moments, "quantiles": Quantiles, "counts": Counts}
        parts = {name: kind.from_json(tree[name]) for name, kind in kinds.items() if name in tree}
        return cls(type=tree["type"], rows=tree["rows"], nulls=tree["nulls"], **parts)


_COUNTED = ("string", "boolean")


def _known(kind: ColumnType, values: Array, valid: Array | None) -> Array:
    """The values that are not null: strings as they are, booleans as bool, times as int64, numbers as int64 or float64."""
    known: Array = values if valid is None else values[np.asarray(valid, dtype=bool)]
    if known.dtype.kind == "O":
        known = known[np.fromiter((value is not None and value == value for value in known), dtype=bool, count=len(known))]
    elif known.dtype.kind == "f":
        known = known[~np.isnan(known)]
    if kind == "string":
        known = known[known != NULL_STRING]
    elif kind == "boolean":
        known = known[known != NULL_BOOLEAN].astype(bool)
    elif kind == "timestamp":
        micros = known.astype("datetime64[us]" if known.dtype.kind in "OM" else np.int64).astype(np.int64)
        known = micros[micros != NULL_TIMESTAMP]  # NaT became the null of graph inputs
    else:
        known = known.astype(np.int64 if kind == "int64" else np.float64)
    return known


def _merged(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return right if left is None else left
    return left.merge(right)
