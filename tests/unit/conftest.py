"""Finished data and features stages, made by hand, for what comes after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from tidemill.core.artifact import Artifact, write_json, writing
from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.schema import Column, Schema

INPUTS = Schema(
    (Column(name="distance", type="float64"), Column(name="stops", type="int64"), Column(name="carrier", type="string", nullable=False))
)
CARRIERS = ("AA", "DL", "UA")
CLASSES = {"binary": [False, True], "multiclass": ["early", "late", "ontime"], "regression": None}


@pytest.fixture
def finished_stages(tmp_path: Path) -> Callable[..., tuple[Artifact, Artifact]]:
    """Makes the artifacts of the data and features stages of a small project under the test's folder."""

    def make(task: str = "binary", *, rows: int = 2000, valid: int = 500, weight: bool = False) -> tuple[Artifact, Artifact]:
        return _data(tmp_path / "data", task, rows, valid, weight), _features(tmp_path / "features")

    return make


def _data(path: Path, task: str, rows: int, valid: int, weight: bool) -> Artifact:
    with writing(path, stage="data") as out:
        for seed, (split, num) in enumerate({"train": rows, "valid": valid, "test": valid}.items()):
            (out / split).mkdir()
            table = _table(task, num, seed, weight)
            for part, start in enumerate(range(0, num, 900)):
                pq.write_table(table.slice(start, 900), out / split / f"part-{part}.parquet", row_group_size=400)
        columns = [*INPUTS, Column(name="target", type="string"), Column(name="id", type="int64")]
        facts = {
            "columns": [column.to_json() for column in columns], "target": "outcome", "task": task, "classes": CLASSES[task],
            "keys": ["id"], "weight": "importance" if weight else None, "rows": {"train": rows, "valid": valid, "test": valid},
        }  # fmt: skip
        write_json(out / "schema.json", facts)
    return Artifact.open(path)


def _table(task: str, num: int, seed: int, weight: bool) -> pa.Table:
    rng = np.random.default_rng(seed)
    distance, stops = rng.normal(size=num), rng.integers(0, 4, num)
    carrier = rng.choice(CARRIERS, num)
    signal = distance - 0.5 * stops + np.where(carrier == "UA", 1.0, 0.0) + rng.normal(scale=0.7, size=num)
    outcome: Any = signal
    if task == "binary":
        outcome = signal > 0
    elif task == "multiclass":
        outcome = np.array(["early", "ontime", "late"])[np.digitize(signal, [-1, 0.5])]
    columns: dict[str, Any] = {
        "distance": pa.array(distance, mask=rng.random(num) < 0.1),
        "stops": pa.array(stops, mask=rng.random(num) < 0.1),
        "carrier": pa.array(carrier.tolist(), pa.string()),
        "outcome": pa.array(outcome),
        "id": pa.array(np.arange(num)),
    }
    if weight:
        columns["importance"] = pa.array(rng.random(num))
    return pa.table(columns)


def _features(path: Path) -> Artifact:
    nodes = [
        helper.make_node("Cast", ["distance"], ["distance_float"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["stops"], ["stops_float"], to=TensorProto.FLOAT),
        helper.make_node("Where", ["stops__valid", "stops_float", "nan"], ["stops_or_nan"]),
        helper.make_node(
            "LabelEncoder", ["carrier"], ["carrier_code"], domain="ai.onnx.ml",
            keys_strings=list(CARRIERS), values_floats=[0.0, 1.0, 2.0], default_float=-1.0,
        ),
        helper.make_node("Concat", ["distance_float", "stops_or_nan", "carrier_code"], ["features"], axis=1),
    ]  # fmt: skip
    kinds = {
        "distance": TensorProto.DOUBLE,
        "stops": TensorProto.INT64,
        "stops__valid": TensorProto.BOOL,
        "carrier": TensorProto.STRING,
    }
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info(name, kind, ["N", 1]) for name, kind in kinds.items()],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.float32([[np.nan]]), "nan")],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    columns: dict[str, Any] = {"distance": [], "stops": [], "carrier": [{"op": "vocabulary"}]}
    with writing(path, stage="features") as out:
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), out / "features.onnx")
        write_json(out / "features.json", {"inputs": INPUTS.to_json(), "names": list(columns), "columns": columns})
    return Artifact.open(path)
