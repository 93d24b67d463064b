"""Claim: every stage keeps to `engine.memory`, plus a constant and some bytes a row, on tables ten times as large in memory.

For each budget a project with a join in `prepare`, a split by group and XGBoost with its rows on disk is run stage by stage, then batch
prediction, each a process of its own; the figure is the largest sum of proportional set sizes over its tree. `imports` is a process that
does nothing but load the libraries. Several sizes of one budget tell what a row takes. Runs of one day are gathered in one file.

Usage: run.py [--budgets 256MiB 512MiB 1GiB] [--times 5 10] [--threads 1] [--notes 8]
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
threads = {threads}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budgets", nargs="+", default=["256MiB", "512MiB", "1GiB"])
    parser.add_argument("--times", type=float, nargs="+", default=[5, 10], help="size of the table in Arrow, in budgets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--notes", type=int, default=8, help="long texts a row: fewer rows of the same size with more")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    file = HERE / "results" / f"{dt.datetime.now(dt.UTC).date().isoformat()}.json"
    file.parent.mkdir(exist_ok=True)
    imports = peak_pss([sys.executable, "-c", f"import {LIBRARIES}"]).bytes >> 20
    for budget in options.budgets:
        for times in options.times:
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                run = {"budget": budget, "times": times, "threads": options.threads, "notes": options.notes, "load": os.getloadavg()}
                run |= measured(Path(folder), budget, int(memory_bytes(budget) * times), options)
            runs = [*(json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []), run]
            result = {
                "imports_mib": imports,
                "most_beside_the_budget_mib": max(worst(run) for run in runs),
                "bytes_a_row": bytes_a_row(runs),
                "runs": runs,
                "hardware": hardware(),
                "versions": {"python": platform.python_version()}
                | {name: version(name) for name in ("duckdb", "numpy", "onnxruntime", "pyarrow", "xgboost-cpu")},
            }
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(table(runs), flush=True)


def measured(folder: Path, budget: str, num_bytes: int, options: argparse.Namespace) -> dict[str, Any]:
    rows = write_table(folder, num_bytes=num_bytes, notes=options.notes)
    (folder / "memory_prepare.py").write_text(PREPARE, encoding="utf-8")
    (folder / "tidemill.toml").write_text(PROJECT.format(memory=budget, threads=options.threads), encoding="utf-8")
    (folder / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": str(options.threads)}
    stages: dict[str, Any] = {}
    for stage in STAGES:
        peak = peak_pss([sys.executable, "-m", "tidemill.cli", "run", "--to", stage], cwd=folder, env=environment)
        stages[stage] = facts(budget, stage, rows, peak)
    train = next(path.parent for path in folder.glob(".tidemill/**/train/part-00000.parquet"))
    command = ["predict", "memory", str(train), "answers.parquet", "--memory", budget, "--threads", str(options.threads)]
    peak = peak_pss([sys.executable, "-m", "tidemill.cli", *command], cwd=folder, env=environment)
    stages["predict"] = facts(budget, "predict", rows, peak)
    return {"rows": rows, "stages": stages}


def worst(run: dict[str, Any]) -> int:
    """How far the largest stage goes beyond the budget."""
    return max(stage["peak_mib"] for stage in run["stages"].values()) - (memory_bytes(run["budget"]) >> 20)


def bytes_a_row(runs: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How much the peak of each stage grows with the rows, for each budget that was run with several sizes of the same kind of rows."""
    found: dict[str, dict[str, int]] = {}
    for budget, notes in dict.fromkeys((run["budget"], run["notes"]) for run in runs):
        alike = sorted((run for run in runs if (run["budget"], run["notes"]) == (budget, notes)), key=lambda run: run["rows"])
        more = alike[-1]["rows"] - alike[0]["rows"]
        if more:
            last, first = alike[-1]["stages"], alike[0]["stages"]
            found[budget] = {stage: round((last[stage]["peak_mib"] - first[stage]["peak_mib"]) * 2**20 / more) for stage in last}
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """The peaks as they stand in the README."""
    stages = list(runs[-1]["stages"])
    lines = [f"| budget | rows | {' | '.join(stages)} | beyond the budget |", f"|{' --- |' * (len(stages) + 3)}"]
    for run in runs:
        peaks = [f"{run['stages'][stage]['peak_mib']} MiB, {run['stages'][stage]['seconds']:.0f} s" for stage in stages]
        lines.append(f"| {run['budget']} | {run['rows']:,} | {' | '.join(peaks)} | {worst(run)} MiB |")
    return "\n".join(lines)


def facts(budget: str, stage: str, rows: int, peak: Peak) -> dict[str, Any]:
    if peak.code:
        raise SystemExit(peak.output)
    print(f"{budget}, {rows:,} rows, {stage}: {peak.bytes >> 20} MiB, {peak.seconds:.0f} s", flush=True)
    return {"peak_mib": peak.bytes >> 20, "seconds": round(peak.seconds, 1)}


if __name__ == "__main__":
    main()
