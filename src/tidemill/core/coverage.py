"""How good prediction intervals are: how often they hold the truth, and how wide they have to be for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tidemill.core.errors import DataError

# Two-sided 95 % of a normal distribution.
_Z = 1.959964


def coverage(y_N: np.ndarray, interval_N2: np.ndarray, *, level: float, weight_N: np.ndarray | None = None) -> dict[str, Any]:
    """What intervals reach on rows whose truth is known.

    `coverage` is the share of rows inside, with `low` and `high` as its 95 % interval (Wilson 1927; weighted rows count
    as their effective number, Kish 1965); `below` and `above` are the shares outside on either side. `mean_width` and
    `median_width` are in the target's unit, as is `target_width`: the range of the target that holds as much without any
    model. `pinball` is the mean loss of both ends as quantiles, which rewards being narrow and being right together.

    Args:
        y_N: True values.
        interval_N2: Low and high of each row.
        level: Share that was promised, in (0, 1).
        weight_N: Weights of rows, >= 0.

    Raises:
        DataError: If there are no rows, or a number is not finite.

    Example:
        >>> coverage(np.array([1.0, 2.0, 9.0, 4.0]), np.array([[0.0, 3.0]] * 4), level=0.5)["coverage"]
        0.5
    """
    y_N, interval_N2 = np.asarray(y_N, np.float64), np.asarray(interval_N2, np.float64)
    if not len(y_N) or interval_N2.shape != (len(y_N), 2):
        raise DataError(f"intervals must be low and high of each of at least one row, got {interval_N2.shape} for {len(y_N)} rows")
    if not (np.isfinite(y_N).all() and np.isfinite(interval_N2).all()):
        raise DataError("intervals and true values must be finite")
    weight_N = np.ones(len(y_N)) if weight_N is None else np.asarray(weight_N, np.float64)
    low_N, high_N = interval_N2.T
    below, above = (float(np.average(outside, weights=weight_N)) for outside in (y_N < low_N, y_N > high_N))
    share = 1.0 - below - above
    low, high = _wilson(share, float(weight_N.sum() ** 2 / np.square(weight_N).sum()))
    tail = (1 - level) / 2
    losses = [np.maximum(at * (y_N - end_N), (at - 1) * (y_N - end_N)) for at, end_N in ((tail, low_N), (1 - tail, high_N))]
    ends = np.quantile(y_N, [tail, 1 - tail])
    return {
        "level": level,
        "rows": len(y_N),
        "coverage": share,
        "low": low,
        "high": high,
        "below": below,
        "above": above,
        "mean_width": float(np.average(high_N - low_N, weights=weight_N)),
        "median_width": float(np.median(high_N - low_N)),
        "target_width": float(ends[1] - ends[0]),
        "pinball": float(np.average(sum(losses) / 2, weights=weight_N)),
    }


def _wilson(share: float, rows: float) -> tuple[float, float]:
    """Where the true share lies with 95 % confidence, after seeing `share` of so many rows."""
    middle = (share + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
    reach = _Z * np.sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2)) / (1 + _Z**2 / rows)
    return float(max(0.0, middle - reach)), float(min(1.0, middle + reach))
