"""A run's folders as the stages write them, small and whole, for the pages to be made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemill.core.artifact import Artifact, write_json, writing

Stages = dict[str, Artifact]
HARDWARE = {"cpu": "Intel Xeon", "cores": 2, "memory_gb": 25, "system": "Linux x86_64", "fingerprint": "Intel Xeon x2"}
AT = "2026-03-14T09:26:53.589Z"
RUN: dict[str, Any] = {
    "run": "20260314-092653-4f1c", "name": "flights", "version": 3, "promoted": True, "refused": None,
    "started": "2026-03-14T09:22:10.000Z", "ended": AT, "command": "tidemill run --profile",
    "stages": {
        "data": {"seconds": 5.31, "peak_mb": 912.4, "cached": False},
        "features": {"seconds": 0.0, "cached": True},
        "tune": {"seconds": 148.2, "peak_mb": 1410.0, "cached": False},
        "train": {"seconds": 21.7, "peak_mb": 1180.2, "cached": False, "cpu": [
            {"function": "update", "place": "xgboost/core.py:2246", "own_s": 17.2, "total_s": 17.4, "calls": 214},
            {"function": "<listcomp>", "place": "core/graph.py:117", "own_s": 0.8, "total_s": 0.9, "calls": 6},
        ]},
        "package": {"seconds": 11.4, "peak_mb": 650.0, "cached": False},
    },
    "environment": {"python": "3.11.2", "libraries": {"tidemill": "0.1.0", "numpy": "2.4.0", "onnxruntime": "1.31.0",
                                                      "xgboost-cpu": "3.2.0", "duckdb": "2.0.0", "optuna": "5.0.0"}, "hardware": HARDWARE},
}  # fmt: skip


@pytest.fixture
def binary(tmp_path: Path) -> Stages:
    """A whole binary run over flights."""
    return make(tmp_path)


@pytest.fixture
def stages_of(tmp_path: Path) -> Callable[..., Stages]:
    """`stages_of(task=..., text=...)`: a run with another task, or with `text` wherever data may put text."""
    return lambda **options: make(tmp_path, **options)


@pytest.fixture
def run() -> dict[str, Any]:
    """What the pipeline knows of a run, as `run.json` holds it."""
    return RUN


def make(folder: Path, *, task: str = "binary", text: str | None = None) -> Stages:
    """Every stage's artifact under `folder`."""
    rng = np.random.default_rng(7)
    stages: Stages = {}
    for name, fill in (("data", _data), ("features", _features), ("tune", _tune), ("train", _train), ("package", _package)):
        facts: dict[str, Any] = {}
        inputs = {stage: artifact.id for stage, artifact in stages.items() if stage != "tune" or name == "train"}
        with writing(folder / name, stage=name, inputs=inputs, facts=facts) as out:
            facts.update(fill(out, rng, task, text) or {})
        stages[name] = Artifact.open(folder / name)
    return stages


def _data(out: Path, rng: np.random.Generator, task: str, text: str | None) -> dict[str, Any]:
    numeric = {"distance": ("float64", 0.0), "dep_hour": ("int64", 0.0), "temp": ("float64", 0.004), "wind_gust": ("float64", 0.78),
               "plane_year": ("int64", 0.16), "visib": ("float64", 0.004)}  # fmt: skip
    columns: list[dict[str, Any]] = [
        {"name": "late", "type": "boolean", "rows": 336_776, "nulls": 0, "distinct": 2, "top": [{"value": False, "count": 258_000}, {"value": True, "count": 78_776}]},
        {"name": "time_hour", "type": "timestamp", "rows": 336_776, "nulls": 0, "distinct": 6936, "min": "2013-01-01T10:00:00Z", "max": "2014-01-01T04:00:00Z",
         "histogram": {"edges": list(range(13)), "counts": [int(c) for c in rng.integers(24_000, 31_000, 12)]}},
    ]  # fmt: skip
    for index, (name, (kind, nulls)) in enumerate(numeric.items()):
        counts, edges = np.histogram(rng.gamma(2 + index, 300, 20_000), 20)
        columns.append({
            "name": name, "type": kind, "rows": 336_776, "nulls": int(336_776 * nulls), "distinct": 214, "min": 17.0, "max": 4983.0, "mean": 1039.9,
            "std": 733.2, "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        })  # fmt: skip
    tops = {
        "carrier": ["UA", "B6", "EV"],
        "origin": ["EWR", "JFK", "LGA"],
        "dest": ["ORD", "ATL", "LAX"],
        text or "tailnum": [text or "N725MQ", "N722MQ"],
    }
    for name, values in tops.items():
        top = [{"value": value, "count": 58_665 - 9000 * i} for i, value in enumerate(values)]
        columns.append(
            {
                "name": name,
                "type": "string",
                "rows": 336_776,
                "nulls": 0 if name != "tailnum" else 2512,
                "distinct": len(values) * 5,
                "top": top,
            }
        )
    schema = [{"name": column["name"], "type": column["type"], "nullable": True} for column in columns]
    rows = {"train": 269_421, "valid": 33_677, "test": 33_678}
    classes = {"binary": [False, True], "multiclass": ["early", "on time", text or "late"]}.get(task)
    write_json(out / "schema.json", {"columns": schema, "target": "late", "task": task, "classes": classes, "rows": rows})
    write_json(out / "profile.json", {"columns": columns})
    write_json(out / "checks.json", [{"column": "distance", "rule": "min", "limit": 1, "failed": 0, "passed": True},
                                     {"column": text or "dest", "rule": "one of", "limit": 105, "failed": 3, "passed": False, "severity": "warn", "samples": [text or "XXX"]}])  # fmt: skip
    write_json(out / "leakage.json", [{"kind": "predicts_target", "column": text or "temp", "value": 0.974,
                                       "message": f"{text or 'temp'} alone reaches a ROC AUC of 0.974: is it known before departure?"}])  # fmt: skip
    return {}


def _features(out: Path, rng: np.random.Generator, task: str, text: str | None) -> dict[str, Any]:
    columns = {
        "distance": [{"op": "impute", "params": {"with": "median"}, "fitted": {"value": 872.0}}, {"op": "standardize", "params": {}, "fitted": {"mean": 1039.9, "std": 733.2}}],
        "temp": [{"op": "impute", "params": {}, "fitted": {"value": 57.2}}],
        "time_hour": [{"op": "date_parts", "params": {"parts": ["month", "weekday", "hour"]}, "fitted": {}}],
        "carrier": [{"op": "one_hot", "params": {"rare": 0.01}, "fitted": {"categories": [f"C{i}" for i in range(14)]}}],
        text or "tailnum": [{"op": "vocabulary", "params": {}, "fitted": {"terms": [text or "N1"] + [f"N{i}" for i in range(4000)]}}],
    }  # fmt: skip
    inputs = [{"name": name, "type": "string" if name in ("carrier", "tailnum", text) else "float64", "nullable": True} for name in columns]
    write_json(out / "features.json", {"inputs": inputs, "names": [f"f{i}" for i in range(47)], "columns": columns})
    return {"features": 47}


def _tune(out: Path, rng: np.random.Generator, task: str, text: str | None) -> dict[str, Any]:
    trials = []
    for number in range(24):
        depth, rate = int(rng.integers(3, 10)), float(10 ** rng.uniform(-2.4, -0.4))
        value = 0.708 - 0.004 * abs(depth - 6) ** 0.8 - 0.012 * abs(np.log10(rate) + 1.2) + rng.normal(0, 0.0012)
        state = "failed" if number == 11 else ("pruned" if value < 0.692 else "complete")
        params = {
            "model.max_depth": depth,
            "model.learning_rate": rate,
            "model.subsample": float(rng.uniform(0.5, 1)),
            "model.grow": str(rng.choice(["depth", "loss"])),
        }
        trials.append(
            {"number": number, "state": state, "params": params, "value": None if state == "failed" else float(value), "seconds": 6.2}
        )
    best = max((trial for trial in trials if trial["state"] == "complete"), key=lambda trial: trial["value"])
    write_json(out / "trials.json", trials)
    write_json(out / "best.json", best["params"])
    note = {
        "after": 12,
        "fixed": {"model.grow": "loss"},
        "ranges": {"model.learning_rate": [0.02, 0.16]},
        "said": "space was narrowed after 12 trials: grow fixed at loss; learning_rate to 0.02..0.16",
    }
    shares = {"model.max_depth": 0.52, "model.learning_rate": 0.41, "model.subsample": 0.06, "model.grow": 0.01}
    starts = [
        {"params": {"model.max_depth": 6}, "from": f"{text or 'bikes'}, distance 1.20"},
        {"params": {"model.max_depth": 4}, "from": "portfolio"},
    ]
    write_json(out / "search.json", {"workers": 2, "narrowed": note, "importance": shares, "starts": starts, "direction": "maximize"})
    return {"metric": "roc_auc", "direction": "maximize"}


def _train(out: Path, rng: np.random.Generator, task: str, text: str | None) -> dict[str, Any]:
    lines = [
        {
            "round": r,
            "train": {"logloss": 0.53 - 0.09 * (1 - np.exp(-r / 60))},
            "valid": {"logloss": 0.535 - 0.062 * (1 - np.exp(-r / 45)) + 1e-5 * r},
        }
        for r in range(240)
    ]
    (out / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    names = ["dep_hour", "month", "carrier=EV", "temp", "dest", text or "wind_speed", *(f"carrier={i}" for i in range(24))]
    write_json(out / "train.json", {
        "kind": "xgboost", "config": {"max_depth": 6, "learning_rate": 0.07, "params": {}}, "best_round": 176,
        "metrics": {"train": {"roc_auc": 0.742, "log_loss": 0.451}, "valid": {"roc_auc": 0.7071, "log_loss": 0.472}},
        "baseline": {"kind": "linear", "metrics": {"roc_auc": 0.6743, "log_loss": 0.489}},
        "importance": {name: float(500 * 0.82**i) for i, name in enumerate(names)},
    })  # fmt: skip
    return {}


def _package(out: Path, rng: np.random.Generator, task: str, text: str | None) -> dict[str, Any]:
    (out / "evidence").mkdir()
    promises = [
        {"name": "parity", "measure": "parity.max_difference", "limit": 1e-5, "relation": "<="},
        {"name": "better than trivial", "measure": "quality.gain_over_trivial", "limit": 0.0, "relation": ">"},
        {
            "binary": {"name": "quality min", "measure": "quality.value", "limit": 0.68, "relation": ">=", "metric": "roc_auc"},
            "multiclass": {"name": "quality min", "measure": "quality.value", "limit": 0.7, "relation": ">=", "metric": "accuracy"},
            "regression": {"name": "quality max", "measure": "quality.value", "limit": 28.0, "relation": "<=", "metric": "rmse"},
        }[task],
        {"name": "latency p99_ms", "measure": "latency.p99_ms", "limit": 5.0, "relation": "<="},
        {"name": "size max_mb", "measure": "size.mb", "limit": 20.0, "relation": "<="},
    ]  # fmt: skip
    write_json(out / "contract.json", {"promises": promises})
    write_json(out / "tidemill.json", {"format": 1, "name": text or "flights", "task": task, "identity": "3f9c2a71be04" + "0" * 52})
    write_json(
        out / "evidence" / "parity.json",
        {"max_difference": 2.4e-7, "mean_difference": 3.1e-8, "limit": 1e-5, "rows": 33_678, "at": AT, "hardware": HARDWARE},
    )
    write_json(
        out / "evidence" / "latency.json",
        {"p50_ms": 0.0583, "p99_ms": 0.112, "rows_per_s": 214_000, "calls": 16_300, "hardware": HARDWARE, "at": AT},
    )
    write_json(out / "evidence" / "size.json", {"mb": 4.21})
    write_json(out / "evidence" / "quality.json", _quality(rng, task, text))
    return {}


def _quality(rng: np.random.Generator, task: str, text: str | None) -> dict[str, Any]:
    metric, point = {"binary": ("roc_auc", 0.7071), "multiclass": ("accuracy", 0.731), "regression": ("rmse", 24.1)}[task]
    slices = [
        {"column": column, "value": value, "rows": int(rng.integers(300, 12_000)), "metric": metric, "point": (at := float(point * (1 + rng.normal(0, 0.03)))), "low": at * 0.985, "high": at * 1.014}
        for column, values in {"carrier": ["EV", "UA", "B6", "DL", "AA", "MQ"], "origin": ["EWR", "JFK", text or "LGA"], "plane_year": [None], "peak": [True, False]}.items()
        for value in values
    ]  # fmt: skip
    shared = {"task": task, "rows": 33_678, "at": AT, "gain_over_trivial": 0.2071, "slices": slices}
    if task == "regression":
        actual = rng.gamma(3, 30, 900)
        predicted = actual * 0.8 + 18 + rng.normal(0, 22, 900)
        counts, edges = np.histogram(predicted - actual, 40)
        metrics = {
            "rmse": {"point": 24.1, "low": 23.2, "high": 25.3},
            "mae": {"point": 18.6, "low": 18.1, "high": 19.2},
            "r2": {"point": 0.782, "low": 0.771, "high": 0.793},
        }
        curves = {
            "scatter": np.column_stack([actual, predicted]).tolist(),
            "residuals": {"edges": edges.tolist(), "counts": counts.tolist()},
        }
        return {
            **shared,
            "metric": "rmse",
            "value": 24.1,
            "metrics": metrics,
            "baseline": {"rmse": 31.0, "mae": 24.0, "r2": 0.61},
            "trivial": {"rmse": 52.0, "mae": 40.0, "r2": 0.0},
            "curves": curves,
        }
    if task == "multiclass":
        metrics = {"accuracy": {"point": 0.731, "low": 0.726, "high": 0.736}, "log_loss": {"point": 0.66, "low": 0.65, "high": 0.67}}
        curves = {
            "confusion": {
                "classes": ["early", "on time", text or "late"],
                "matrix": [[9100, 2210, 140], [2400, 11_900, 900], [310, 3100, 3618]],
            }
        }
        return {
            **shared,
            "metric": "accuracy",
            "value": 0.731,
            "metrics": metrics,
            "baseline": {"accuracy": 0.69, "log_loss": 0.74},
            "trivial": {"accuracy": 0.45, "log_loss": 1.05},
            "curves": curves,
        }
    false = np.linspace(0, 1, 160)
    recall = np.linspace(0, 1, 160)
    predicted = np.linspace(0.04, 0.86, 12)
    curves = {
        "roc": np.column_stack([false, false**0.41]).round(4).tolist(),
        "pr": np.column_stack([recall, 0.2 + 0.68 * (1 - recall) ** 1.7]).round(4).tolist(),
        "calibration": [{"predicted": float(p), "observed": float(p + rng.normal(0, 0.012)), "count": int(9000 * np.exp(-3.2 * p))} for p in predicted],
    }  # fmt: skip
    metrics = {
        "roc_auc": {"point": 0.7071, "low": 0.7009, "high": 0.7132}, "average_precision": {"point": 0.4212, "low": 0.4101, "high": 0.432},
        "log_loss": {"point": 0.4721, "low": 0.4682, "high": 0.4762}, "brier": {"point": 0.1518, "low": 0.15, "high": 0.1536},
    }  # fmt: skip
    baseline = {"roc_auc": 0.6743, "average_precision": 0.3791, "log_loss": 0.4893, "brier": 0.158}
    trivial = {"roc_auc": 0.5, "average_precision": 0.2339, "log_loss": 0.5437, "brier": 0.1792}
    return {**shared, "metric": "roc_auc", "value": 0.7071, "metrics": metrics, "baseline": baseline, "trivial": trivial, "curves": curves}
