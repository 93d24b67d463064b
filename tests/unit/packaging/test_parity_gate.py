"""What the gate sees: every row, every route, and why a row differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper

from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.package import Package, Predictor
from tidemill.packaging.parity import FunctionPath, ReferencePath, compare, why
from tidemill.packaging.rows import Sample


def doubling(folder: Path, task: str = "regression", classes: list[Any] | None = None) -> Predictor:
    """A package whose graph answers twice its only column."""
    folder.mkdir(exist_ok=True)
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("ReduceSum", ["y", "axis"], ["prediction"], keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(np.int64([1]), "axis")],
    )
    opsets = [helper.make_opsetid(*item) for item in OPSETS.items()]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), folder / "full.onnx")
    inputs = [{"name": "x", "type": "float32", "nullable": True}]
    signature = {"kind": "row", "inputs": inputs, "outputs": [], "classes": classes}
    return Predictor(Package(folder, {"name": "d", "task": task, "signature": signature, "runtime": {"graph": "full.onnx"}, "files": {}}))


def rows(values: list[float | None]) -> Sample:
    return Sample(pa.table({"x": pa.array(values, pa.float32())}))


def native(change: Any = lambda doubled: doubled) -> FunctionPath:
    return FunctionPath(lambda batch: change(2 * batch["x"].to_numpy(zero_copy_only=False).astype(np.float64)), "arithmetic")


def test_one_wrong_row_of_many_is_found(tmp_path: Path) -> None:
    values = np.arange(1, 20_001, dtype=float)

    def wrong_once(doubled: np.ndarray) -> np.ndarray:
        return doubled + np.where(doubled == 2 * 17_123, 400.0, 0)

    evidence = compare(doubling(tmp_path), rows(values.tolist()), native(wrong_once), limit=1e-5).evidence
    assert evidence["rows"] == 20_000
    assert evidence["rows_over_limit"] == 1
    # Relative to the native answer, which is larger than the mean.
    assert evidence["max_difference"] == pytest.approx(400 / (2 * 17_123 + 400))
    assert evidence["p99_difference"] == 0
    assert evidence["worst"][0]["record"] == {"x": 17_123.0}
    assert "1 of 20000 rows" in str(why(evidence))


def test_small_answers_are_held_against_the_mean_size(tmp_path: Path) -> None:
    def wrong_at_zero(doubled: np.ndarray) -> np.ndarray:
        return doubled + np.where(doubled == 0, 1e-3, 0)

    evidence = compare(doubling(tmp_path), rows([0.0, 100.0, -100.0, 300.0]), native(wrong_at_zero), limit=1e-5).evidence
    assert evidence["measure"] == "relative"
    assert evidence["max_difference"] == pytest.approx(1e-3 / 250, rel=1e-3)
    assert evidence["rows_over_limit"] == 0
    assert why(evidence) is None


def test_an_embedding_is_held_absolutely(tmp_path: Path) -> None:
    evidence = compare(doubling(tmp_path, task="embedding"), rows([1e4, 2e4]), native(lambda doubled: doubled + 0.5), limit=1e-5).evidence
    assert evidence["measure"] == "absolute"
    assert evidence["max_difference"] == pytest.approx(0.5)


@pytest.mark.parametrize("batch", [[1.0, None], [None, 2.0]])
def test_nothing_known_on_both_sides_is_equal(tmp_path: Path, batch: list[float | None]) -> None:
    assert compare(doubling(tmp_path), rows(batch), native(), limit=1e-5).evidence["max_difference"] == 0


def test_nothing_known_on_one_side_is_infinitely_far(tmp_path: Path) -> None:
    found = compare(doubling(tmp_path), rows([1.0, None]), native(np.nan_to_num), limit=1e-5).evidence
    assert found["max_difference"] == np.inf
    assert found["rows_over_limit"] == 1


def test_an_answer_of_another_shape_is_infinitely_far(tmp_path: Path) -> None:
    found = compare(doubling(tmp_path), rows([1.0, 2.0]), native(lambda doubled: np.stack([doubled, doubled], axis=1)), limit=1e-5).evidence
    assert found["max_difference"] == np.inf


def test_rows_are_also_sent_one_by_one(tmp_path: Path) -> None:
    predictor = doubling(tmp_path)
    records = predictor.records
    predictor.records = lambda given: type(records(given))(records(given).prediction + 3)  # type: ignore[method-assign]
    evidence = compare(predictor, rows(np.arange(1, 1001.0).tolist()), native(), limit=1e-5).evidence
    assert evidence["routes"]["rows"] == 250 + 256, "one by one, and one batch"
    assert evidence["routes"]["max_difference"] == evidence["max_difference"] > 1e-3
    assert evidence["rows_over_limit"] == 0


@pytest.mark.parametrize(
    ("scale", "cause", "detail"),
    [
        (1.0 + 3e-7, "rounding", "rounding took it across a threshold"),
        (1.5, "features", "feature 'miles' is"),
    ],
)
def test_a_step_across_a_threshold_is_told_from_a_wrong_feature(make_stages: Any, scale: float, cause: str, detail: str) -> None:
    """The native path stands right at a tree's threshold; the graph's miles are a little, or much, larger."""
    stages = make_stages("binary", kind="xgboost", graph_scale=scale)
    path = ReferencePath(stages.features.path, stages.train.path)
    trees = path._model.booster.trees_to_dataframe()
    threshold = np.float32(trees[trees.Feature == "f0"].Split.iloc[0])
    below = float(np.nextafter(threshold, np.float32(-np.inf) if threshold > 0 else np.float32(0)))
    if threshold < 0:
        # A larger factor moves a negative number down, so start at the threshold itself.
        below = float(threshold)
    batch = pa.table({"miles": [below], "carrier": ["UA"], "seats": pa.array([1], pa.int64())}).to_batches()[0]
    graph = path._features_graph.run(batch, ["features"])["features"]
    answer = np.asarray(path._model.predict(graph))
    assert np.abs(answer - path.answer(batch)).max() > 1e-5, "the sample must cross the threshold"
    (found,) = path.explain(batch, answer, 1e-5)
    assert found["cause"] == cause
    assert detail in found["detail"]


def test_a_wrong_model_graph_is_told_from_wrong_features(make_stages: Any) -> None:
    stages = make_stages("binary", kind="xgboost")
    path = ReferencePath(stages.features.path, stages.train.path)
    batch = stages.table.to_batches()[0].slice(0, 1)
    (found,) = path.explain(batch, path.answer(batch) + 0.1, 1e-5)
    assert found["cause"] == "model"
    assert "the model's graph answers otherwise" in found["detail"]
