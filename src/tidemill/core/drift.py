"""How far one distribution is from another: distances between binned counts, and the drift of a column between two sketches.

A distance says how large a change is; a p-value says whether chance alone would explain it. Alarms should ask for both:
with much data the smallest change is significant, with little data chance alone looks large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.core.errors import DataError
from tidemill.core.sketch import ColumnSketch, Quantiles

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# Relative difference of numbers that counts as none.
ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How a column's distribution moved from the reference to now."""

    psi: float
    """Population stability in nats, less what chance alone would add; 0.1 is often called small, 0.25 large."""
    js: float
    """Jensen-Shannon distance in 0..1 over the same bins."""
    ks: float | None
    """Largest distance between the distribution functions of the values; None for strings and booleans."""
    p_value: float
    """Chance of bins as different as these had nothing changed (chi-square), for independent rows."""
    null_change: float
    """Share of nulls now minus then, in -1..1."""
    unseen: float | None
    """Share of rows now whose value the reference never held; None for numbers, and where the reference lost count."""
    rows: int
    """Rows now."""

    def exceeds(self, psi: float, *, chance: float = 0.001) -> bool:
        """Whether the change is both larger than `psi` and less likely than `chance` to be none."""
        return self.psi > psi and self.p_value < chance


def drift(reference: ColumnSketch, current: ColumnSketch, *, bins: int = 10) -> Drift:
    """The drift of a column from `reference` to `current`.

    Numbers and times are binned at the reference's quantiles, below its smallest and above its largest; strings by its
    2 x `bins` most frequent values and the rest. Nulls are a bin of their own, infinities too.

    Args:
        bins: Quantile bins of numbers, >= 2.

    Raises:
        DataError: If the types do not agree, or a sketch has no rows.
    """
    counted = ("string", "boolean")
    if (reference.type in counted) != (current.type in counted):
        raise DataError(f"a column must keep its type to be compared, got {reference.type} then {current.type}")
    if reference.rows == 0 or current.rows == 0:
        raise DataError(f"both sides of a drift must have rows, got {reference.rows} then {current.rows}")
    pair_2B = _category_bins(reference, current, 2 * bins) if reference.type in counted else _number_bins(reference, current, bins)
    return Drift(
        psi=_debiased_stability(*pair_2B),
        js=jensen_shannon(*pair_2B),
        ks=_quantile_distance(reference, current),
        p_value=chi_square(*pair_2B).p_value,
        null_change=current.nulls / current.rows - reference.nulls / reference.rows,
        unseen=_unseen(reference, current),
        rows=current.rows,
    )


def quantile_edges(reference: ColumnSketch, bins: int = 10) -> Floats:
    """Edges that split the reference's numbers into about `bins` equal parts, and set apart what lies outside its range.

    Equal quantiles are one edge, so that a frequent value closes its bin.
    """
    moments, quantiles = reference.moments, reference.quantiles
    if moments is None or quantiles is None or moments.min is None or moments.max is None:
        return np.zeros(1)
    inner = quantiles.quantile(np.arange(1, bins) / bins)
    return np.unique([np.nextafter(moments.min, -np.inf), *inner, moments.max])


def _number_bins(reference: ColumnSketch, current: ColumnSketch, bins: int) -> tuple[Floats, Floats]:
    lowest, *others = quantile_edges(reference, bins)
    edges = np.append(-_above(-lowest, reference.type), _above(np.array(others), reference.type))
    return _number_counts(reference, edges), _number_counts(current, edges)


def _number_counts(sketch: ColumnSketch, edges: Floats) -> Floats:
    """Rows in each bin, fewer where the sketch's own error would pass for information.

    A share p of n rows is uncertain by p / n, the sketch adds about half its squared rank error: together as if there were
    n / (1 + n error^2 / 2p) rows, with p = 1 / bins.
    """
    quantiles = sketch.quantiles or Quantiles()
    infinite = sketch.moments.infinite if sketch.moments is not None else 0
    counts = np.append(quantiles.counts(edges), [infinite, sketch.nulls])
    return counts / (1 + sketch.rows * len(edges) * quantiles.rank_error**2 / 2)


def _category_bins(reference: ColumnSketch, current: ColumnSketch, bins: int) -> tuple[Floats, Floats]:
    keys = [key for key, _ in reference.counts.top(bins)] if reference.counts is not None else []
    return _category_counts(reference, keys), _category_counts(current, keys)


def _category_counts(sketch: ColumnSketch, keys: list[Any]) -> Floats:
    counts = sketch.counts.counts if sketch.counts is not None else {}
    listed = [counts.get(key, 0) for key in keys]
    return np.array([*listed, sketch.rows - sketch.nulls - sum(listed), sketch.nulls], dtype=np.float64)


def _debiased_stability(reference_B: Floats, current_B: Floats) -> float:
    """Population stability with half a row added to every bin that either side uses, less its expectation without drift.

    That expectation is (bins - 1)(1/n + 1/m) (Yurdakul 2018): with few rows, the distance of a distribution from itself.
    """
    used = reference_B + current_B > 0
    distance = population_stability(reference_B[used] + 0.5, current_B[used] + 0.5)
    expected = (int(used.sum()) - 1) * (1 / float(reference_B.sum()) + 1 / float(current_B.sum()))
    return max(0.0, distance - expected)


def _quantile_distance(reference: ColumnSketch, current: ColumnSketch) -> float | None:
    then, now = reference.quantiles, current.quantiles
    if then is None or now is None or then.count == 0 or now.count == 0:
        return None
    points = np.unique(_above(np.union1d(then.points(), now.points()), reference.type))
    return kolmogorov_smirnov(then.counts(points), now.counts(points))


def _above(points: Any, kind: str) -> Any:
    """Points so little above these that a number which rounding alone parts from one is on the same side.

    A runtime may answer 0.31 and 0.31000003 for the same row in batches of other sizes. A probability that many rows have
    would be in two bins.
    """
    return points + ROUNDING * np.abs(points) if kind in ("float32", "float64") else points


def _unseen(reference: ColumnSketch, current: ColumnSketch) -> float | None:
    if reference.counts is None or current.counts is None or not reference.counts.exact:
        return None
    return sum(count for key, count in current.counts.counts.items() if key not in reference.counts.counts) / current.rows


# ---- distances between binned distributions ----


def population_stability(reference_B: Array, current_B: Array, *, floor: float = 1e-6) -> float:
    """Distance between two binned distributions, in nats.

    Symmetric, and 0 only when the shares are equal (Jeffreys divergence).

    Args:
        reference_B: Training-time counts per bin, shape (B,), any scale, >= 0.
        current_B: Live counts for the same bins in the same order, shape (B,).
        floor: Smallest share a bin may hold, in (0, 1/B).

    Raises:
        DataError: If the shapes differ or either side has no mass.

    Example:
        >>> population_stability(np.array([50, 50]), np.array([500, 500]))
        0.0
    """
    reference_B, current_B = (np.maximum(shares, floor) for shares in _shares(reference_B, current_B))
    return float(((current_B - reference_B) * np.log(current_B / reference_B)).sum())


def jensen_shannon(reference_B: Array, current_B: Array) -> float:
    """Distance between two binned distributions in 0..1: the root of the Jensen-Shannon divergence in bits (Lin 1991).

    A metric; 1 where no bin is shared.

    Raises:
        DataError: If the shapes differ or either side has no mass.

    Example:
        >>> jensen_shannon(np.array([1, 0]), np.array([0, 3]))
        1.0
    """
    reference_B, current_B = _shares(reference_B, current_B)
    middle_B = (reference_B + current_B) / 2
    divergence = 0.0
    for shares in (reference_B, current_B):
        some = shares > 0
        divergence += float((shares[some] * np.log2(shares[some] / middle_B[some])).sum()) / 2
    return math.sqrt(min(1.0, max(0.0, divergence)))


def kolmogorov_smirnov(reference_B: Array, current_B: Array) -> float:
    """Largest distance between two distribution functions, in 0..1, from counts in the same rising bins.

    Exact where every distinct value has a bin of its own; a lower bound otherwise.

    Raises:
        DataError: If the shapes differ or either side has no mass.

    Example:
        >>> kolmogorov_smirnov(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0]))
        0.5
    """
    reference_B, current_B = _shares(reference_B, current_B)
    return float(np.abs(np.cumsum(reference_B) - np.cumsum(current_B)).max())


@dataclass(frozen=True, kw_only=True)
class ChiSquare:
    """A chi-square statistic, its degrees of freedom, and the chance of one as large."""

    statistic: float
    degrees: int
    p_value: float


def chi_square(reference_B: Array, current_B: Array) -> ChiSquare:
    """Pearson's test that two samples of categories come from one distribution; for counts of independent rows.

    Bins of which the smaller sample should hold fewer than five are merged (Cochran 1954). Where one bin is left, nothing
    can be told and the p-value is 1.

    Raises:
        DataError: If the shapes differ or either side has no mass.
    """
    _shares(reference_B, current_B)
    table_2B = _merged_bins(np.array([reference_B, current_B], dtype=np.float64))
    degrees = table_2B.shape[1] - 1
    if degrees == 0:
        return ChiSquare(statistic=0.0, degrees=0, p_value=1.0)
    expected_2B = table_2B.sum(axis=1, keepdims=True) * table_2B.sum(axis=0) / table_2B.sum()
    statistic = float((np.square(table_2B - expected_2B) / expected_2B).sum())
    return ChiSquare(statistic=statistic, degrees=degrees, p_value=_chi_square_tail(statistic, degrees))


def _merged_bins(table_2B: Floats) -> Floats:
    """The table with its rarest bins added up until the smaller sample should hold five in each."""
    order = np.argsort(-table_2B.sum(axis=0), kind="stable")
    table_2B = table_2B[:, order]
    expected_B = table_2B.sum(axis=0) * table_2B.sum(axis=1).min() / table_2B.sum()
    keep = int((expected_B >= 5).sum())
    if keep < len(expected_B) and expected_B[keep:].sum() < 5:
        keep -= 1
    keep = max(keep, 0)
    return table_2B if keep >= len(expected_B) else np.column_stack([table_2B[:, :keep], table_2B[:, keep:].sum(axis=1)])


def _chi_square_tail(statistic: float, degrees: int) -> float:
    """Chance that a chi-square variable passes `statistic`: the finite sums for whole degrees (Abramowitz, Stegun 26.4.4-5)."""
    half = statistic / 2
    if half == 0:
        return 1.0
    odd = degrees % 2
    total = math.erfc(math.sqrt(half)) if odd else 0.0
    for i in range(degrees // 2):
        power = i + odd / 2
        total += math.exp(power * math.log(half) - half - math.lgamma(power + 1))
    return min(1.0, total)


def _shares(reference_B: Array, current_B: Array) -> tuple[Floats, Floats]:
    reference_B, current_B = np.asarray(reference_B, dtype=np.float64), np.asarray(current_B, dtype=np.float64)
    if reference_B.shape != current_B.shape or reference_B.ndim != 1:
        raise DataError(f"both distributions must have the same bins, got shapes {reference_B.shape} and {current_B.shape}")
    if (reference_B < 0).any() or (current_B < 0).any() or not reference_B.sum() > 0 or not current_B.sum() > 0:
        raise DataError("counts of a distribution must be >= 0 and not all 0")
    return reference_B / reference_B.sum(), current_B / current_B.sum()
