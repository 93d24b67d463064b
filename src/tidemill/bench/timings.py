"""What measured times come to, and where more load stops to pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Share of the highest throughput from which more load is said not to pay any more.
ENOUGH = 0.9


def summary(seconds_N: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and percentiles in milliseconds, each as it was measured: nothing is cut off."""
    if not len(seconds_N):
        return {}
    ms_N = np.asarray(seconds_N) * 1e3
    p50, p95, p99 = np.percentile(ms_N, [50, 95, 99])
    found = {
        "mean_ms": ms_N.mean(), "std_ms": ms_N.std(), "min_ms": ms_N.min(), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": ms_N.max()
    }  # fmt: skip
    return {name: round(float(value), 6) for name, value in found.items()}


def knee(points: Sequence[Mapping[str, Any]], *, by: str, gain: str) -> dict[str, Any] | None:
    """The smallest load that reaches nine tenths of the highest throughput seen: beyond it answers come later and hardly more often.

    Args:
        by: What was raised, a key of every point.
        gain: What came of it, a key of every point.

    Returns:
        `at`, and `rising` where that is the largest load tried, so that the knee may lie beyond; None for fewer than three points.
    """
    if len(points) < 3 or not any(point[gain] for point in points):
        return None
    ordered = sorted(points, key=lambda point: float(point[by]))
    enough = ENOUGH * max(float(point[gain]) for point in ordered)
    at = next(point[by] for point in ordered if point[gain] >= enough)
    return {"at": at, "rising": at == ordered[-1][by]}


def middle(runs: Sequence[Mapping[str, Any]], *, gain: str) -> Mapping[str, Any]:
    """The run whose throughput is the median of them; of two, the lower."""
    return sorted(runs, key=lambda run: float(run[gain]))[(len(runs) - 1) // 2]
