"""Claim: one row through a merged graph of 39 raw columns (26 texts, 286,000 vocabulary entries) and 200 trees takes
at most 100 microseconds on one core, and batches of 1,000 go at 150,000 rows/s or more.

The rows come as graph inputs, as a server holds them after parsing; `from a JSON record` adds their conversion. The peer is
the usual pair in Python, a ColumnTransformer and the booster's own predict on a one-row frame, in turn on the same rows,
which shows what people move away from (its encoder builds a table of all categories in each call). The graph's answers are
checked against the booster's own first. Processor time is reported beside wall time, since it holds still on a busy machine.
Usage: run.py [repeats]
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.insert(0, str(HERE.parent / "transform"))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import pyarrow as pa  # noqa: E402
import sklearn  # noqa: E402
import xgboost as xgb  # noqa: E402
from clicks import FEATURES, column_transformer, table  # noqa: E402

from tidemill.core.contract import hardware  # noqa: E402
from tidemill.core.graph import BulkGraph, Graph  # noqa: E402
from tidemill.core.schema import Schema  # noqa: E402
from tidemill.features.stage import fit_table  # noqa: E402
from tidemill.models.xgboost import FittedTrees  # noqa: E402
from tidemill.packaging.merge import merge  # noqa: E402

ROWS, TREES, DEPTH = 200_000, 200, 6
ONE_BY_ONE, BATCH = 1000, 1000


def main(repeats: int) -> None:
    pa.set_cpu_count(1)
    train = table(ROWS, seed=0)
    description, features = fit_table(train, FEATURES)
    schema = Schema.from_json(description["inputs"])
    matrix = BulkGraph(features, schema).run(train.combine_chunks().to_batches()[0])["features"]
    target = (np.nansum(np.sin(matrix), axis=1) + np.random.default_rng(0).normal(size=ROWS) > 0).astype(np.float32)
    settings = {"objective": "binary:logistic", "max_depth": DEPTH, "eta": 0.1, "nthread": 1, "base_score": 0.5}
    booster = xgb.train(settings, xgb.QuantileDMatrix(matrix, target, nthread=1), TREES)
    model = FittedTrees(booster, task="binary", num_classes=2, names=description["names"])
    whole = merge(onnx.load_from_string(features), model.to_onnx(), classes=[False, True]).SerializeToString()
    graph = Graph(whole, schema)
    one = Graph(features, schema)

    asked = table(120_000, seed=5).slice(0, ONE_BY_ONE)
    records = asked.to_pylist()
    rows = [graph.signature.from_records([record]) for record in records]
    batch = graph.signature.from_records(records)
    transformer = column_transformer().fit(train.to_pandas())
    frames = [asked.slice(i, 1).to_pandas() for i in range(5)]
    expected = model.predict(one.run(batch)["features"])[:, 1]
    np.testing.assert_allclose(graph.run(batch)["probability"][:, 1], expected, atol=1e-6)
    np.testing.assert_allclose([graph.run(row)["probability"][0, 1] for row in rows], expected, atol=1e-6)

    # The peer's codes are by spelling, ours by frequency: its booster is one trained on its own features.
    theirs = transformer.transform(train.to_pandas()).astype(np.float32)
    peer_booster = xgb.train(settings, xgb.QuantileDMatrix(theirs, target, nthread=1), TREES)

    def each(step: Callable[[Any], Any], items: list[Any]) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            walls, cpu = [], time.process_time()
            for item in items:
                start = time.perf_counter_ns()
                step(item)
                walls.append((time.perf_counter_ns() - start) / 1000)
            cpu_us = (time.process_time() - cpu) / len(items) * 1e6
            return {"median_us": statistics.median(walls), "p99_us": float(np.quantile(walls, 0.99)), "cpu_us": cpu_us}

        return run

    ways = {
        "features and trees": each(lambda row: graph.run(row, ["probability"]), rows),
        "features alone": each(one.run, rows),
        "from a JSON record": each(lambda record: graph.run(graph.signature.from_record(record), ["probability"]), records),
        "batch of 1000": each(lambda rows: graph.run(rows, ["probability"]), [batch] * 10),
        "scikit-learn and xgboost": each(
            lambda frame: peer_booster.inplace_predict(transformer.transform(frame).astype(np.float32)), frames
        ),
    }
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name in ways if repeat % 2 == 0 else reversed(ways):
            found = ways[name]()
            if repeat:
                taken[name].append(found)
    summary = {
        name: {key: spread([found[key] for found in times]) for key in ("median_us", "p99_us", "cpu_us")} for name, times in taken.items()
    }
    for clock in ("median_us", "cpu_us"):
        summary["batch of 1000"]["rows_per_s by " + clock] = spread([BATCH / found[clock] * 1e6 for found in taken["batch of 1000"]])
    result = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "repeats": repeats,
        "ratio": {
            clock: spread([b[clock] / a[clock] for a, b in zip(taken["features and trees"], taken["scikit-learn and xgboost"], strict=True)])
            for clock in ("median_us", "cpu_us")
        },
        "summary": summary,
        "columns": len(schema),
        "vocabulary": sum(len(steps[0]["fitted"].get("categories", ())) for steps in description["columns"].values()),
        "trees": TREES,
        "nodes": len(onnx.load_from_string(whole).graph.node),
        "hardware": hardware(),
        "load": os.getloadavg(),
        "versions": {
            "python": platform.python_version(), "onnxruntime": onnxruntime.__version__, "xgboost": xgb.__version__,
            "scikit-learn": sklearn.__version__, "numpy": np.__version__,
        },
    }  # fmt: skip
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{result['at'][:10]}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("ratio", "summary", "nodes", "vocabulary")}, indent=1))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
