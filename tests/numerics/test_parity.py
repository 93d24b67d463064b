"""From raw rows, the packaged graph against NumPy operators and the library's own predict: every kind of model, every task."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill import pipeline
from tidemill.core.artifact import Artifact, writing
from tidemill.core.errors import ContractViolation
from tidemill.core.events import Events
from tidemill.core.package import Package, Predictor
from tidemill.core.project import from_tree
from tidemill.packaging import stage
from tidemill.packaging.parity import ReferencePath, compare
from tidemill.packaging.rows import Sample

LIMIT = 1e-5
BIG = 2**53 + 1


def table(rows: int, task: str) -> pa.Table:
    """Six types with nulls, infinities, empty and foreign text, whole numbers beyond 2^53."""
    rng = np.random.default_rng(5)
    amount = rng.lognormal(size=rows)
    kind = rng.choice(["a", "b", "", "航空", "é", "a "], rows, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    score = np.log(amount) + (kind == "a") + rng.normal(size=rows) * 0.5
    target: dict[str, Any] = {
        "binary": (score > 0.3).tolist(),
        "multiclass": np.array(["low", "mid", "high"], object)[np.digitize(score, [-0.3, 0.8])].tolist(),
        "regression": (1e4 * score).tolist(),
    }
    amount[::97] = np.inf
    whole = rng.integers(-5, 5, rows)
    whole[::101] = BIG
    hidden = rng.uniform(size=(5, rows)) < 0.07
    return pa.table(
        {
            "amount": pa.array(amount, mask=hidden[0]),
            "share": pa.array(rng.uniform(size=rows).astype(np.float32), mask=hidden[1]),
            "whole": pa.array(whole, mask=hidden[2]),
            "kind": pa.array(kind.tolist(), pa.string(), mask=hidden[3]),
            "flag": pa.array(rng.uniform(size=rows) < 0.4, mask=hidden[4]),
            "at": pa.array(rng.integers(0, 1_700_000_000_000_000, rows), pa.timestamp("us", "UTC"), mask=hidden[0]),
            "y": target[task],
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs a project over the table of a task; each combination once."""
    folder = tmp_path_factory.mktemp("runs")
    made: dict[tuple[Any, ...], pipeline.Run] = {}

    def one(task: str, kind: str, calibrate: str | None = None) -> pipeline.Run:
        key = (task, kind, calibrate)
        if key not in made:
            source = folder / f"{task}.parquet"
            if not source.exists():
                pq.write_table(table(3_000, task), source)
            model: dict[str, Any] = {"kind": kind, "calibrate": calibrate} if calibrate else {"kind": kind}
            if kind == "xgboost":
                model |= {"num_rounds": 40}
            tree = {
                "name": f"{task}-{kind}-{calibrate or 'plain'}",
                "task": task,
                "data": {"source": str(source), "target": "y"},
                "model": model,
                "engine": {"threads": 1},
            }
            made[key] = pipeline.run(from_tree(tree, folder=folder), home=folder / "home")
        return made[key]

    return one


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("kind", ["linear", "xgboost"])
def test_the_package_answers_as_the_library_does(run: Any, task: str, kind: str) -> None:
    evidence = run(task, kind).package.evidence()["parity"]
    assert evidence["rows"] == 300
    assert evidence["max_difference"] <= LIMIT, evidence["worst"][0]
    assert evidence["rows_over_limit"] == 0


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_calibration_answers_as_its_formula_does(run: Any, task: str) -> None:
    assert run(task, "xgboost", "platt").package.evidence()["parity"]["max_difference"] <= LIMIT


def test_rows_that_the_run_never_saw_agree_too(run: Any) -> None:
    """Unseen categories, extremes and rows of nulls, bulk and one by one."""
    made = run("binary", "xgboost")
    strange = pa.table(
        {
            "amount": pa.array([None, 0.0, -1.0, 1e300, -np.inf, 1e-300, np.nan]),
            "share": pa.array([None, 0, 1, -1, 3e38, 1e-40, 2], pa.float32()),
            "whole": pa.array([None, BIG, -BIG, 2**63 - 1, -(2**63), 0, 1], pa.int64()),
            "kind": pa.array([None, "new", "", " ", "a\0b", "\U0001f6eb", "A"]),
            "flag": pa.array([None, True, False, None, True, False, None]),
            "at": pa.array(
                [None, 0, -1, 253_402_300_799_999_999, -62_135_596_800_000_000, 951_782_400_000_000, 1], pa.timestamp("us", "UTC")
            ),
        }
    )
    path = ReferencePath(made.stages["features"].path, made.stages["train"].path)
    evidence = compare(Predictor(made.package), Sample(strange), path, limit=LIMIT).evidence
    assert evidence["routes"]["rows"] == 2 * strange.num_rows, "one by one, and in one batch"
    assert evidence["max_difference"] <= LIMIT, evidence["worst"][0]


@pytest.mark.parametrize("batch", [1, 7, 300])
def test_a_batch_of_any_size_answers_the_same(run: Any, batch: int) -> None:
    made = run("multiclass", "xgboost")
    rows = pa.concat_tables([pq.read_table(file) for file in sorted((made.stages["data"].path / "test").glob("*.parquet"))])
    predictor = Predictor(made.package)
    whole = predictor.arrow(rows.combine_chunks().to_batches()[0]).probability
    parts = [predictor.arrow(part).probability for part in rows.combine_chunks().to_batches(max_chunksize=batch)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("part", ["features", "model"])
def test_a_changed_constant_in_the_graph_is_refused(run: Any, tmp_path: Path, part: str) -> None:
    """The gate is no comparison of the graph with itself: a graph that drifts from its library does not pass."""
    made = run("binary", "linear")
    stages = dict(made.stages)
    file, name = {"features": ("features.onnx", "features"), "model": ("model.onnx", "train")}[part]
    copy = tmp_path / name
    with writing(copy, stage=name) as out:
        shutil.copytree(stages[name].path, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        model = onnx.load(out / file)
        changed = 0
        for value in model.graph.initializer:
            array = onnx.numpy_helper.to_array(value)
            if array.dtype == np.float32 and np.isfinite(array).all() and array.size:
                value.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.001), value.name))
                changed += 1
        assert changed
        onnx.save(model, out / file)
    stages[name] = Artifact.open(copy)
    (tmp_path / "out").mkdir()
    with pytest.raises(ContractViolation, match="parity: promised <= 1e-05"):
        stage.run(made.project, stages["data"], stages["features"], stages["train"], tmp_path / "out", events=Events())


def test_evidence_is_part_of_the_package_and_not_of_its_identity(run: Any) -> None:
    package = run("binary", "linear").package
    assert Package.open(package.path).evidence()["parity"]["against"].startswith("NumPy reference operators")
    assert not any(name.startswith("evidence") for name in package.manifest["signature"])
