"""One way of fitting the features and transforming all rows, in a process of its own; prints its times as JSON.

Usage: ways.py tidemill|scikit-learn FOLDER [repeats] [memory]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from clicks import FEATURES, NUMBERS, TEXTS, column_transformer

from tidemill.core.artifact import Artifact
from tidemill.core.events import Events
from tidemill.core.project import from_tree
from tidemill.features import stage
from tidemill.train.matrix import FeatureMatrix

Times = dict[str, float]


def tidemill(folder: Path, memory: str) -> Times:
    """The stage `features`, then every row of the training matrix; a matrix that is not kept, since it need not fit in memory."""
    tree = {
        "name": "clicks",
        "data": {"source": str(folder / "train"), "target": "click"},
        "features": FEATURES,
        "engine": {"memory": memory},
    }
    project = from_tree(tree)
    data = Artifact(folder, {})
    with tempfile.TemporaryDirectory(dir=folder) as out:
        start = time.perf_counter()
        stage.run(project, data, Path(out), events=Events())
        fitted = time.perf_counter()
        matrix = FeatureMatrix(data, Artifact(Path(out), {}), "train", threads=2)
        rows = sum(len(batch.x_NF) for batch in matrix.batches())
        return times(rows, 0.0, fitted - start, time.perf_counter() - fitted)


def scikit_learn(folder: Path, _: str) -> Times:
    start = time.perf_counter()
    frame = pd.read_parquet(folder / "train", columns=[*NUMBERS, *TEXTS])
    read = time.perf_counter()
    peer = column_transformer().fit(frame)
    fitted = time.perf_counter()
    rows = len(peer.transform(frame))
    return times(rows, read - start, fitted - read, time.perf_counter() - fitted)


def times(rows: int, read_s: float, fit_s: float, transform_s: float) -> Times:
    return {"rows": rows, "read_s": read_s, "fit_s": fit_s, "transform_s": transform_s, "total_s": read_s + fit_s + transform_s}


WAYS: dict[str, Callable[[Path, str], Times]] = {"tidemill": tidemill, "scikit-learn": scikit_learn}

if __name__ == "__main__":
    name, folder, *rest = sys.argv[1:]
    repeats, memory = (*rest, *("1", "2GiB")[len(rest) :])
    print(json.dumps([WAYS[name](Path(folder), memory) for _ in range(int(repeats))]))
