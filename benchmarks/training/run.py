"""Claim: training through Tidemill costs at most 5 % more than bare XGBoost on the same matrix.

Both fit the same trees on the same 260,000 x 26 rows (a tenth missing), quantisation included, in one process and in turn,
order reversed every other time. The ratio is taken within a repeat; processor time is compared beside wall time, since it
holds still on a busy machine. Checks that both answer the same. Usage: run.py [repeats] [rounds] [threads]
"""

from __future__ import annotations

import datetime as dt
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb

from tidemill.core.contract import hardware
from tidemill.models.base import MemoryMatrix
from tidemill.models.xgboost import XGBoost, XGBoostParams

HERE = Path(__file__).parent
ROWS, FEATURES = 260_000, 26


def main(repeats: int, rounds: int, threads: int) -> None:
    data = {"train": rows(ROWS, 0), "valid": rows(ROWS // 8, 1)}
    ways: dict[str, Callable[[], np.ndarray]] = {
        "bare": lambda: bare(data, rounds, threads),
        "tidemill": lambda: tidemill(data, rounds, threads),
    }
    taken: list[dict[str, dict[str, float]]] = []
    answers: dict[str, np.ndarray] = {}
    for repeat in range(repeats):
        found = {}
        for name in ways if repeat % 2 == 0 else reversed(ways):
            wall, cpu = time.perf_counter(), time.process_time()
            answers[name] = ways[name]()
            found[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        taken.append(found)
        print(f"repeat {repeat + 1}: " + ", ".join(f"{name} {value['wall_s']:.1f} s" for name, value in found.items()), flush=True)
    if not np.array_equal(answers["bare"], answers["tidemill"]):
        raise SystemExit("the two ways must fit the same trees")
    result: dict[str, Any] = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "rows": ROWS,
        "features": FEATURES,
        "rounds": rounds,
        "threads": threads,
        "ratio": {unit: summary([found["tidemill"][unit] / found["bare"][unit] for found in taken]) for unit in ("wall_s", "cpu_s")},
        "taken": taken,
        "hardware": hardware(),
        "versions": {"xgboost": xgb.__version__, "numpy": np.__version__},
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{result['at'][:10]}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["ratio"], indent=1))


def bare(data: dict[str, tuple[np.ndarray, np.ndarray]], rounds: int, threads: int) -> np.ndarray:
    train = xgb.QuantileDMatrix(*data["train"], nthread=threads)
    valid = xgb.QuantileDMatrix(*data["valid"], ref=train, nthread=threads)
    settings = {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "nthread": threads,
        "max_depth": 6,
        "eta": 0.1,
    }
    booster = xgb.train(settings, train, rounds, evals=[(valid, "valid")], early_stopping_rounds=rounds, verbose_eval=False)
    return np.asarray(booster.inplace_predict(data["valid"][0], iteration_range=(0, booster.best_iteration + 1)), np.float64)


def tidemill(data: dict[str, tuple[np.ndarray, np.ndarray]], rounds: int, threads: int) -> np.ndarray:
    params = XGBoostParams(num_rounds=rounds, early_stopping=rounds)
    train, valid = MemoryMatrix(*data["train"]), MemoryMatrix(*data["valid"])
    told: list[float] = []
    fitted = XGBoost().fit(
        train, valid, task="binary", num_classes=2, params=params, seed=0, threads=threads,
        on_round=lambda _, measured: bool(told.append(measured["valid_log_loss"])),
    )  # fmt: skip
    return np.asarray(fitted.predict(data["valid"][0])[:, 1])


def rows(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(num, FEATURES)).astype(np.float32)
    y_N = (x_NF[:, 0] * x_NF[:, 1] + x_NF[:, 2] + rng.normal(size=num) > 0.5).astype(np.float64)
    x_NF[rng.random(x_NF.shape) < 0.1] = np.nan
    return x_NF, y_N


def summary(ratios: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(ratios), 4), "min": round(min(ratios), 4), "max": round(max(ratios), 4)}


if __name__ == "__main__":
    given = [int(value) for value in sys.argv[1:]]
    defaults = [7, 100, os.cpu_count() or 1]
    main(*(given + defaults[len(given) :]))
