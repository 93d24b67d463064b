"""How good a package is on rows that nothing before it has seen, beside a linear baseline and a model that looks at nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core import curves
from tidemill.core.errors import ContractViolation, TidemillError
from tidemill.core.events import now
from tidemill.core.metrics import default_metric, evaluate, intervals, metric_of, metrics_of, paired_difference
from tidemill.core.package import Package, Predictor
from tidemill.packaging.rows import Rows, Target, every, places

if TYPE_CHECKING:
    import pyarrow as pa

RESAMPLES = 1_000
SLICED_ROWS = 200_000
SLICED_COLUMNS = 60
SCATTER_POINTS = 500
CURVES = 8
CONFUSED_CLASSES = 30

# Weighted rows that the bootstrap of one metric may look at; beyond, it draws fewer resamples.
_DRAWS = 100_000_000
# Metrics whose best constant is the median; of all others it is the mean.
_OF_MEDIAN = ("mae", "median_ae", "mape")


@dataclass(frozen=True, kw_only=True)
class Trivial:
    """What a model that looks at nothing answers: the share of each class, or the mean (or median) target."""

    shares: np.ndarray | None = None
    mean: float = 0.0
    median: float = 0.0

    @classmethod
    def of(cls, target: Target, rows: Rows) -> Trivial:
        y_N, weight_N = target.read(rows)
        if target.classes is None:
            return cls(mean=float(np.average(y_N, weights=weight_N)), median=float(np.median(y_N)))
        total_K = np.bincount(y_N.astype(np.int64), weights=weight_N, minlength=len(target.classes))
        return cls(shares=total_K / total_K.sum())

    def answer(self, metric: str, rows: int) -> np.ndarray:
        if self.shares is not None:
            return np.tile(self.shares, (rows, 1))
        return np.full(rows, self.median if metric in _OF_MEDIAN else self.mean)


def quality(
    task: Any,
    y_N: np.ndarray,
    p: np.ndarray,
    *,
    trivial: Trivial,
    classes: Sequence[Any] | None = None,
    metric: str | None = None,
    weight_N: np.ndarray | None = None,
    baseline: np.ndarray | None = None,
    rows: Rows | None = None,
    columns: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """The evidence of quality: every metric of the task with its interval, curves, slices, and what it is compared with.

    Args:
        p: The package's probabilities (N, K), or predictions (N,).
        trivial: Fitted on other rows than these, where there are others.
        metric: What the package is judged by; the task's default when absent.
        baseline: Answers of the baseline for the same rows.
        rows: The same rows, to slice by `columns`.

    Raises:
        NotFound, ConfigError: If the metric is not known, or judges another task.
        DataError: If the answers cannot be judged (NaN, for one).
    """
    metric = metric or default_metric(task)
    better = 1.0 if metric_of(metric, task).greater_is_better else -1.0
    # The one that decides gets the finest interval; all share the draws.
    draws = {name: resamples(len(y_N), decides=name == metric) for name in metrics_of(task)}
    bounds = intervals(draws, y_N, p, seed=seed, weight=weight_N, task=task)
    measured = {name: _plain({"point": one.point, "low": one.low, "high": one.high}) for name, one in bounds.items()}
    constant = {
        name: evaluate(task, y_N, trivial.answer(name, len(y_N)), weight=weight_N, metrics=[name])[name] for name in metrics_of(task)
    }
    point = measured[metric]["point"]
    made: dict[str, Any] = {
        "task": task,
        "rows": len(y_N),
        "metric": metric,
        "value": point,
        "low": measured[metric]["low"],
        "high": measured[metric]["high"],
        # Undefined (ROC AUC of rows of one class) is no gain.
        "gain_over_trivial": better * (point - constant[metric]) if point is not None else 0.0,
        "metrics": measured,
        "trivial": _plain(constant),
        "curves": _curves(task, y_N, p, classes, weight_N, seed),
        "slices": _slices(task, y_N, p, metric, weight_N, rows, columns, seed) if rows is not None else [],
        "at": now(),
    }
    if baseline is not None:
        made["baseline"] = _plain(evaluate(task, y_N, baseline, weight=weight_N))
    return made


def drop(
    task: Any,
    y_N: np.ndarray,
    p: np.ndarray,
    champion: Package,
    rows: Rows,
    *,
    classes: Sequence[Any] | None = None,
    metric: str | None = None,
    weight_N: np.ndarray | None = None,
    seed: int = 0,
    threads: int = 1,
) -> dict[str, Any]:
    """How much quality is lost against the champion on the same rows: the estimate and its one-sided 95 % bound.

    Both are losses in the metric's unit, > 0 where the champion is better, whichever the metric's direction. The
    champion answers through its own package.

    Raises:
        ContractViolation: If it cannot answer these rows, or answers with other classes: nothing can then be promised.
    """
    metric = metric or default_metric(task)
    if repr(champion.classes) != repr(list(classes) if classes is not None else None):  # as text: [False, True] is no [0, 1]
        raise ContractViolation(
            [f"quality max_drop: the champion must answer with the same classes, has {champion.classes}, these rows have {classes}"],
            hint="another question needs another name",
        )
    try:
        other = answered(champion, rows, threads=threads)
    except (TidemillError, KeyError, ValueError) as error:
        raise ContractViolation(
            [f"quality max_drop: the champion cannot answer the test rows: {error}"],
            hint="keep its columns in prepare, or promise quality.min instead of quality.max_drop",
        ) from error
    found = paired_difference(metric, y_N, other, p, seed=seed, resamples=resamples(len(y_N), decides=True), weight=weight_N, task=task)
    return {
        "metric": metric,
        "estimate": -found.estimate,
        "bound": found.drop,
        "champion": champion.identity,
        "champion_version": champion.version,
        "rows": len(y_N),
        "at": now(),
    }


def resamples(rows: int, *, decides: bool) -> int:
    """How often the bootstrap draws: most for the metric that decides, less where there are very many rows."""
    return min(RESAMPLES if decides else RESAMPLES // 4, max(100, _DRAWS // rows))


def answered(package: Package, rows: Rows, *, threads: int = 1) -> np.ndarray:
    """A package's probabilities (N, K), or predictions (N,), for all rows."""
    predictor = Predictor(package, threads=threads)
    parts = [predictor.arrow(batch) for batch in rows.batches(package.schema.names)]
    return np.concatenate([part.values for part in parts])


def _curves(
    task: Any, y_N: np.ndarray, p: np.ndarray, classes: Sequence[Any] | None, weight_N: np.ndarray | None, seed: int
) -> dict[str, Any]:
    made: dict[str, Any] = {"calibration": _calibration(task, y_N, p, weight_N)}
    if task == "regression":
        found = curves.residual_histogram(y_N, p, weight=weight_N)
        # Predicted less actual reads better: > 0 is too high.
        made["residuals"] = {"edges": [-edge for edge in reversed(found["edges"])], "counts": found["counts"][::-1], "mean": -found["mean"]}
        picked = np.sort(np.random.default_rng(seed).choice(len(y_N), min(SCATTER_POINTS, len(y_N)), replace=False))
        made["scatter"] = [[float(y), float(predicted)] for y, predicted in zip(y_N[picked], p[picked], strict=True)]
        del made["calibration"]
        return made
    classes = list(classes or range(p.shape[1]))
    if task == "binary":
        made |= _ranking(y_N, p[:, 1], weight_N)
    else:
        by_class = {str(label): _ranking((y_N == k).astype(np.int64), p[:, k], weight_N) for k, label in enumerate(classes[:CURVES])}
        for name in ("roc", "pr"):
            made[name] = {label: found[name] for label, found in by_class.items() if name in found}
    if len(classes) <= CONFUSED_CLASSES:
        made["confusion"] = {"classes": classes, "matrix": curves.confusion_matrix(task, y_N, p, weight=weight_N)}
    return made


def _ranking(y_N: np.ndarray, p_N: np.ndarray, weight_N: np.ndarray | None) -> dict[str, Any]:
    """ROC and precision-recall as points; empty where the rows hold one class."""
    if len(np.unique(y_N)) < 2:
        return {}
    roc = curves.roc_curve(y_N, p_N, weight=weight_N)
    pr = curves.precision_recall_curve(y_N, p_N, weight=weight_N)
    return {
        "roc": [list(point) for point in zip(roc["fpr"], roc["tpr"], strict=True)],
        "pr": [list(point) for point in zip(pr["recall"], pr["precision"], strict=True)],
    }


def _calibration(task: Any, y_N: np.ndarray, p: np.ndarray, weight_N: np.ndarray | None) -> list[dict[str, float]]:
    bins = curves.calibration_bins(task, y_N, p, weight=weight_N)
    return [{"predicted": one["predicted"], "observed": one["observed"], "count": one["rows"]} for one in bins]


def _slices(
    task: Any,
    y_N: np.ndarray,
    p: np.ndarray,
    metric: str,
    weight_N: np.ndarray | None,
    rows: Rows,
    columns: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    chosen = list(columns)[:SLICED_COLUMNS]
    if not chosen:
        return []
    picked = places(rows, SLICED_ROWS)
    arrays = ((name, _to_slice_by(every(rows, [name], SLICED_ROWS)[name])) for name in chosen)  # one at a time in memory
    weight = None if weight_N is None else weight_N[picked]
    least = max(30, len(picked) // 100)
    found = curves.slices(task, y_N[picked], p[picked], arrays, metric=metric, weight=weight, min_rows=least, limit=40, seed=seed)
    return [{"metric": metric, "point": entry.pop("score"), **entry} for entry in (_plain(asdict(one)) for one in found)]


def _to_slice_by(column: pa.ChunkedArray) -> np.ndarray:
    """Values as an array whose nulls are NaN, None or NaT."""
    import pyarrow as pa

    array = column.combine_chunks()
    if pa.types.is_timestamp(array.type):
        return np.asarray(array.cast(pa.timestamp("s"), safe=False).to_numpy(zero_copy_only=False))
    if pa.types.is_integer(array.type) and not array.null_count:
        return np.asarray(array.to_numpy(zero_copy_only=False))
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    if pa.types.is_string(array.type):  # rows of one text share it
        encoded = array.dictionary_encode()
        texts = np.array([*encoded.dictionary.to_pylist(), None], object)
        return np.asarray(texts[encoded.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)])
    return np.asarray(array.to_numpy(zero_copy_only=False)).astype(object)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with None for numbers that JSON does not have."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}
