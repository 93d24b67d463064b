"""How good predictions are: the field's metrics, their bootstrap intervals, and the paired difference of two models.

A metric is prepared once for its rows (labels compared, scores sorted) and then read under any number of weightings of
those rows. A single value, a bootstrap of a thousand resamples and a paired difference are the same code with one
weighting or many.

Shapes, everywhere here: `y` is (N,): the class index for classification (binary: 0 or 1), the value for regression.
`p` is (N,) for regression; for binary (N,), the probability of class 1, or (N, 2); for multiclass (N, K).
`weight` is (N,), >= 0. A metric that its rows leave undefined (ROC AUC of one class) is NaN; rows that no metric could
take (none at all, NaN, a probability of 3) are a DataError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tidemill.core.errors import ConfigError, DataError, NotFound

if TYPE_CHECKING:
    from tidemill.core.project import Task

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Scorer = Callable[[Floats], Floats]
"""From weightings of the rows, shape (R, N), to a value for each, shape (R,)."""

ECE_BINS = 15
_CELLS = 1 << 20  # resampled weights held at once


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to judge predictions."""

    prepare: Callable[[Array, Array], Scorer]
    """From checked `y` and `p` to the scorer of those rows."""
    tasks: tuple[str, ...]
    """Tasks that it judges."""
    greater_is_better: bool
    """Whether more is better."""
    default_for: tuple[str, ...] = ()
    """Tasks that are judged by it unless told otherwise."""
    title: str = ""
    """Its name for people."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the bounds that it stays within under resampling of the rows."""

    low: float
    high: float
    point: float


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
    y, p, weight_N = _checked(task, y, p, weight)
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
        raise ConfigError(f"metric {name!r} must judge a {task} task, got one for {' and '.join(metric.tasks)}", hint=_known(task))
    return metric


def default_metric(task: Task) -> str:
    """The metric that judges `task` unless told otherwise."""
    for name, metric in METRICS.items():
        if task in metric.default_for:
            return name
    raise ConfigError(f"task must be binary, multiclass or regression to have metrics, got {task!r}")


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
    where all do, the bounds are NaN. Memory stays under about 50 MB up to a million rows.

    Args:
        resamples: How many times the rows are drawn, >= 1.
        level: Share of resamples inside the interval, in (0, 1).
        task: Told from the metric and the shape of `p` when absent: two columns are binary.

    Raises:
        DataError, NotFound, ConfigError: As `evaluate`.
    """
    (point,), (values,) = _bootstrap(metric, y, [p], seed=seed, resamples=resamples, weight=weight, task=task)
    low, high = _quantiles(values, ((1 - level) / 2, (1 + level) / 2))
    return Interval(low=low, high=high, point=point)


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
    scorers = []
    for p in predictions:
        checked_y, checked_p, weight_N = _checked(task or _task_of(chosen, p), y, p, weight)
        scorers.append(chosen.prepare(checked_y, checked_p))
    points = [float(scorer(weight_N[None, :])[0]) for scorer in scorers]
    blocks = [[scorer(block_RN) for scorer in scorers] for block_RN in _resampled(weight_N, seed=seed, resamples=resamples)]
    return points, [np.concatenate(values) for values in zip(*blocks, strict=True)]


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


# ---- what may be judged ----


def _task_of(metric: Metric, p: Array) -> Task:
    if "regression" in metric.tasks:
        return "regression"
    return "multiclass" if np.ndim(p) == 2 and np.shape(p)[1] > 2 else "binary"


def _checked(task: Task, y: Array, p: Array, weight: Array | None) -> tuple[Array, Array, Floats]:
    """`y`, `p` and weights in the shapes that metrics take: p (N,), or (N, K) for multiclass."""
    y, p = np.asarray(y), np.asarray(p)
    rows = len(y) if y.ndim else 0
    if rows == 0 or y.ndim != 1:
        raise DataError(f"y must hold one value for each of at least one row, got shape {y.shape}")
    wide = {"binary": 2, "regression": 1}.get(task)
    if wide is not None and p.ndim == 2 and p.shape[1] == wide:
        p = p[:, -1]
    if p.ndim != (2 if task == "multiclass" else 1) or len(p) != rows:
        wanted = f"({rows}, classes)" if task == "multiclass" else f"({rows},)"
        raise DataError(f"p must have shape {wanted} for a {task} task, got {p.shape}")
    weight_N = np.ones(rows) if weight is None else np.asarray(weight, dtype=np.float64)
    if weight_N.shape != (rows,) or not np.isfinite(weight_N).all() or (weight_N < 0).any() or not weight_N.sum() > 0:
        raise DataError(f"weight must be {rows} finite numbers >= 0, not all 0, got shape {weight_N.shape}")
    p = p if p.dtype == np.float32 else p.astype(np.float64)
    y = y.astype(np.float64)
    for name, values in (("y", y), ("p", p)):
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise DataError(f"{name} must be finite, got {bad} NaN or infinite of {values.size}")
    if task == "regression":
        return y, p.astype(np.float64), weight_N
    num_classes = p.shape[1] if p.ndim == 2 else 2
    labels = y.astype(np.int64)
    if (labels != y).any() or labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"y must be class indices in 0..{num_classes - 1}, got {float(y.min()):g} to {float(y.max()):g}")
    return labels, p, weight_N


def _probabilities(p: Array) -> Array:
    if p.min() < 0 or p.max() > 1:
        raise DataError(f"p must be probabilities in 0..1 for this metric, got {float(p.min()):g} to {float(p.max()):g}")
    return p


def _known(task: Task) -> str:
    return f"known for {task}: {', '.join(metrics_of(task))}"


# ---- metrics that are a function of weighted sums over the rows ----


def _of_sums(terms: Callable[[Array, Array], Floats], finish: Callable[[Floats], Floats]) -> Callable[[Array, Array], Scorer]:
    """A metric computed from the weighted sums of its rows' terms, shape (N, S)."""

    def prepare(y: Array, p: Array) -> Scorer:
        terms_NS = terms(y, p)
        return lambda weight_RN: finish(weight_RN @ terms_NS)

    return prepare


def _mean_of(term: Callable[[Array, Array], Floats]) -> Callable[[Array, Array], Scorer]:
    """A metric that is the weighted mean of a term over the rows; a NaN term leaves its row out."""

    def terms(y: Array, p: Array) -> Floats:
        term_N = term(y, p).astype(np.float64)
        return np.column_stack([np.nan_to_num(term_N), ~np.isnan(term_N)])

    return _of_sums(terms, lambda sums_RS: _ratio(sums_RS[:, 0], sums_RS[:, 1]))


def predicted_class(p: Array) -> npt.NDArray[np.int64]:
    """The most probable class; the lower one where two are equal, so binary class 1 needs more than 0.5."""
    return np.argmax(p, axis=1) if p.ndim == 2 else (p > 0.5).astype(np.int64)


def _correct(y: Array, p: Array) -> Floats:
    return (predicted_class(p) == y).astype(np.float64)


def _log_loss(y: Array, p: Array) -> Floats:
    """Minus the log of the true class's probability, clipped to the resolution of its type."""
    p = _probabilities(p)
    true_N = p[np.arange(len(y)), y] if p.ndim == 2 else np.where(y == 1, p, 1 - p)
    epsilon = np.finfo(p.dtype).eps
    loss: Floats = -np.log(np.clip(true_N, epsilon, 1 - epsilon).astype(np.float64))
    return loss


def _brier(y: Array, p: Array) -> Floats:
    """Squared distance of the probabilities from the truth; summed over classes for multiclass (Brier 1950)."""
    p = _probabilities(p).astype(np.float64)
    if p.ndim == 1:
        return np.square(p - y)
    return np.square(p - np.eye(p.shape[1])[y]).sum(axis=1)


def _calibration_gaps(y: Array, p: Array) -> Floats:
    """Observed minus predicted, in the column of its bin (equal width); and 1."""
    confidence_N, outcome_N = confidence(y, _probabilities(p))
    terms_NS = np.zeros((len(y), ECE_BINS + 1))
    terms_NS[np.arange(len(y)), np.minimum((confidence_N * ECE_BINS).astype(np.int64), ECE_BINS - 1)] = outcome_N - confidence_N
    terms_NS[:, -1] = 1
    return terms_NS


def confidence(y: Array, p: Array) -> tuple[Floats, Floats]:
    """What was claimed and whether it held: of class 1 for binary, of the most probable class for multiclass; each (N,)."""
    if p.ndim == 1:
        return p.astype(np.float64), y.astype(np.float64)
    return p.max(axis=1).astype(np.float64), _correct(y, p)


def _class_sums(y: Array, p: Array) -> Floats:
    """For each class, whether the row is a hit, predicted, and actual; shape (N, 3K)."""
    predicted_N = predicted_class(p)
    classes = np.arange(p.shape[1] if p.ndim == 2 else 2)
    predicted_NK, actual_NK = predicted_N[:, None] == classes, y[:, None] == classes
    return np.concatenate([predicted_NK & actual_NK, predicted_NK, actual_NK], axis=1).astype(np.float64)


def _of_classes(finish: Callable[[Floats, Floats, Floats], Floats]) -> Callable[[Array, Array], Scorer]:
    """A metric computed from hits, predicted and actual weight of each class, each (R, K)."""
    return _of_sums(_class_sums, lambda sums_RS: finish(*np.split(sums_RS, 3, axis=1)))


def _f1(hits_RK: Floats, predicted_RK: Floats, actual_RK: Floats) -> Floats:
    """Of class 1 for binary; for multiclass the plain mean over the classes that are present or predicted."""
    f1_RK = _ratio(2 * hits_RK, predicted_RK + actual_RK)
    return f1_RK[:, 1] if f1_RK.shape[1] == 2 else _mean_defined(f1_RK)


def _squares(y: Array, p: Array) -> Floats:
    """What R2 is made of: squared residual, value and squared value (about the middle, for precision), and 1."""
    centred_N = y - y.mean()
    return np.column_stack([np.square(y - p), centred_N, np.square(centred_N), np.ones(len(y))])


def _r2(sums_RS: Floats) -> Floats:
    residual_R, value_R, square_R, weight_R = sums_RS.T
    spread_R = square_R - _ratio(np.square(value_R), weight_R)
    return 1 - _ratio(residual_R, np.where(spread_R > 1e-12 * square_R, spread_R, 0))


def _relative_error(y: Array, p: Array) -> Floats:
    return np.where(y == 0, np.nan, np.abs(y - p) / np.where(y == 0, 1, np.abs(y)))


def _rmse(y: Array, p: Array) -> Scorer:
    mean = _mean_of(lambda y, p: np.square(y - p))(y, p)
    return lambda weight_RN: np.sqrt(mean(weight_RN))


# ---- metrics of the order of the scores: sorted once, ties exact ----


def _roc_auc(y: Array, p: Array) -> Scorer:
    """Binary; for multiclass the plain mean of one-vs-rest over the classes that are present."""
    if p.ndim == 1:
        return _area(y == 1, p)
    areas = [_area(y == k, p[:, k]) for k in range(p.shape[1])]
    return lambda weight_RN: _mean_defined(np.stack([area(weight_RN) for area in areas], axis=1))


def _area(positive_N: Array, score_N: Array) -> Scorer:
    """Share of positive-negative pairs in the right order, a tie being half (Mann and Whitney 1947)."""
    order = np.argsort(score_N, kind="stable")
    negative, positive = order[~positive_N[order]], order[positive_N[order]]
    below = np.searchsorted(score_N[negative], score_N[positive], side="left")
    up_to = np.searchsorted(score_N[negative], score_N[positive], side="right")
    ties = bool((below != up_to).any())

    def score(weight_RN: Floats) -> Floats:
        before_R = np.zeros((len(weight_RN), len(negative) + 1))
        np.cumsum(weight_RN.take(negative, axis=1), axis=1, out=before_R[:, 1:])
        positive_RP = weight_RN.take(positive, axis=1)
        won_R = np.einsum("rp,rp->r", positive_RP, before_R.take(below, axis=1))
        if ties:
            won_R = (won_R + np.einsum("rp,rp->r", positive_RP, before_R.take(up_to, axis=1))) / 2
        return _ratio(won_R, positive_RP.sum(axis=1) * before_R[:, -1])

    return score


def _average_precision(y: Array, p: Array) -> Scorer:
    """Precision at each distinct threshold, weighted by the recall that it adds."""
    order = np.argsort(-p, kind="stable")
    positive_N = y[order] == 1
    last = np.searchsorted(-p[order], -p[order][positive_N], side="right") - 1

    def score(weight_RN: Floats) -> Floats:
        sorted_RN = weight_RN.take(order, axis=1)
        found_RN, taken_RN = np.cumsum(sorted_RN * positive_N, axis=1), np.cumsum(sorted_RN, axis=1)
        precision_RP = np.nan_to_num(_ratio(found_RN.take(last, axis=1), taken_RN.take(last, axis=1)))
        return _ratio((sorted_RN[:, positive_N] * precision_RP).sum(axis=1), found_RN[:, -1])

    return score


def _ks(y: Array, p: Array) -> Scorer:
    """Largest distance between the score distributions of the two classes."""
    order = np.argsort(p, kind="stable")
    positive_N = y[order] == 1
    ends = np.flatnonzero(np.append(np.diff(p[order]) != 0, True))

    def score(weight_RN: Floats) -> Floats:
        sorted_RN = weight_RN.take(order, axis=1)
        positive_RN, negative_RN = np.cumsum(sorted_RN * positive_N, axis=1), np.cumsum(sorted_RN * ~positive_N, axis=1)
        gap_RE = _ratio(positive_RN[:, ends], positive_RN[:, -1:]) - _ratio(negative_RN[:, ends], negative_RN[:, -1:])
        return np.abs(gap_RE).max(axis=1)

    return score


def _median_error(y: Array, p: Array) -> Scorer:
    """Weighted median of the absolute error; midway where half the weight lies on either side."""
    error_N = np.abs(y - p)
    order = np.argsort(error_N, kind="stable")

    def score(weight_RN: Floats) -> Floats:
        below_RN = np.cumsum(weight_RN.take(order, axis=1), axis=1)
        half_R1 = below_RN[:, -1:] / 2
        low_R, high_R = (below_RN < half_R1).sum(axis=1), (below_RN <= half_R1).sum(axis=1)
        return (error_N[order[low_R]] + error_N[order[high_R]]) / 2

    return score


def _ratio(above: Array, below: Array) -> Floats:
    """`above / below`, NaN where `below` is 0."""
    out = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    return np.divide(above, below, out=out, where=below != 0)


def _mean_defined(values_RK: Floats) -> Floats:
    """Mean of each row over what is not NaN; NaN where nothing is."""
    defined_RK = ~np.isnan(values_RK)
    return _ratio(np.where(defined_RK, values_RK, 0).sum(axis=1), defined_RK.sum(axis=1))


_ANY_CLASS = ("binary", "multiclass")

METRICS: dict[str, Metric] = {
    "roc_auc": Metric(prepare=_roc_auc, tasks=_ANY_CLASS, greater_is_better=True, default_for=("binary",), title="ROC AUC"),
    "average_precision": Metric(prepare=_average_precision, tasks=("binary",), greater_is_better=True, title="average precision"),
    "log_loss": Metric(
        prepare=_mean_of(_log_loss), tasks=_ANY_CLASS, greater_is_better=False, default_for=("multiclass",), title="log loss"
    ),
    "brier": Metric(prepare=_mean_of(_brier), tasks=_ANY_CLASS, greater_is_better=False, title="Brier score"),
    "accuracy": Metric(prepare=_mean_of(_correct), tasks=_ANY_CLASS, greater_is_better=True, title="accuracy"),
    "balanced_accuracy": Metric(
        prepare=_of_classes(lambda hits, predicted, actual: _mean_defined(_ratio(hits, actual))),
        tasks=_ANY_CLASS,
        greater_is_better=True,
        title="balanced accuracy",
    ),
    # Nothing predicted is 0, the model's doing; recall without positives is NaN, the data's.
    "precision": Metric(
        prepare=_of_classes(lambda hits, predicted, actual: np.nan_to_num(_ratio(hits, predicted)[:, 1])),
        tasks=("binary",),
        greater_is_better=True,
        title="precision",
    ),
    "recall": Metric(
        prepare=_of_classes(lambda hits, predicted, actual: _ratio(hits, actual)[:, 1]),
        tasks=("binary",),
        greater_is_better=True,
        title="recall",
    ),
    "f1": Metric(prepare=_of_classes(_f1), tasks=_ANY_CLASS, greater_is_better=True, title="F1"),
    # Share-weighted distance of observed from predicted over bins of equal width (Guo et al. 2017).
    "ece": Metric(
        prepare=_of_sums(_calibration_gaps, lambda sums: _ratio(np.abs(sums[:, :-1]).sum(axis=1), sums[:, -1])),
        tasks=_ANY_CLASS,
        greater_is_better=False,
        title="calibration error",
    ),
    "ks": Metric(prepare=_ks, tasks=("binary",), greater_is_better=True, title="Kolmogorov-Smirnov"),
    "rmse": Metric(prepare=_rmse, tasks=("regression",), greater_is_better=False, default_for=("regression",), title="RMSE"),
    "mae": Metric(prepare=_mean_of(lambda y, p: np.abs(y - p)), tasks=("regression",), greater_is_better=False, title="MAE"),
    "r2": Metric(prepare=_of_sums(_squares, _r2), tasks=("regression",), greater_is_better=True, title="R2"),
    # Rows whose true value is 0 have no relative error and are left out.
    "mape": Metric(prepare=_mean_of(_relative_error), tasks=("regression",), greater_is_better=False, title="MAPE"),
    "median_ae": Metric(prepare=_median_error, tasks=("regression",), greater_is_better=False, title="median absolute error"),
}
