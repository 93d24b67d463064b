"""How good predictions are: the field's metrics, their bootstrap intervals, and the paired difference of two models.

A metric is prepared once for its rows (see `scoring`) and then read under any number of weightings of those rows, so that
a single value, a bootstrap of a thousand resamples and a paired difference are the same code.

Shapes, everywhere here: `y` is (N,): the class index for classification (binary: 0 or 1), the value for regression.
`p` is (N,) for regression; for binary (N,), the probability of class 1, or (N, 2); for multiclass (N, K).
`weight` is (N,), >= 0. A metric that its rows leave undefined (ROC AUC of one class, R2 of a constant) is NaN; rows that no
metric could take (none at all, NaN, a class out of range, a probability of 3) are a DataError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tidemill.core import scoring
from tidemill.core.errors import ConfigError, DataError, NotFound
from tidemill.core.scoring import Array, Floats

if TYPE_CHECKING:
    from tidemill.core.project import Task

_CELLS = 1 << 20  # resampled weights held at once


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to judge predictions."""

    prepare: scoring.Prepare
    """From checked `y` and `p` to the scorer of those rows."""
    tasks: tuple[str, ...]
    """Tasks that it judges."""
    greater_is_better: bool
    """Whether more is better."""
    default_for: str | None = None
    """The task that is judged by it unless told otherwise."""
    title: str
    """Its name for people."""


_CLASSES = ("binary", "multiclass")
_BINARY = ("binary",)
_VALUES = ("regression",)

METRICS: dict[str, Metric] = {
    "roc_auc": Metric(prepare=scoring.roc_auc, tasks=_CLASSES, greater_is_better=True, default_for="binary", title="ROC AUC"),
    "average_precision": Metric(prepare=scoring.average_precision, tasks=_BINARY, greater_is_better=True, title="average precision"),
    "log_loss": Metric(prepare=scoring.log_loss, tasks=_CLASSES, greater_is_better=False, default_for="multiclass", title="log loss"),
    "brier": Metric(prepare=scoring.brier, tasks=_CLASSES, greater_is_better=False, title="Brier score"),
    "accuracy": Metric(prepare=scoring.accuracy, tasks=_CLASSES, greater_is_better=True, title="accuracy"),
    "balanced_accuracy": Metric(prepare=scoring.balanced_accuracy, tasks=_CLASSES, greater_is_better=True, title="balanced accuracy"),
    "precision": Metric(prepare=scoring.precision, tasks=_BINARY, greater_is_better=True, title="precision"),
    "recall": Metric(prepare=scoring.recall, tasks=_BINARY, greater_is_better=True, title="recall"),
    "f1": Metric(prepare=scoring.f1, tasks=_CLASSES, greater_is_better=True, title="F1"),
    "ece": Metric(prepare=scoring.ece, tasks=_CLASSES, greater_is_better=False, title="calibration error"),
    "ks": Metric(prepare=scoring.ks, tasks=_BINARY, greater_is_better=True, title="Kolmogorov-Smirnov"),
    "rmse": Metric(prepare=scoring.rmse, tasks=_VALUES, greater_is_better=False, default_for="regression", title="RMSE"),
    "mae": Metric(prepare=scoring.mae, tasks=_VALUES, greater_is_better=False, title="MAE"),
    "r2": Metric(prepare=scoring.r2, tasks=_VALUES, greater_is_better=True, title="R2"),
    "mape": Metric(prepare=scoring.mape, tasks=_VALUES, greater_is_better=False, title="MAPE"),
    "median_ae": Metric(prepare=scoring.median_error, tasks=_VALUES, greater_is_better=False, title="median absolute error"),
}
"""By name. For multiclass, roc_auc and f1 are plain means over the classes (one-vs-rest), ece is of the most probable class."""


def evaluate(task: Task, y: Array, p: Array, *, weight: Array | None = None, metrics: Sequence[str] | None = None) -> dict[str, float]:
    """The value of each metric, all of the task's unless `metrics` names some.

    Raises:
        DataError: If there are no rows, shapes differ, or a value cannot be judged (NaN, a class out of range, no probability).
        NotFound: If a metric is not known.
        ConfigError: If a metric does not judge `task`.

    Example:
        >>> evaluate("regression", np.array([1.0, 2.0]), np.array([1.0, 4.0]), metrics=["mae", "rmse"])
        {'mae': 1.0, 'rmse': 1.4142135623730951}
    """
    chosen = metrics_of(task) if metrics is None else {name: metric_of(name, task) for name in metrics}
    y, p, weight_N = checked(task, y, p, weight)
    return {name: float(metric.prepare(y, p)(weight_N[None, :])[0]) for name, metric in chosen.items()}


def metrics_of(task: Task) -> dict[str, Metric]:
    """Every metric that judges `task`, in the order of the table."""
    return {name: metric for name, metric in METRICS.items() if task in metric.tasks}


def metric_of(name: str, task: Task | None = None) -> Metric:
    """The metric called `name`.

    Raises:
        NotFound: If there is none.
        ConfigError: If it does not judge `task`.
    """
    if name not in METRICS:
        raise NotFound("metric", name, METRICS if task is None else metrics_of(task))
    metric = METRICS[name]
    if task is not None and task not in metric.tasks:
        known = ", ".join(metrics_of(task))
        raise ConfigError(f"metric {name!r} must judge a {task} task, got one for {' and '.join(metric.tasks)}", hint=f"known: {known}")
    return metric


def default_metric(task: Task) -> str:
    """The name of the metric that judges `task` unless told otherwise."""
    for name, metric in METRICS.items():
        if metric.default_for == task:
            return name
    raise ConfigError(f"task must be binary, multiclass or regression to have metrics, got {task!r}")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the bounds that it stays within under resampling of the rows."""

    low: float
    high: float
    point: float


def interval(
    metric: str,
    y: Array,
    p: Array,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
    weight: Array | None = None,
    task: Task | None = None,
) -> Interval:
    """The metric and its two-sided bootstrap percentile interval (Efron 1979).

    Rows are drawn with replacement, each carrying its weight. Resamples that leave the metric undefined are left out;
    where all do, the bounds are NaN. Memory stays near 50 MB up to a million rows.

    Args:
        resamples: How many times the rows are drawn, >= 1.
        level: Share of resamples inside the interval, in (0, 1).
        task: Told from the metric and the shape of `p` when absent: two columns are binary.

    Raises:
        DataError, NotFound, ConfigError: As `evaluate`.
    """
    found = intervals({metric: resamples}, y, p, seed=seed, level=level, weight=weight, task=task)
    return found[metric]


def intervals(
    resamples: Mapping[str, int],
    y: Array,
    p: Array,
    *,
    seed: int,
    level: float = 0.95,
    weight: Array | None = None,
    task: Task | None = None,
) -> dict[str, Interval]:
    """`interval` of several metrics, each as if it were alone: they share the draws of the rows, which is most of the work.

    Args:
        resamples: How many times the rows are drawn for each metric, by name; one with fewer looks at the first of them.

    Raises:
        DataError, NotFound, ConfigError: As `evaluate`.
    """
    chosen = {name: metric_of(name, task) for name in resamples}
    if not all(number >= 1 for number in resamples.values()):
        raise ConfigError(f"resamples must be at least 1, got {min(resamples.values())}")
    scorers, weight_N = {}, np.empty(0)
    for name, metric in chosen.items():
        checked_y, checked_p, weight_N = checked(task or _task_of(metric, p), y, p, weight)
        scorers[name] = metric.prepare(checked_y, checked_p)
    values: dict[str, list[Floats]] = {name: [] for name in chosen}
    drawn = 0
    for block_RN in _resampled(weight_N, seed=seed, resamples=max(resamples.values(), default=0)):
        for name, wanted in resamples.items():
            if wanted > drawn:
                values[name].append(scorers[name](block_RN[: wanted - drawn]))
        drawn += len(block_RN)
    made = {}
    for name, scorer in scorers.items():
        low, high = _quantiles(np.concatenate(values[name]), ((1 - level) / 2, (1 + level) / 2))
        made[name] = Interval(low=low, high=high, point=float(scorer(weight_N[None, :])[0]))
    return made


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better one model is than another on the same rows: > 0 is better, in the metric's unit, whichever its direction.

    `lower` and `upper` are one-sided bounds, each at the level that was asked for.
    """

    estimate: float
    lower: float
    upper: float

    @property
    def drop(self) -> float:
        """The largest loss of quality that the rows leave credible: what `quality.max_drop` limits."""
        return -self.lower


def paired_difference(
    metric: str,
    y: Array,
    p_a: Array,
    p_b: Array,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
    weight: Array | None = None,
    task: Task | None = None,
) -> Difference:
    """How much better `p_b` is than `p_a`, with one-sided bootstrap bounds.

    Both are judged on the same resamples, so that what the two share cancels. `p_b` keeps a promise to lose at most d
    where `drop <= d`.

    Args:
        p_a: Predictions of the model compared with (the champion, the uncompressed one).
        p_b: Predictions of the model under test, same shape.
        resamples, level, task: As `interval`; each bound holds at `level` on its own.

    Raises:
        DataError, NotFound, ConfigError: As `evaluate`.
    """
    sign = 1.0 if metric_of(metric, task).greater_is_better else -1.0
    (point_a, point_b), (a, b) = _bootstrap(metric, y, [p_a, p_b], seed=seed, resamples=resamples, weight=weight, task=task)
    lower, upper = _quantiles(sign * (b - a), (1 - level, level))
    return Difference(estimate=sign * (point_b - point_a), lower=lower, upper=upper)


def _bootstrap(
    metric: str, y: Array, predictions: list[Array], *, seed: int, resamples: int, weight: Array | None, task: Task | None
) -> tuple[list[float], list[Floats]]:
    """The metric of each array of predictions: on the rows, and on every resample of them."""
    chosen = metric_of(metric, task)
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, got {resamples}")
    rows = [checked(task or _task_of(chosen, p), y, p, weight) for p in predictions]
    scorers = [chosen.prepare(checked_y, checked_p) for checked_y, checked_p, _ in rows]
    weight_N = rows[0][2]
    points = [float(scorer(weight_N[None, :])[0]) for scorer in scorers]
    blocks = [[scorer(block_RN) for scorer in scorers] for block_RN in _resampled(weight_N, seed=seed, resamples=resamples)]
    return points, [np.concatenate(values) for values in zip(*blocks, strict=True)]


def _task_of(metric: Metric, p: Array) -> Task:
    if metric.tasks == _VALUES:
        return "regression"
    return "multiclass" if np.ndim(p) == 2 and np.shape(p)[1] > 2 else "binary"


def _resampled(weight_N: Floats, *, seed: int, resamples: int) -> Iterator[Floats]:
    """Weights of the rows in each resample: how often each was drawn times its weight, some resamples at a time."""
    rng = np.random.default_rng(seed)
    rows = len(weight_N)
    step = max(1, _CELLS // rows)
    for start in range(0, resamples, step):
        block_RN = np.empty((min(step, resamples - start), rows))
        for drawn_N in block_RN:
            drawn_N[:] = np.bincount(rng.integers(0, rows, rows), minlength=rows)
        block_RN *= weight_N
        yield block_RN


def _quantiles(values: Floats, shares: Sequence[float]) -> list[float]:
    defined = values[~np.isnan(values)]
    return [float(value) for value in np.quantile(defined, shares)] if len(defined) else [float("nan")] * len(shares)


def checked(task: Task, y: Array, p: Array, weight: Array | None = None) -> tuple[Array, Array, Floats]:
    """`y`, `p` and weights as scorers take them: class indices int64, p (N,) or for multiclass (N, K), weights 1 when absent.

    Raises:
        DataError: If shapes differ, there are no rows, a number is not finite or a class is out of range.
    """
    y, p = np.asarray(y), np.asarray(p)
    rows = len(y) if y.ndim == 1 else 0
    if rows == 0:
        raise DataError(f"y must hold one value for each of at least one row, got shape {y.shape}")
    if task != "multiclass" and p.ndim == 2 and p.shape[1] == (2 if task == "binary" else 1):
        p = p[:, -1]
    if p.ndim != (2 if task == "multiclass" else 1) or len(p) != rows:
        wanted = f"({rows}, classes)" if task == "multiclass" else f"({rows},)"
        raise DataError(f"p must have shape {wanted} for a {task} task, got {p.shape}")
    weight_N = np.ones(rows) if weight is None else np.asarray(weight, dtype=np.float64)
    if weight_N.shape != (rows,) or not np.isfinite(weight_N).all() or (weight_N < 0).any() or not weight_N.sum() > 0:
        raise DataError(f"weight must be {rows} finite numbers >= 0, not all 0, got shape {weight_N.shape}")
    y = y.astype(np.float64)
    p = p if p.dtype == np.float32 and task != "regression" else p.astype(np.float64)
    for name, values in (("y", y), ("p", p)):
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise DataError(f"{name} must be finite, got {bad} NaN or infinite of {values.size}")
    return (y if task == "regression" else _class_indices(y, p.shape[1] if p.ndim == 2 else 2)), p, weight_N


def _class_indices(y: Array, num_classes: int) -> Array:
    labels = y.astype(np.int64)
    if (labels != y).any() or labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"y must be class indices in 0..{num_classes - 1}, got {float(y.min()):g} to {float(y.max()):g}")
    return labels
