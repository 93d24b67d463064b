"""Two graphs as one: nothing clashes, the label follows the probabilities, the bytes are the same every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tidemill.core.errors import DataError
from tidemill.core.graph import IR_VERSION, OPSETS, session
from tidemill.packaging.merge import merge, outputs, to_bytes


def model(
    nodes: list[Any], inputs: dict[str, list[Any]], output: str, shape: list[Any], constants: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*item) for item in OPSETS.items()], ir_version=IR_VERSION)


def features(*columns: str) -> onnx.ModelProto:
    """Columns side by side, doubled."""
    nodes = [helper.make_node("Concat", list(columns), ["x"], axis=1), helper.make_node("Mul", ["x", "two"], ["features"])]
    return model(nodes, {name: [None, 1] for name in columns}, "features", [None, len(columns)], {"two": np.float32(2)})


def softmax(width: int) -> onnx.ModelProto:
    """Softmax of the features, by way of tensors named as in the other part."""
    nodes = [helper.make_node("Identity", ["features"], ["x"]), helper.make_node("Softmax", ["x"], ["probability"], axis=1)]
    return model(nodes, {"features": [None, width]}, "probability", [None, width])


def run(merged: onnx.ModelProto, **columns: list[float]) -> dict[str, np.ndarray]:
    runtime = session(to_bytes(merged))
    names = [value.name for value in runtime.get_outputs()]
    feed = {name: np.float32(values).reshape(-1, 1) for name, values in columns.items()}
    return dict(zip(names, runtime.run(names, feed), strict=True))


@pytest.mark.parametrize(
    ("classes", "dtype"), [([False, True], np.bool_), ([-7, 2**40], np.int64), (["late", "航空"], object)], ids=["bool", "int", "text"]
)
def test_the_label_of_the_most_probable_class_is_answered(classes: list[Any], dtype: Any) -> None:
    found = run(merge(features("a", "b"), softmax(2), classes=classes), a=[0, 3], b=[1, 1])
    assert found["prediction"].tolist() == [classes[1], classes[0]]
    assert found["prediction"].dtype == dtype
    expected = np.exp([[0, 2], [6, 2]]) / np.exp([[0, 2], [6, 2]]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["probability"], expected, atol=1e-6)


def test_of_equal_probabilities_the_first_class_is_answered() -> None:
    assert run(merge(features("a", "b"), softmax(2), classes=["x", "y"]), a=[1], b=[1])["prediction"].tolist() == ["x"]


def test_a_number_needs_no_classes() -> None:
    head = model(
        [helper.make_node("ReduceSum", ["features"], ["prediction"], keepdims=0, noop_with_empty_axes=0)],
        {"features": [None, 2]},
        "prediction",
        [],
    )
    assert run(merge(features("a", "b"), head, classes=None), a=[1.5], b=[2])["prediction"] == 7


@pytest.mark.parametrize("name", ["model/x", "features/x", "features_/x", "answer/class", "answer/labels", "航空"])
def test_a_column_may_be_named_as_a_tensor_inside(name: str) -> None:
    found = run(merge(features(name, "b"), softmax(2), classes=["y", "n"]), **{name: [5.0], "b": [1.0]})
    assert found["prediction"].tolist() == ["y"]


@pytest.mark.parametrize("name", ["probability", "prediction"])
def test_a_column_may_not_be_named_as_an_answer(name: str) -> None:
    with pytest.raises(DataError, match=f"column '{name}' must have another name"):
        merge(features(name), softmax(1), classes=["only"])


def test_parts_that_do_not_fit_are_refused() -> None:
    other = softmax(1)
    other.opset_import[0].version = 17
    with pytest.raises(DataError, match="must fit together"):
        merge(features("a"), other, classes=["only"])


def test_the_same_parts_give_the_same_bytes() -> None:
    made = {to_bytes(merge(features("a", "b"), softmax(2), classes=["x", "y"])) for _ in range(3)}
    assert len(made) == 1


def test_the_signature_says_what_the_graph_answers() -> None:
    assert outputs([True, False])[1]["type"] == "boolean"
    assert outputs([0, 1, 2]) == [
        {"name": "probability", "type": "float32", "shape": [-1, 3]},
        {"name": "prediction", "type": "int64", "shape": [-1]},
    ]
    assert outputs(None, width=4) == [{"name": "prediction", "type": "float32", "shape": [-1, 4]}]
