"""Claim: XGBoost on features four times as large as `engine.memory` trains to the same quality as in memory.

Click-like rows with 39 columns and a target. Both ways fit the same trees on the same rows through the stage `train`'s own workload, in a
process of its own each, in turn: `inside` with memory for everything, `outside` within the budget, so that features are computed in
each pass and XGBoost keeps its quantised rows on disk. Validation rows are others. Peak memory is that of the whole process tree.
Ends with an error where the two differ by more than 0.001 in ROC AUC, or XGBoost kept its rows where it should not have.

Usage: run.py [--repeats 2] [--rows 8000000] [--rounds 30] [--memory 300MiB] [--threads 2]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "benchmarks"
sys.path.append(str(HERE.parent / "transform"))

from clicks import FEATURES, FILE_ROWS, NUMBERS, TEXTS, artifact  # noqa: E402

from tidemill.core.artifact import Artifact  # noqa: E402
from tidemill.core.contract import hardware  # noqa: E402
from tidemill.core.engine import memory_bytes  # noqa: E402
from tidemill.core.events import Events  # noqa: E402
from tidemill.core.project import from_tree  # noqa: E402
from tidemill.features import stage  # noqa: E402
from tidemill.testing.memory import peak_pss  # noqa: E402

ENOUGH = "12GiB"
# Most by which the areas under the curve may differ.
SAME = 0.001
VALID_ROWS = FILE_ROWS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", help="budget; a quarter of the features by default")
    parser.add_argument("--way", choices=["inside", "outside"], help="run this way alone, here, and print what came of it")
    options = parser.parse_args()
    size = options.rows * (len(NUMBERS) + len(TEXTS)) * 4
    memory = options.memory or f"{size // 4}"
    data = split(options.rows)
    features = data.parent / f"{data.name}-features"
    if options.way:
        print(json.dumps(run(data, features, ENOUGH if options.way == "inside" else memory, options)))
        return
    features.mkdir(exist_ok=True)
    stage.run(project(data, ENOUGH, options), Artifact(data, {}), features, events=Events())
    found: dict[str, list[dict[str, float]]] = {"inside": [], "outside": []}
    for repeat in range(options.repeats):
        for way in found if repeat % 2 == 0 else reversed(found):
            command = [
                sys.executable,
                __file__,
                "--way",
                way,
                "--rows",
                str(options.rows),
                "--rounds",
                str(options.rounds),
                "--memory",
                memory,
                "--threads",
                str(options.threads),
            ]
            peak = peak_pss(command)
            if peak.code:
                raise SystemExit(peak.output)
            found[way].append({**json.loads(peak.output.splitlines()[-1]), "peak_mib": peak.bytes >> 20})
            print(way, found[way][-1], flush=True)
    result = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "time_ratio": spread([out["fit_s"] / inside["fit_s"] for out, inside in zip(found["outside"], found["inside"], strict=True)]),
        "roc_auc": {way: spread([run["roc_auc"] for run in runs], digits=5) for way, runs in found.items()},
        "peak_mib": {way: max(run["peak_mib"] for run in runs) for way, runs in found.items()},
        "rows": options.rows,
        "features_mib": size >> 20,
        "memory_mib": memory_bytes(memory) >> 20,
        "rounds": options.rounds,
        "threads": options.threads,
        "runs": found,
        "hardware": hardware(),
        "load": os.getloadavg(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("xgboost-cpu", "numpy", "onnxruntime", "pyarrow")},
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{result['at'][:10]}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("time_ratio", "roc_auc", "peak_mib", "memory_mib", "features_mib")}, indent=1))
    worst = max(abs(a["roc_auc"] - b["roc_auc"]) for a in found["inside"] for b in found["outside"])
    if worst > SAME or any(run["outside"] for run in found["inside"]) or not all(run["outside"] for run in found["outside"]):
        raise SystemExit(f"both ways must come to the same with rows in memory and on disk, ROC AUC differs by {worst:.5f}")


def run(data: Path, features: Path, memory: str, options: argparse.Namespace) -> dict[str, float]:
    from tidemill.core.metrics import evaluate
    from tidemill.models import base
    from tidemill.train.workload import Workload, prepare_model

    configured = project(data, memory, options)
    start = time.perf_counter()
    workload = Workload.of(configured, Artifact(data, {}), Artifact(features, {}))
    model, params = prepare_model(configured)
    fitted = workload.fit(model, params)
    seconds = time.perf_counter() - start
    assert workload.valid is not None
    y_N, _ = workload.valid.targets()
    measured = evaluate("binary", y_N, base.predict(fitted, workload.valid))
    return {"fit_s": round(seconds, 1), "outside": float(getattr(fitted, "external_memory", False)), **measured}


def project(data: Path, memory: str, options: argparse.Namespace) -> Any:
    return from_tree({
        "name": "clicks",
        "task": "binary",
        "data": {"source": str(data / "train"), "target": "click"},
        "features": FEATURES,
        "model": {"kind": "xgboost", "num_rounds": options.rounds, "early_stopping": 0, "subsample": 1.0, "colsample": 1.0},
        "engine": {"memory": memory, "threads": options.threads},
    })  # fmt: skip


def split(rows: int) -> Path:
    """The rows as `train`, and the million after them as `valid`."""
    whole = artifact(rows + VALID_ROWS, CACHE)
    folder = CACHE / f"out-of-core-{rows}"
    files = sorted((whole / "train").glob("*.parquet"))
    for name, chosen in (("train", files[: -(VALID_ROWS // FILE_ROWS)]), ("valid", files[-(VALID_ROWS // FILE_ROWS) :])):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in chosen:
            if not (folder / name / file.name).exists():
                os.link(file, folder / name / file.name)
    tree = json.loads((whole / "schema.json").read_text(encoding="utf-8"))
    (folder / "schema.json").write_text(json.dumps({**tree, "rows": {"train": rows, "valid": VALID_ROWS}}), encoding="utf-8")
    return folder


def spread(values: list[float], *, digits: int = 2) -> dict[str, float]:
    return {"median": round(statistics.median(values), digits), "min": round(min(values), digits), "max": round(max(values), digits)}


if __name__ == "__main__":
    main()
