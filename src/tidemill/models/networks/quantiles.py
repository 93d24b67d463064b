"""How numeric features are spread, and what a network sees in their place: about normal, without gaps, whatever their scale.

A feature goes through the line through some of its quantiles that makes them the normal distribution's. A value beyond
the training rows counts as their farthest, a missing one as the mean, with a feature of its own that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tidemill.models import base
from tidemill.models.rows import every

# Points of each line. Steps of 4 % hold nearly all that the exact transform does.
KNOTS = 25

# Rows and values that quantiles are taken of.
MOST_ROWS = 200_000
MOST_VALUES = 20_000_000


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """A rising line for each numeric feature; every tuple has one entry a feature."""

    places: tuple[int, ...] = ()
    """Columns of the matrix that are numbers."""
    knots: tuple[tuple[float, ...], ...] = ()
    """Where a line bends, rising; the last repeated where a feature has few values."""
    values: tuple[tuple[float, ...], ...] = ()
    """What a line says there: over the training rows of mean 0 and deviation 1."""
    gaps: tuple[int, ...] = ()
    """Columns that lack values in training rows."""

    @classmethod
    def of(cls, matrix: base.Matrix, places: Sequence[int]) -> Quantiles:
        """The lines of the columns at `places`, by one pass over some of the rows, evenly spread."""
        if not places:
            return cls()
        some = every(matrix, max(1_000, min(MOST_ROWS, MOST_VALUES // len(places))))
        x_NF = np.concatenate([batch.x_NF[:, list(places)] for batch in some.batches()])
        lines = [_line(column_N[np.isfinite(column_N)]) for column_N in x_NF.T]
        gaps = [place for place, column_N in zip(places, x_NF.T, strict=True) if np.isnan(column_N).any()]
        return cls(
            places=tuple(places),
            knots=tuple(tuple(knots.tolist()) for knots, _ in lines),
            values=tuple(tuple(values.tolist()) for _, values in lines),
            gaps=tuple(gaps),
        )


def _line(sample_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots float32, rising, and the values there."""
    if not len(sample_N):
        return np.zeros(KNOTS, np.float32), np.zeros(KNOTS)
    distinct, counts = np.unique(sample_N, return_counts=True)
    rank = (np.cumsum(counts) - counts / 2) / len(sample_N)  # of a value the middle of the rows that have it
    if len(distinct) > KNOTS:
        wanted = np.searchsorted(rank, np.linspace(rank[0], rank[-1], KNOTS))
        kept = np.unique(np.clip(wanted, 0, len(distinct) - 1))
        distinct, rank = distinct[kept], rank[kept]
    normal = NormalDist()
    values = np.array([normal.inv_cdf(share) for share in rank])
    seen_N = np.interp(sample_N, distinct, values)
    spread = seen_N.std()
    values = (values - seen_N.mean()) / (spread if spread > 1e-6 else 1.0)
    rest = KNOTS - len(distinct)
    return np.pad(distinct, (0, rest), "edge"), np.pad(values, (0, rest), "edge")
