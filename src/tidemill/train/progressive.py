"""Growing samples: the model is fitted on more and more of the training rows until more rows stop paying.

Each sample holds the one before it. The last fit is the model; nothing is fitted again. A search before it works on the
first sample.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tidemill.core.errors import Unsupported
from tidemill.core.events import Events
from tidemill.core.metrics import default_metric, evaluate, metric_of
from tidemill.core.project import Project
from tidemill.models import base
from tidemill.models.base import Fitted, Matrix
from tidemill.models.rows import every
from tidemill.train.workload import Sampling, Workload, first_share

# Rows of a sample, evenly spread, that the training side of the curve is measured on.
JUDGED_ROWS = 100_000


@dataclass(frozen=True, kw_only=True)
class Grown:
    """The last fit, the rows that it is of, and how it came to those."""

    fitted: Fitted
    workload: Workload
    metric: str
    curve: list[dict[str, Any]]
    """For each fit `rows`, `share`, `train` and `valid` (the metric there, None where it is undefined) and `seconds`."""
    stopped: str
    """Why no larger sample was taken, in words."""

    def to_json(self) -> dict[str, Any]:
        return {"learning_curve": self.curve, "stopped": self.stopped, "curve_metric": self.metric}


def grow(whole: Workload, sampling: Sampling, fit: Callable[[Workload], Fitted], *, metric: str, events: Events) -> Grown:
    """Fits on growing samples until one improves `metric` on the validation rows by less than `sampling.gain`, or no rows are left.

    Args:
        whole: All rows.
        fit: From the rows of a sample to the model.

    Raises:
        Unsupported: If there are no validation rows to judge by.
    """
    if whole.valid is None:
        raise Unsupported("data.sample: progressive needs validation rows to judge by", hint="raise data.split.valid")
    curve: list[dict[str, Any]] = []
    share = first_share(sampling, whole.train.num_rows)
    while True:
        workload = whole.sampled(share)
        start = time.perf_counter()
        fitted = fit(workload)
        seconds = round(time.perf_counter() - start, 3)
        rows = workload.train.num_rows
        train, valid = (_judged(fitted, matrix, whole.problem.task, metric) for matrix in (every(workload.train, JUDGED_ROWS), whole.valid))
        curve.append({"rows": rows, "share": round(share, 6), "train": train, "valid": valid, "seconds": seconds})
        events.emit("train.sample", f"{rows:,} rows: {metric} {'undefined' if valid is None else f'{valid:.4f}'}", **curve[-1])
        gain = _gain(curve, metric)
        if gain is not None and gain < sampling.gain:
            stopped = (
                f"From {curve[-2]['rows']:,} to {rows:,} rows {metric} improved by {gain:.2%},"
                f" less than the {sampling.gain:.2%} that more rows must bring."
            )
            return Grown(fitted=fitted, workload=workload, metric=metric, curve=curve, stopped=stopped)
        if share >= 1:
            return Grown(fitted=fitted, workload=whole, metric=metric, curve=curve, stopped="All training rows are used.")
        share = min(1.0, share * sampling.growth)


def metric_name(project: Project, task: Any) -> str:
    """The metric that says whether more rows pay: the contract's, else the task's."""
    name = str(getattr(getattr(project.contract, "quality", None), "metric", None) or default_metric(task))
    metric_of(name, task)
    return name


def _judged(fitted: Fitted, matrix: Matrix, task: Any, metric: str) -> float | None:
    y_N, weight_N = matrix.targets()
    value = evaluate(task, y_N, base.predict(fitted, matrix), weight=weight_N, metrics=[metric])[metric]
    return value if math.isfinite(value) else None


def _gain(curve: list[dict[str, Any]], metric: str) -> float | None:
    """How much better the last fit is than the one before, relative to it; None where that cannot be told."""
    if len(curve) < 2 or curve[-1]["valid"] is None or not curve[-2]["valid"]:
        return None
    before, now = curve[-2]["valid"], curve[-1]["valid"]
    better = now - before if metric_of(metric).greater_is_better else before - now
    return float(better / abs(before))
