"""Features that are left out: they leave no trace in the graph, and the reference agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest

from tidemill.core.errors import DataError, NotFound
from tidemill.core.schema import Schema
from tidemill.features.graph import build_graph, leave_out
from tidemill.features.reference import features as reference
from tidemill.features.stage import fit_table
from tidemill.testing.operator import routes

TABLE = pa.table(
    {
        "a": pa.array([1.0, None, 3.0, 5.0] * 5),
        "b": pa.array([2.0, 7.0, None, 1.0] * 5),
        "i": pa.array([1, 2, 3, None] * 5),
        "city": pa.array(["x", "y", None, "z"] * 5),
        "other": pa.array(["p", "q", "q", "r"] * 5),
        "code": pa.array([f"c{i % 18}" for i in range(20)]),
    }
)
FEATURES: dict[str, Any] = {
    "a": ["impute", "standardize"],
    "b": ["impute", "standardize"],
    "code": [{"op": "vocabulary", "min_count": 1}],
}


@pytest.mark.parametrize(
    "left_out",
    [
        ["a"],
        ["a.missing"],
        ["a", "a.missing"],
        ["city=x", "city=(null)"],
        ["city=x", "city=y", "city=z", "city=(null)", "other=q"],
        ["i", "code", "b.missing", "a"],
    ],
)
def test_what_is_left_is_as_it_was(left_out: list[str]) -> None:
    whole, graph = fit_table(TABLE, FEATURES)
    expected = dict(zip(whole["names"], reference(whole, TABLE).T, strict=True))
    less = leave_out(whole, dict.fromkeys(left_out, "weak"))
    made, names = build_graph(less)
    assert names == less["names"] == [name for name in whole["names"] if name not in left_out]
    wanted = np.stack([expected[name] for name in names], axis=1)
    np.testing.assert_array_equal(reference(less, TABLE), wanted)
    for answer in routes(made, Schema.from_json(less["inputs"]), TABLE).values():
        np.testing.assert_allclose(answer, wanted, rtol=2.4e-7)
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
    assert len(onnx.load_from_string(made).graph.node) <= len(onnx.load_from_string(graph).graph.node) + 2


def test_a_column_without_features_left_is_no_input() -> None:
    whole, _ = fit_table(TABLE, FEATURES)
    less = leave_out(whole, {"code": "weak", "city=x": "too like y", "i": "constant"})
    names = [column["name"] for column in less["inputs"]]
    assert names == ["a", "b", "city", "other"]
    assert list(less["columns"]) == names
    assert less["dropped"] == {"code": "weak", "i": "constant"}
    assert less["left_out"] == {"code": "weak", "city=x": "too like y", "i": "constant"}
    graph = onnx.load_from_string(build_graph(less)[0]).graph
    assert [value.name for value in graph.input] == names
    # Nothing of the vocabulary is left behind.
    assert sum(node.op_type == "LabelEncoder" for node in graph.node) == 2


def test_leaving_out_twice_is_leaving_out_both() -> None:
    whole, _ = fit_table(TABLE, FEATURES)
    twice = leave_out(leave_out(whole, {"a": "weak", "city=x": "weak"}), {"a.missing": "rare", "city=y": "weak"})
    once = leave_out(whole, {"a": "weak", "city=x": "weak", "a.missing": "rare", "city=y": "weak"})
    assert build_graph(twice) == build_graph(once)
    assert twice["inputs"] == once["inputs"]
    assert twice["left_out"] == {"a": "weak", "city=x": "weak", "a.missing": "rare", "city=y": "weak"}


def test_what_cannot_be_left_out_is_named() -> None:
    whole, _ = fit_table(TABLE, FEATURES)
    with pytest.raises(NotFound, match="feature 'city=w' is not known"):
        leave_out(whole, {"city=w": "weak"})
    with pytest.raises(DataError, match="at least one feature must be left"):
        leave_out(whole, dict.fromkeys(whole["names"], "weak"))
