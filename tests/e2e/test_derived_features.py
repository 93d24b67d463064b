"""Columns of several and encodings by the target, from a table to a package: what answers needs no fold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pytest

import tidemill as tm
from tidemill.core.folds import FOLD

ROWS = 3000


def trips() -> pa.Table:
    """Delays that depend on the pair of two places, not on either alone."""
    random = np.random.default_rng(4)
    origin, dest = random.choice([f"o{i}" for i in range(8)], ROWS), random.choice([f"d{i}" for i in range(12)], ROWS)
    level = {(o, d): random.normal(0, 3) for o in np.unique(origin) for d in np.unique(dest)}
    spread = random.normal(size=(ROWS, 2))
    delay = np.array([level[pair] for pair in zip(origin, dest, strict=True)]) + random.normal(size=ROWS)
    columns: dict[str, Any] = {
        "origin": pa.array(origin.tolist(), mask=random.random(ROWS) < 0.02),
        "dest": dest.tolist(),
        "wind": spread[:, 0],
        "gust": spread[:, 0] * 2 + spread[:, 1],
        "delay": delay,
        "late": delay > 1,
    }
    return pa.table(columns)


FEATURES: dict[str, Any] = {
    "route": {"of": ["origin", "dest"], "steps": ["cross", "target"]},
    "air": {"of": ["wind", "gust"], "steps": ["impute", "standardize", {"op": "pca", "components": 1}]},
    "drop": ["origin", "dest"],
}


@pytest.mark.parametrize(("target", "metric", "least"), [("late", "roc_auc", 0.9), ("delay", "r2", 0.7)])
def test_a_package_answers_with_what_all_rows_taught(target: str, metric: str, least: float, tmp_path: Path) -> None:
    table = trips().drop_columns(["delay" if target == "late" else "late"])
    model = tm.fit(table, target=target, model="linear", features=FEATURES, home=tmp_path / "home")
    # The gate held the graph against the NumPy operators, which take the means of all rows.
    package = model.package
    assert package.schema.names == ["origin", "dest", "wind", "gust"]
    session = ort.InferenceSession(package.path / "full.onnx", providers=["CPUExecutionProvider"])
    assert FOLD not in {value.name for value in session.get_inputs()}
    assert model.quality[metric]["point"] > least
    # A place that was not seen is no reason to fail.
    strange = table.slice(0, 2).set_column(0, "origin", pa.array(["nowhere", None], pa.string()))
    assert len(model.predict(strange)) == 2
