"""Hand-made artifacts of the stages before packaging: a table, features of two columns, a fitted model and its baseline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from tidemill.core.artifact import Artifact, write_json, writing
from tidemill.core.contract import ContractConfig
from tidemill.core.engine import EngineConfig
from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.load import TABLE
from tidemill.core.project import Project, build
from tidemill.core.schema import Column, Schema
from tidemill.models import native
from tidemill.models.base import MemoryMatrix
from tidemill.models.config import ModelConfig
from tidemill.models.interval import fit_interval
from tidemill.models.linear import Linear, LinearParams
from tidemill.packaging import compare, gate

COLUMNS = Schema((Column(name="miles", type="float64"), Column(name="carrier", type="string"), Column(name="seats", type="int64")))
CARRIERS = ["AA", "DL", "UA"]


def features_graph(scale: float = 1.0) -> onnx.ModelProto:
    """Miles (null is 0) times `scale`, one indicator for each carrier, seats (null is -1)."""
    nodes = [
        helper.make_node("Cast", ["miles"], ["miles32"], to=TensorProto.FLOAT),
        helper.make_node("IsNaN", ["miles32"], ["no_miles"]),
        helper.make_node("Where", ["no_miles", "zero", "miles32"], ["known"]),
        helper.make_node("Mul", ["known", "scale"], ["scaled"]),
        helper.make_node(
            "LabelEncoder", ["carrier"], ["code"], domain="ai.onnx.ml", keys_strings=CARRIERS, values_int64s=[0, 1, 2], default_int64=-1
        ),
        helper.make_node("Equal", ["code", "codes"], ["is_carrier"]),
        helper.make_node("Cast", ["is_carrier"], ["carriers"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["seats"], ["seats32"], to=TensorProto.FLOAT),
        helper.make_node("Where", ["seats__valid", "seats32", "minus"], ["known_seats"]),
        helper.make_node("Concat", ["scaled", "carriers", "known_seats"], ["features"], axis=1),
    ]
    constants = {"zero": np.float32([[0]]), "minus": np.float32([[-1]]), "codes": np.int64([[0, 1, 2]]), "scale": np.float32([[scale]])}
    kinds = {"miles": TensorProto.DOUBLE, "carrier": TensorProto.STRING, "seats": TensorProto.INT64, "seats__valid": TensorProto.BOOL}
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info(name, kind, [None, 1]) for name, kind in kinds.items()],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*item) for item in OPSETS.items()], ir_version=IR_VERSION)


def reference(layout: dict[str, Any], table: pa.Table) -> np.ndarray:
    """The same in NumPy; `layout["scale"]` says by what miles are multiplied here."""
    miles = np.nan_to_num(table["miles"].to_numpy(zero_copy_only=False).astype(np.float32), nan=0.0) * np.float32(layout["scale"])
    carriers = [[float(value == known) for known in CARRIERS] for value in table["carrier"].to_pylist()]
    seats = [-1.0 if value is None else float(value) for value in table["seats"].to_pylist()]
    return np.column_stack([miles, np.array(carriers).reshape(-1, 3), seats]).astype(np.float32)


def rows(count: int, task: str, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    miles = rng.normal(size=count)
    carrier = rng.choice([*CARRIERS, "航空", ""], count)
    seats = rng.integers(0, 9, count)
    score = 2 * miles + (carrier == "UA") - 0.2 * seats + rng.normal(size=count)
    y: Any = {
        "binary": score > 0,
        "multiclass": np.digitize(score, [-1, 1]),
        "regression": 100 * score,
    }[task]
    if task == "multiclass":
        y = np.array(["high", "low", "mid"], object)[y]
    nulls = rng.uniform(size=count) < 0.05
    return pa.table(
        {
            "key": pa.array(np.arange(count)),
            "miles": pa.array(miles, mask=nulls),
            "carrier": pa.array(carrier.tolist(), pa.string(), mask=rng.uniform(size=count) < 0.05),
            "seats": pa.array(seats, pa.int64(), mask=nulls),
            "y": pa.array(y.tolist()),
        }
    )


@dataclass(frozen=True)
class Stages:
    project: Project
    data: Artifact
    features: Artifact
    train: Artifact
    table: pa.Table
    """The test split."""


def build_stages(
    folder: Path,
    task: str = "binary",
    *,
    kind: str = "linear",
    graph_scale: float = 1.0,
    native_scale: float = 1.0,
    contract: Any = None,
    rows_of: Any = rows,
    blind: bool = False,
    interval: float | None = None,
) -> Stages:
    """Finished stages. The features' graph and their reference multiply miles as told; a blind model never saw miles."""
    classes = {"binary": [False, True], "multiclass": ["high", "low", "mid"], "regression": None}[task]
    tables = {split: rows_of(count, task, seed) for split, count, seed in (("train", 800, 0), ("valid", 200, 1), ("test", 400, 2))}
    with writing(folder / "data", stage="data") as out:
        for split, table in tables.items():
            (out / split).mkdir()
            pq.write_table(table, out / split / "part-0.parquet", row_group_size=150)
        facts = {"columns": COLUMNS.to_json(), "target": "y", "task": task, "classes": classes, "keys": ["key"], "weight": None}
        write_json(out / "schema.json", {**facts, "rows": {split: table.num_rows for split, table in tables.items()}})
    with writing(folder / "features", stage="features") as out:
        (out / "features.onnx").write_bytes(features_graph(graph_scale).SerializeToString())
        names = ["miles", *(f"carrier={name}" for name in CARRIERS), "seats"]
        write_json(out / "features.json", {"inputs": COLUMNS.to_json(), "names": names, "columns": {}, "scale": native_scale})
    with writing(folder / "train", stage="train") as out:
        y = tables["train"]["y"].to_pylist()
        matrix = MemoryMatrix(
            reference({"scale": native_scale}, tables["train"]) * (np.float32([0, 1, 1, 1, 1]) if blind else np.float32(1)),
            np.array([classes.index(value) for value in y] if classes else y, float),
            names=names,
        )
        model, params = (Linear(), LinearParams()) if kind == "linear" else trees()
        options = {"task": task, "num_classes": len(classes) if classes else None, "seed": 0, "threads": 1}
        for place, (of, settings, name) in {"": (model, params, kind), "baseline": (Linear(), LinearParams(), "linear")}.items():
            fitted = of.fit(matrix, None, params=settings, **options)
            if interval is not None and not place:
                valid = MemoryMatrix(reference({"scale": native_scale}, tables["valid"]), np.array(tables["valid"]["y"].to_pylist()))
                fitted = fit_interval(of, fitted, matrix, valid, level=interval, task=task, params=settings, seed=0, threads=1)
            (out / place).mkdir(exist_ok=True)
            (out / place / "model.onnx").write_bytes(fitted.to_onnx().SerializeToString())
            native.save(fitted, out / place / "native", kind=name)
        write_json(out / "train.json", {"kind": kind, "interval": None if interval is None else {"level": interval}})
    others: Any = {key: {} for key in ("features", "train", "serve", "monitor", "rollout")}
    others["model"] = ModelConfig(kind=kind, interval=interval)
    contract = build(ContractConfig, contract or {}, path="contract")
    project = Project(name="tiny", data={}, contract=contract, engine=EngineConfig(threads=1), **others)
    return Stages(project, *(Artifact.open(folder / name) for name in ("data", "features", "train")), tables["test"])


def trees() -> tuple[Any, Any]:
    from tidemill.models.xgboost import XGBoost, XGBoostParams

    return XGBoost(), XGBoostParams(num_rounds=20, max_depth=3, learning_rate=0.3, subsample=1.0, colsample=1.0)


@pytest.fixture
def make_stages(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes finished stages, each in a folder of its own; `make_stages.rows` makes a table."""
    monkeypatch.setitem(TABLE["reference"], "features", f"{__name__}:reference")

    def make(task: str = "binary", **more: Any) -> Stages:
        return build_stages(tmp_path_factory.mktemp("stages"), task, **more)

    make.rows = rows  # type: ignore[attr-defined]
    return make


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is measured for as long as it takes to have a number."""
    monkeypatch.setattr(gate, "LATENCY_S", 0.01)
    monkeypatch.setattr(compare, "LATENCY_S", 0.01)
