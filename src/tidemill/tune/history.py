"""Earlier searches, and the tables that they were on: what won on the most similar ones is tried first.

A table is described by a few numbers that are cheap to get, three of them scores of quick models on some thousand rows
(landmarks, Pfahringer et al. 2000). The distance between two tables is Euclidean, each number divided by its standard
deviation over all tables known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.artifact import Artifact, write_json
from tidemill.core.metrics import evaluate
from tidemill.models import base
from tidemill.models.base import MemoryMatrix
from tidemill.models.linear import Linear
from tidemill.models.xgboost import XGBoost
from tidemill.train.workload import Workload
from tidemill.tune.space import Space
from tidemill.tune.trial import Trial, ranked

FORMAT = 1
PORTFOLIO = Path(__file__).with_name("portfolio.json")

# Tables whose winners are tried, how many of each, and how many trials the starts take at most.
NEAREST = 3
WINNERS = 2
MAX_STARTS = 8

# Trials of a search that are kept, the best ones; and how many tables a search learns from.
KEPT_TRIALS = 100
MOST_STUDIES = 16
# Rows that landmarks are taken on.
LANDMARK_ROWS = 4000


def describe(workload: Workload, data: Artifact) -> dict[str, float]:
    """The table in numbers: its size, its columns, its target, and how well three quick models do."""
    profile = data.read_json("profile.json") if (data.path / "profile.json").exists() else {}
    columns = [column for column in profile.get("columns", []) if column.get("name") != workload.problem.target]
    rows = sum(column.get("rows", 0) for column in columns)
    y_N, _ = workload.train.targets()
    counts_K = np.unique(y_N, return_counts=True)[1] if workload.problem.num_classes else np.ones(1)
    return {
        "log_rows": math.log10(max(1, workload.train.num_rows)),
        "log_features": math.log10(max(1, workload.train.num_features)),
        "log_columns": math.log10(max(1, len(columns))),
        "text_share": sum(column.get("type") == "string" for column in columns) / max(1, len(columns)),
        "missing_share": sum(column.get("nulls", 0) for column in columns) / max(1, rows),
        "log_classes": math.log10(len(counts_K)),
        "rarest_class": float(counts_K.min() / counts_K.sum()) if workload.problem.num_classes else 0.5,
        "is_regression": float(workload.problem.num_classes is None),
        **_landmarks(workload),
    }


def record(
    folder: Path | None,
    *,
    question: str,
    name: str,
    data: Artifact,
    task: str,
    metric: str,
    meta: Mapping[str, float],
    trials: Sequence[Trial],
    greater_is_better: bool,
) -> dict[str, Any]:
    """What is kept of a finished search; with a folder, as one file of it for later searches."""
    best = ranked(trials, greater_is_better=greater_is_better)[:KEPT_TRIALS]
    study = {
        "format": FORMAT, "name": name, "data": data.id, "task": task, "metric": metric, "greater_is_better": greater_is_better,
        "meta": dict(meta),
        "trials": [{"params": trial.params, "value": trial.value} for trial in best],
    }  # fmt: skip
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}-{question}.json", study)
    return study


def studies(folder: Path, *, without: str = "") -> list[dict[str, Any]]:
    """The searches that a folder keeps, by file name, but those on the data `without`; a file that is none is passed over."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            study = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(study, dict) and study.get("format") == FORMAT and study.get("data") != without:
            found.append(study)
    return found


def nearest(meta: Mapping[str, float], known: Sequence[Mapping[str, Any]]) -> list[tuple[float, Mapping[str, Any]]]:
    """Earlier searches with the distance of their tables, the nearest first."""
    if not known:
        return []
    names = sorted(meta)
    tables_TM = np.array([[float(study["meta"].get(name, meta[name])) for name in names] for study in known])
    mine_M = np.array([float(meta[name]) for name in names])
    spread_M = np.concatenate([tables_TM, mine_M[None, :]]).std(axis=0)
    distance_T = np.sqrt((((tables_TM - mine_M) / np.where(spread_M > 0, spread_M, 1.0)) ** 2).sum(axis=1))
    return [(float(distance_T[place]), known[place]) for place in np.argsort(distance_T, kind="stable")]


def starts(
    near: Sequence[tuple[float, Mapping[str, Any]]], space: Space, *, portfolio: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What to try first: the best of each near table, then the second best of each, then the portfolio; as the space allows."""
    candidates = [
        (study["trials"][place]["params"], f"{study['name']}, distance {distance:.2f}")
        for place in range(WINNERS)
        for distance, study in near[:NEAREST]
        if place < len(study["trials"])
    ]
    candidates += [(params, "portfolio") for params in portfolio]
    found: list[dict[str, Any]] = []
    for params, source in candidates:
        fitting = space.within(params)
        if fitting and len(found) < MAX_STARTS and all(fitting != start["params"] for start in found):
            found.append({"params": fitting, "from": source})
    return found


def portfolio(kinds: Sequence[str]) -> list[dict[str, Any]]:
    """The settings that come with this version, for the kinds that may be fitted, the most useful first."""
    found: dict[str, list[dict[str, Any]]] = json.loads(PORTFOLIO.read_text(encoding="utf-8"))
    return [{"model.kind": kind, **params} for kind in kinds for params in found.get(kind, [])]


def _landmarks(workload: Workload) -> dict[str, float]:
    """How well a linear model, stumps and trees do on some rows: R2, or how far the area under the curve is above chance."""
    x_NF, y_N = _some_rows(workload)
    cut = len(y_N) * 2 // 3
    train, valid = MemoryMatrix(x_NF[:cut], y_N[:cut]), MemoryMatrix(x_NF[cut:], y_N[cut:])
    task: Any = workload.problem.task
    classes = workload.problem.num_classes
    if cut < 10 or len(np.unique(y_N[:cut])) < 2:
        return {"linear": 0.0, "stumps": 0.0, "trees": 0.0}
    trees, kind = XGBoost.Params, XGBoost
    models: dict[str, tuple[Any, Any]] = {
        "linear": (Linear(), Linear.Params()),
        "stumps": (kind(), trees(max_depth=1, num_rounds=30, early_stopping=0, max_bin=64)),
        "trees": (kind(), trees(max_depth=6, num_rounds=30, early_stopping=0, max_bin=64)),
    }
    found = {}
    for name, (model, params) in models.items():
        fitted = model.fit(train, None, task=task, num_classes=classes, params=params, seed=0, threads=workload.threads)
        metric = "r2" if task == "regression" else "roc_auc"
        value = evaluate(task, valid.targets()[0], base.predict(fitted, valid), metrics=[metric])[metric]
        value = value if task == "regression" else 2 * value - 1
        found[name] = float(np.clip(value, 0.0, 1.0)) if math.isfinite(value) else 0.0
    return found


def _some_rows(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Training rows at even distances, in an order of their own so that a sorted table is cut fairly."""
    step = max(1, workload.train.num_rows // LANDMARK_ROWS)
    parts = []
    offset = 0
    for batch in workload.train.batches():
        chosen = np.arange(-offset % step, len(batch.y_N), step)
        parts.append((batch.x_NF[chosen], batch.y_N[chosen]))
        offset += len(batch.y_N)
    x_NF, y_N = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.random.default_rng(0).permutation(len(y_N))[:LANDMARK_ROWS]
    return x_NF[order], y_N[order]
