"""What a report draws of predictions: curves, calibration, residuals, confusion, and the slices where quality is worst.

Curves are plain lists of numbers, so that evidence holds them as they are. `y`, `p` and `weight` are as in `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tidemill.core import scoring
from tidemill.core.errors import DataError
from tidemill.core.metrics import checked, default_metric, evaluate, interval, metric_of
from tidemill.core.schema import NULL_STRING
from tidemill.core.scoring import Array, Floats

if TYPE_CHECKING:
    from tidemill.core.project import Task

Curve = dict[str, list[float]]


def roc_curve(y: Array, p: Array, *, weight: Array | None = None, points: int = 200) -> Curve:
    """`fpr`, `tpr` and `threshold` (class 1 where p >= threshold), from (0, 0) to (1, 1), at most `points` of them.

    Every point is on the exact curve, collinear ones left out first.

    Raises:
        DataError: As `metrics.evaluate`, or if `y` holds one class only.
    """
    threshold, positive, negative = _running_totals(y, p, weight)
    if positive[-1] == 0 or negative[-1] == 0:
        raise DataError("a ROC curve needs both classes in y, got one")
    fpr, tpr = negative / negative[-1], positive / positive[-1]
    kept = _thinned(fpr, tpr, points)
    return {"fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist(), "threshold": threshold[kept].tolist()}


def precision_recall_curve(y: Array, p: Array, *, weight: Array | None = None, points: int = 200) -> Curve:
    """`recall` (rising), `precision` and `threshold` (class 1 where p >= threshold), at most `points` of them.

    Raises:
        DataError: As `metrics.evaluate`, or if `y` holds no positive.
    """
    threshold, positive, negative = _running_totals(y, p, weight)
    if positive[-1] == 0:
        raise DataError("a precision-recall curve needs positives in y, got none")
    taken = positive + negative > 0
    threshold, positive, negative = threshold[taken], positive[taken], negative[taken]
    recall, precision = positive / positive[-1], positive / (positive + negative)
    kept = _thinned(recall, precision, points)
    return {"recall": recall[kept].tolist(), "precision": precision[kept].tolist(), "threshold": threshold[kept].tolist()}


def _running_totals(y: Array, p: Array, weight: Array | None) -> tuple[Floats, Floats, Floats]:
    """Each distinct threshold, falling, with the weight of positives and negatives at or above it; first, above every score."""
    y, p, weight_N = checked("binary", y, p, weight)
    order = np.argsort(-p, kind="stable")
    y, p, weight_N = y[order], p[order].astype(np.float64), weight_N[order]
    ends = np.flatnonzero(np.append(np.diff(p) != 0, True))
    positive, negative = np.cumsum(weight_N * (y == 1))[ends], np.cumsum(weight_N * (y == 0))[ends]
    top = np.nextafter(p[0], np.inf)
    return np.append(top, p[ends]), np.append(0.0, positive), np.append(0.0, negative)


def _thinned(x: Floats, y: Floats, points: int) -> Array:
    """Indices of at most `points` points, the first and last among them, evenly spaced along the curve."""
    turns = np.ones(len(x), dtype=bool)
    turns[1:-1] = np.diff(x)[:-1] * np.diff(y)[1:] != np.diff(x)[1:] * np.diff(y)[:-1]
    index = np.flatnonzero(turns)
    if len(index) <= points:
        return index
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x[index]), np.diff(y[index])))])
    kept: Array = index[np.unique(np.searchsorted(length, np.linspace(0, length[-1], points)).clip(0, len(index) - 1))]
    return kept


def calibration_bins(
    task: Task, y: Array, p: Array, *, weight: Array | None = None, bins: int = 10, by: Literal["mass", "width"] = "mass"
) -> list[dict[str, float]]:
    """Predicted against observed: `low`, `high`, `predicted` and `observed` means, `rows`, for each bin that holds rows.

    Binary: of class 1. Multiclass: confidence in the most probable class against how often it is right. Regression: means
    of prediction and truth. Bins hold equal numbers of rows ("mass"; equal predictions stay together) or are equally wide.
    """
    y, p, weight_N = checked(task, y, p, weight)
    claimed, came = (p, y) if task == "regression" else scoring.confidence(y, p)
    if by == "mass":
        inner = np.unique(np.quantile(claimed, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    else:
        low, high = (claimed.min(), claimed.max()) if task == "regression" else (0.0, 1.0)
        inner = np.linspace(low, high, bins + 1)[1:-1]
    code = np.searchsorted(inner, claimed, side="left")
    made = []
    for k in np.unique(code):
        rows = (code == k) & (weight_N > 0)
        if rows.any():
            made.append(
                {
                    "low": float(claimed[rows].min()),
                    "high": float(claimed[rows].max()),
                    "predicted": float(np.average(claimed[rows], weights=weight_N[rows])),
                    "observed": float(np.average(came[rows], weights=weight_N[rows])),
                    "rows": int(rows.sum()),
                }
            )
    return made


def residual_histogram(y: Array, p: Array, *, weight: Array | None = None, bins: int = 40) -> dict[str, Any]:
    """`edges` and `counts` of y - p between its 0.5 % and 99.5 % points, `below` and `above` them, and `mean`."""
    y, p, weight_N = checked("regression", y, p, weight)
    residual = y - p
    low, high = np.quantile(residual, (0.005, 0.995))
    counts, edges = np.histogram(residual, bins=bins, range=(low, high), weights=weight_N)
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "below": float(weight_N[residual < low].sum()),
        "above": float(weight_N[residual > high].sum()),
        "mean": float(np.average(residual, weights=weight_N)),
    }


def confusion_matrix(task: Task, y: Array, p: Array, *, weight: Array | None = None) -> list[list[float]]:
    """Weight of rows by actual class (outer list) and predicted class (inner), K x K."""
    y, p, weight_N = checked(task, y, p, weight)
    num_classes = p.shape[1] if p.ndim == 2 else 2
    cells = np.bincount(y * num_classes + scoring.predicted_class(p), weights=weight_N, minlength=num_classes**2)
    return [list(map(float, row)) for row in cells.reshape(num_classes, num_classes)]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Quality where a column has one value, or lies in one range."""

    column: str
    """The column."""
    value: str
    """The value, or the range of a number, as people read it; null is "null"."""
    rows: int
    """Rows in the slice."""
    score: float
    """The metric on them."""
    low: float
    """Lower end of its 95 % bootstrap interval."""
    high: float
    """Upper end."""
    gain: float
    """How much better than on all rows: < 0 is worse, whichever the metric's direction."""


def slices(
    task: Task,
    y: Array,
    p: Array,
    columns: Mapping[str, Array] | Iterable[tuple[str, Array]],
    *,
    metric: str | None = None,
    weight: Array | None = None,
    min_rows: int = 100,
    bins: int = 4,
    limit: int = 50,
    resamples: int = 200,
    seed: int = 0,
) -> list[Slice]:
    """The metric on each value of each column, the worst `limit` of them, worst first.

    A number or time with more than 12 distinct values is cut at its quantiles into `bins`. Slices that leave the metric
    undefined (ROC AUC of one class) are left out.

    Args:
        columns: By name, or one after the other, arrays (N,): numbers (NaN is null), booleans, strings (None is null) or datetime64.
        metric: The task's default when absent.
        min_rows: Rows that a slice must hold.
        resamples: Draws for each interval.
    """
    name = metric or default_metric(task)
    sign = 1.0 if metric_of(name, task).greater_is_better else -1.0
    y, p, weight_N = checked(task, y, p, weight)
    overall = evaluate(task, y, p, weight=weight_N, metrics=[name])[name]
    found: list[tuple[float, str, str, Array]] = []
    for column, values in columns.items() if isinstance(columns, Mapping) else columns:
        if len(values) != len(y):
            raise DataError(f"column {column!r} must have {len(y)} values to be sliced by, got {len(values)}", field=column)
        for value, rows in _groups(np.asarray(values), bins):
            if len(rows) >= min_rows and weight_N[rows].any():
                score = evaluate(task, y[rows], p[rows], weight=weight_N[rows], metrics=[name])[name]
                if not np.isnan(score):
                    found.append((score, column, value, rows))
        found = sorted(found, key=lambda item: (sign * item[0], item[1], item[2]))[:limit]
    made = []
    for score, column, value, rows in found:
        bounds = interval(name, y[rows], p[rows], weight=weight_N[rows], task=task, seed=seed, resamples=resamples)
        gain = sign * (score - overall)
        made.append(Slice(column=column, value=value, rows=len(rows), score=score, low=bounds.low, high=bounds.high, gain=gain))
    return made


_FEW = 12  # distinct numbers that are values of their own


def _groups(values: Array, bins: int) -> list[tuple[str, Array]]:
    """The rows of each value, or of each quantile bin of a number, with its label."""
    null = _is_null(values)
    rows = np.flatnonzero(~null)
    known = values[rows]
    if known.dtype.kind == "O":  # texts stay where they are: an array of them would make all as wide as the widest
        places = {text: place for place, text in enumerate(sorted(set(map(str, known))))}
        distinct: Sequence[Any] | Array = list(places)
        code = np.fromiter((places[str(value)] for value in known), np.int64, len(known))
    else:
        distinct, code = np.unique(known, return_inverse=True)
    labels = [f"{value:.6g}" if known.dtype.kind == "f" else str(value) for value in distinct]
    if known.dtype.kind in "iufM" and len(distinct) > _FEW:
        last = np.unique(np.quantile(code, np.arange(1, bins + 1) / bins, method="inverted_cdf").astype(np.int64))
        code = np.searchsorted(last, code, side="left")
        labels = [labels[a] if a == b else f"{labels[a]} to {labels[b]}" for a, b in zip([0, *(last[:-1] + 1)], last, strict=True)]
    order = np.argsort(code, kind="stable")
    cuts = np.searchsorted(code[order], np.arange(len(labels) + 1))
    groups = [(label, rows[order[a:b]]) for label, a, b in zip(labels, cuts[:-1], cuts[1:], strict=True)]
    return [*groups, ("null", np.flatnonzero(null))] if null.any() else groups


def _is_null(values: Array) -> Array:
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind == "M":
        return np.isnat(values)
    if values.dtype.kind == "O":
        return np.fromiter((v is None or v != v or v == NULL_STRING for v in values), dtype=bool, count=len(values))
    return np.asarray(values == NULL_STRING) if values.dtype.kind == "U" else np.zeros(len(values), dtype=bool)
