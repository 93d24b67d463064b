"""The train stage: the project's model and the linear baseline, each as a graph and in its library's own form."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.allocator import trim
from tidemill.core.artifact import Artifact, write_json
from tidemill.core.events import Events
from tidemill.core.metrics import default_metric, evaluate
from tidemill.core.project import Project, fingerprint, to_plain
from tidemill.models import base, native
from tidemill.models.base import Fitted, Matrix
from tidemill.models.calibration import Calibrated
from tidemill.models.interval import Ranged
from tidemill.models.linear import Linear, LinearParams
from tidemill.models.rows import every
from tidemill.train import generalization
from tidemill.train.matrix import FeatureMatrix
from tidemill.train.progressive import Grown, grow, metric_name
from tidemill.train.rows import RowMatrix
from tidemill.train.workload import Problem, Workload, growing, prepare_model

# Training rows, evenly spread, that the metrics of the training split are taken on; of texts and images fewer, for each takes long.
TRAIN_JUDGED = 500_000
TRAIN_JUDGED_ROWS = 2_000

# Progress is told at most this often, so that telling costs nothing beside a round.
_TELL_S = 0.2


def run(
    project: Project,
    data: Artifact,
    features: Artifact,
    out: Path,
    *,
    tuned: Mapping[str, Any] | None = None,
    work: Path | None = None,
    profile: Path | None = None,
    events: Events,
) -> dict[str, Any]:
    """Fill `out` with the fitted model, the baseline and what was measured on train and valid.

    Writes `model.onnx`, `native/`, `baseline/`, `train.json`, `history.jsonl`, `valid_predictions.parquet`; of a network also
    `steps.jsonl`.

    Args:
        tuned: Parameters that tuning found, such as {"model.max_depth": 6}; they go over the project's.
        work: Beginning of the name of the folder where a network's checkpoints lie while it is fitted, so that a stopped fit goes on;
            None keeps none.
        profile: Where a trace of some of a network's steps is written; None takes none.
    """
    prepare_model(project)
    project = replace(project, model=project.model.tuned(tuned or {}))
    workload = Workload.of(project, data, features, whole=True)
    params = prepare_model(project)[1]
    history: list[dict[str, float]] = []
    told: dict[str, Any] = {}
    checkpoints = None if work is None else work.with_name(f"{work.name}-{fingerprint(**_resumable(project, data, features))[:16]}")
    training = {"folder": checkpoints, "events": events, "profile": profile, "report": told}
    start = time.perf_counter()
    fitted, workload, grown, outside = _fit(project, workload, history, events, training)
    seconds = time.perf_counter() - start
    trim()  # the model is gone, and with it what it kept of the rows for another fit
    # A linear model has no use for texts and images as they are.
    baseline = workload.fit(Linear(), LinearParams()) if project.model.reads == "features" else None
    events.emit(
        "train.fitted", f"{project.model.kind} in {seconds:.1f} s", seconds=seconds, rounds=len(history), best_round=fitted.best_round
    )

    _save(fitted, out, kind=project.model.kind)
    if baseline is not None:
        _save(baseline, out / "baseline", kind="linear")
    with (out / "history.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in history)
    if "steps" in told:
        (out / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told["steps"]), encoding="utf-8")
    valid_p = base.predict(fitted, workload.valid) if workload.valid is not None else None
    metrics = _metrics(workload, fitted, valid_p)
    baseline_metrics = _metrics(workload, baseline) if baseline is not None else {}
    prior = trivial(workload)
    trivial_metrics = _trivial_metrics(workload, prior)
    judged = _generalization(workload, project.model.kind, params, fitted.best_round, metrics, trivial_metrics, valid_p)
    if judged is not None:
        faulty = judged["verdict"] in ("overfit", "useless") or judged["cut_off"]
        (events.warn if faulty else events.emit)("train.judged", judged["said"], verdict=judged["verdict"], cut_off=judged["cut_off"])
    report = {
        "kind": project.model.kind,
        "task": workload.problem.task,
        "config": {**to_plain(params), "calibrate": project.model.calibrate, "class_weight": to_plain(project.model.class_weight)},
        "tuned": dict(tuned or {}),
        "rounds": len(history),
        "best_round": fitted.best_round,
        "external_memory": outside,
        "metrics": metrics,
        "baseline": {"kind": "linear", "metrics": baseline_metrics, "importance": baseline.importance()} if baseline is not None else None,
        "trivial": {"prediction": prior, "metrics": {"valid": trivial_metrics}},
        "generalization": judged,
        "importance": fitted.importance(),
        "calibration": fitted.curve.to_json() if isinstance(fitted, Calibrated) else None,
        "interval": {"level": fitted.level, "widening": fitted.widening} if isinstance(fitted, Ranged) else None,
        **({"training": told["training"]} if "training" in told else {}),
        **(grown.to_json() if grown is not None else {}),
    }
    write_json(out / "train.json", report)
    if valid_p is not None and isinstance(workload.valid, (FeatureMatrix, RowMatrix)):
        _write_predictions(out / "valid_predictions.parquet", workload.problem, workload.valid, valid_p)
    metric = default_metric(workload.problem.task)
    return {
        "kind": project.model.kind,
        "rounds": len(history),
        "best_round": fitted.best_round,
        "metric": metric,
        "valid": metrics["valid"].get(metric),
        "baseline": baseline_metrics.get("valid", {}).get(metric),
        "verdict": judged["verdict"] if judged is not None else None,
        "rows": {"train": workload.train.num_rows, "valid": workload.valid.num_rows if workload.valid is not None else 0},
        "features": workload.train.num_features,
        **({"share": grown.curve[-1]["share"]} if grown is not None else {}),
        "fit_s": round(seconds, 3),
        **{key: told[key] for key in ("speed", "restarts", "profile") if told.get(key)},
    }


def _resumable(project: Project, data: Artifact, features: Artifact) -> dict[str, Any]:
    """What must be the same for a stopped fit to go on; ranks may be others, and so may what is saved how often."""
    train = {key: value for key, value in to_plain(project.train).items() if key not in ("parallel", "checkpoint", "fault", "tensorboard")}
    return {"train": train, "model": project.model, "seed": project.seed, "data": data.id, "features": features.id}


def _fit(
    project: Project, workload: Workload, history: list[dict[str, float]], events: Events, training: dict[str, Any]
) -> tuple[Fitted, Workload, Grown | None, bool]:
    """The model with calibration and interval, the workload that it was fitted on, how samples grew, and whether its rows lay on disk."""
    sampling, grown = growing(project), None
    if sampling is not None:
        training["folder"] = None  # each sample is another fit
    model, params = prepare_model(project, training=training)
    if sampling is None:
        plain = workload.fit(model, params, _recorder(history, events))
    else:

        def fit(sample: Workload) -> Fitted:
            history.clear()
            return sample.fit(model, params, _recorder(history, events))

        grown = grow(workload, sampling, fit, metric=metric_name(project, workload.problem.task), events=events)
        plain, workload = grown.fitted, grown.workload
    outside = bool(getattr(plain, "external_memory", False))
    if outside:
        events.emit("train.external_memory", f"{workload.train.num_rows} rows streamed from disk each round, more than engine.memory holds")
    return workload.ranged(workload.calibrated(plain, project.model), model, params, project.model), workload, grown, outside


def trivial(workload: Workload) -> list[float]:
    """What a model that looks at nothing answers: the training share of each class, or the mean target."""
    y_N, weight_N = workload.train.targets()
    if workload.problem.num_classes is None:
        return [float(np.average(y_N, weights=weight_N))]
    total_K = np.bincount(y_N.astype(np.int64), weights=weight_N, minlength=workload.problem.num_classes)
    return [float(share) for share in total_K / total_K.sum()]


def _recorder(history: list[dict[str, float]], events: Events) -> base.OnRound:
    told = [0.0]

    def on_round(number: int, measured: Mapping[str, float]) -> bool:
        history.append({"round": number, **measured})
        now = time.perf_counter()
        if now - told[0] >= _TELL_S:
            told[0] = now
            events.emit("train.round", f"round {number}", level="progress", round=number, **measured)
        return False

    return on_round


def _save(fitted: Fitted, folder: Path, *, kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(fitted.to_onnx().SerializeToString(deterministic=True))
    native.save(fitted, folder / "native", kind=kind)


def _metrics(workload: Workload, fitted: Fitted, valid_p: np.ndarray | None = None) -> dict[str, dict[str, float | None]]:
    def on(matrix: Matrix | None, p: np.ndarray | None = None) -> dict[str, float | None]:
        if matrix is None:
            return {}
        y_N, weight_N = matrix.targets()
        return _judged(workload.problem, y_N, base.predict(fitted, matrix) if p is None else p, weight_N)

    judged = TRAIN_JUDGED_ROWS if hasattr(workload.train, "reads") else TRAIN_JUDGED
    return {"train": on(every(workload.train, judged)), "valid": on(workload.valid, valid_p)}


def _generalization(
    workload: Workload,
    kind: str,
    params: Any,
    best_round: int | None,
    metrics: Mapping[str, Mapping[str, float | None]],
    trivial_metrics: Mapping[str, float | None],
    valid_p: np.ndarray | None,
) -> dict[str, Any] | None:
    """Whether the model knows its training rows better than new ones; None without validation rows."""
    if workload.valid is None or valid_p is None:
        return None
    y_N, weight_N = workload.valid.targets()
    return generalization.judge(
        workload.problem.task,
        kind=kind,
        **metrics,
        trivial=trivial_metrics,
        noise=generalization.noise(workload.problem.task, y_N, valid_p, weight_N, seed=workload.seed),
        best_round=best_round,
        # Only a fit that would have ended by itself can be cut off.
        num_rounds=params.num_rounds if getattr(params, "early_stopping", 0) and hasattr(params, "num_rounds") else None,
    )


def _trivial_metrics(workload: Workload, prior: list[float]) -> dict[str, float | None]:
    if workload.valid is None:
        return {}
    y_N, weight_N = workload.valid.targets()
    p = np.full(len(y_N), prior[0]) if workload.problem.num_classes is None else np.tile(prior, (len(y_N), 1))
    return _judged(workload.problem, y_N, p, weight_N)


def _judged(problem: Problem, y_N: np.ndarray, p: np.ndarray, weight_N: np.ndarray | None) -> dict[str, float | None]:
    """Every metric of the task; None where the rows leave it undefined, since JSON has no NaN."""
    values = evaluate(problem.task, y_N, p, weight=weight_N)
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _write_predictions(path: Path, problem: Problem, valid: FeatureMatrix | RowMatrix, p: np.ndarray) -> None:
    """Keys, `target` (class index or value), `weight`, and `probability` (of class 1), `probability_<k>` or `prediction`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    y_N, weight_N = valid.targets()
    columns: dict[str, Any] = {}
    if problem.keys:
        keys = pa.Table.from_batches(valid.rows(problem.keys))
        columns = {name: keys[name] for name in problem.keys}
    columns["target"] = y_N
    if weight_N is not None:
        columns["weight"] = weight_N
    if problem.task == "binary":
        columns["probability"] = p[:, 1]
    elif p.ndim == 2:
        columns |= {f"probability_{k}": p[:, k] for k in range(p.shape[1])}
    else:
        columns["prediction"] = p
    pq.write_table(pa.table(columns), path)
