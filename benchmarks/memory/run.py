"""Claim: every stage keeps to `engine.memory`, plus a constant, on tables ten times as large in memory.

For each budget a project with a join in `prepare`, a split by group and XGBoost with its rows on disk is run stage by stage, then batch
prediction, each a process of its own; the figure is the largest sum of proportional set sizes over its tree. `imports` is a process that
does nothing but load the libraries. Usage: run.py [--budgets 256MiB 512MiB 1GiB] [--times 10]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tidemill.core.contract import hardware
from tidemill.core.engine import memory_bytes
from tidemill.testing.memory import Peak, peak_pss, write_table

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "benchmarks"
STAGES = ("data", "features", "train", "package")
LIBRARIES = (
    "duckdb, narwhals, numpy, onnx, onnxruntime, pyarrow.parquet, sklearn.linear_model, xgboost, tidemill.pipeline, tidemill.predict.batch"
)
PREPARE = """
def prepare(rows, shops):
    return rows.join(shops, on="shop", how="left")
"""
PROJECT = """
name = "memory"
task = "binary"
[data]
source = {{ rows = "rows.parquet", shops = "shops.parquet" }}
prepare = "memory_prepare:prepare"
target = "bought"
keys = ["id"]
split = {{ by = "group", column = "shop" }}
[model]
kind = "xgboost"
num_rounds = 5
external_memory = true
[contract]
quality = {{ metric = "roc_auc", min = 0.4 }}
[engine]
memory = "{memory}"
threads = 2
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budgets", nargs="+", default=["256MiB", "512MiB", "1GiB"])
    parser.add_argument("--times", type=float, default=10)
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    imports = peak_pss([sys.executable, "-c", f"import {LIBRARIES}"]).bytes >> 20
    found: dict[str, dict[str, Any]] = {}
    for budget in options.budgets:
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            found[budget] = measured(Path(folder), budget, int(memory_bytes(budget) * options.times))
    beside = {
        budget: max(stage["peak_mib"] for stage in stages.values()) - (memory_bytes(budget) >> 20) for budget, stages in found.items()
    }
    result = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "imports_mib": imports,
        "most_beside_the_budget_mib": beside,
        "times": options.times,
        "budgets": found,
        "hardware": hardware(),
        "load": os.getloadavg(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("duckdb", "numpy", "onnxruntime", "pyarrow", "xgboost-cpu")},
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{result['at'][:10]}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"imports_mib": imports, "most_beside_the_budget_mib": beside}, indent=1))


def measured(folder: Path, budget: str, num_bytes: int) -> dict[str, Any]:
    rows = write_table(folder, num_bytes=num_bytes, notes=8)
    (folder / "memory_prepare.py").write_text(PREPARE, encoding="utf-8")
    (folder / "tidemill.toml").write_text(PROJECT.format(memory=budget), encoding="utf-8")
    (folder / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    found: dict[str, Any] = {}
    for stage in STAGES:
        peak = peak_pss([sys.executable, "-m", "tidemill.cli", "run", "--to", stage], cwd=folder, env=environment)
        found[stage] = facts(budget, stage, rows, peak)
    train = next(path.parent for path in folder.glob(".tidemill/**/train/part-00000.parquet"))
    command = ["predict", "memory", str(train), "answers.parquet", "--memory", budget, "--threads", "2"]
    peak = peak_pss([sys.executable, "-m", "tidemill.cli", *command], cwd=folder, env=environment)
    found["predict"] = facts(budget, "predict", rows, peak)
    return found


def facts(budget: str, stage: str, rows: int, peak: Peak) -> dict[str, Any]:
    if peak.code:
        raise SystemExit(peak.output)
    print(f"{budget}, {rows:,} rows, {stage}: {peak.bytes >> 20} MiB, {peak.seconds:.0f} s", flush=True)
    return {"peak_mib": peak.bytes >> 20, "seconds": round(peak.seconds, 1), "rows": rows}


if __name__ == "__main__":
    main()
