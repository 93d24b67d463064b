"""Row, batch and dictionary-encoded bulk agree with each other and with plain NumPy, for whatever values there are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.errors import DataError
from tidemill.core.graph import Graph
from tidemill.core.schema import Column, Schema
from tidemill.features.reference import features as reference
from tidemill.features.stage import fit_table
from tidemill.testing.operator import AWKWARD, INT64_MAX, INT64_MIN, routes

PARTS = ["year", "quarter", "month", "day", "weekday", "weekend", "day_of_year", "hour", "minute", "second"]
NUMBER_CHAINS: list[list[Any]] = [
    [],
    ["impute"],
    ["impute", "standardize"],
    [{"op": "impute", "strategy": "most_frequent", "indicator": True}, "log"],
    ["log", "standardize"],
    [{"op": "clip", "min": -1, "max": 1e6}],
    [{"op": "clip", "low_quantile": 0.25, "high_quantile": 0.75}, "impute"],
    ["bin"],
    [{"op": "bin", "by": "uniform", "bins": 3}, "one_hot"],
]
CATEGORY_CHAINS: list[list[Any]] = [
    ["one_hot"],
    [{"op": "one_hot", "max_categories": 2}],
    [{"op": "one_hot", "min_count": 2}],
    ["vocabulary"],
    [{"op": "vocabulary", "min_count": 1, "max_size": 3}, "standardize"],
]
TEXT_CHAINS: list[list[Any]] = [
    *CATEGORY_CHAINS,
    ["impute", "one_hot"],
    [{"op": "impute", "strategy": "constant", "value": "?"}, "vocabulary"],
]
TIME_CHAINS: list[list[Any]] = [
    ["date_parts"],
    [{"op": "date_parts", "parts": PARTS}],
    [{"op": "date_parts", "parts": PARTS, "timezone": "America/New_York"}],
    [{"op": "date_parts", "parts": ["hour", "weekday"], "timezone": "Australia/Lord_Howe"}, "one_hot"],
]
CHAINS: dict[str, list[list[Any]]] = {
    "boolean": [*NUMBER_CHAINS, *CATEGORY_CHAINS],
    "int64": [*NUMBER_CHAINS, *CATEGORY_CHAINS],
    "float32": NUMBER_CHAINS,
    "float64": NUMBER_CHAINS,
    "string": TEXT_CHAINS,
    "timestamp": TIME_CHAINS,
}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "int64": st.sampled_from(AWKWARD["int64"]) | st.integers(-3, 3) | st.integers(INT64_MIN, INT64_MAX),
    "float32": st.sampled_from(AWKWARD["float32"]) | st.floats(width=32),
    "float64": st.sampled_from(AWKWARD["float64"]) | st.floats() | st.integers(-3, 3).map(float),
    "string": st.sampled_from([*AWKWARD["string"], "\uffff"]) | st.text(st.characters(codec="utf-8"), max_size=4),
    "timestamp": st.sampled_from(AWKWARD["timestamp"]) | st.integers(INT64_MIN + 1, INT64_MAX) | st.integers(-(2**52), 2**52),
}


@st.composite
def tables(draw: st.DrawFn, rows: int, kinds: dict[str, str], nullable: dict[str, bool]) -> pa.Table:
    columns = {}
    for name, kind in kinds.items():
        values = VALUES[kind] | st.none() if nullable[name] else VALUES[kind]
        picked = draw(st.lists(values, min_size=rows, max_size=rows))
        target = Schema((Column(name=name, type=kind),)).to_arrow().field(0).type  # type: ignore[arg-type]
        columns[name] = pa.array(picked, pa.int64()).cast(target) if kind == "timestamp" else pa.array(picked, target)
    fields = [pa.field(name, column.type, nullable=nullable[name]) for name, column in columns.items()]
    return pa.table(columns, schema=pa.schema(fields))


@st.composite
def cases(draw: st.DrawFn) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Rows to fit on, other rows to answer for, and chains."""
    kinds = {f"c{i}": kind for i, kind in enumerate(draw(st.lists(st.sampled_from(list(CHAINS)), min_size=1, max_size=5)))}
    nullable = {name: draw(st.booleans()) for name in kinds}
    chains = {name: draw(st.sampled_from(CHAINS[kind])) for name, kind in kinds.items() if draw(st.integers(0, 3))}
    chains = {name: chain for name, chain in chains.items() if chain or kinds[name] not in ("string", "timestamp")}
    seen = draw(tables(draw(st.integers(2, 20)), kinds, nullable))
    asked = draw(tables(draw(st.integers(1, 12)), kinds, nullable))
    return seen, asked, chains


@given(cases())
def test_every_route_equals_the_reference(case: tuple[pa.Table, pa.Table, dict[str, Any]]) -> None:
    seen, asked, chains = case
    if all(is_constant(column) for column in seen.columns):
        with pytest.raises(DataError, match="at least one column"):
            fit_table(seen, chains)
        return
    description, graph = fit_table(seen, chains)
    description = json.loads(json.dumps(description, allow_nan=False))
    for table in (seen, asked, pa.concat_tables([asked, seen])):
        expected = reference(description, table)
        answers = routes(graph, Schema.from_json(description["inputs"]), table)
        for route, answer in answers.items():
            np.testing.assert_allclose(answer, expected, rtol=2.4e-7, atol=1e-16, equal_nan=True, err_msg=route)


def is_constant(column: pa.ChunkedArray) -> bool:
    values = (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
    return len({None if value is None or value != value or value == "\uffff" else value for value in values}) == 1


@pytest.mark.parametrize("index", [pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint32(), pa.int64()])
def test_dictionaries_of_any_index_and_shape(index: pa.DataType) -> None:
    words = ["b", "a", None, "\uffff", "new", "", "a"]
    seen = pa.table({"s": ["a", "b", None, "a", ""] * 3})
    description, graph = fit_table(seen, {"s": ["vocabulary"]})
    places = pa.array([0, 1, 2, None, 3, 4, 5, 6], index)
    coded = pa.table({"s": pa.DictionaryArray.from_arrays(places, pa.array(words))})
    plain = pa.table({"s": pa.array([None if place is None else words[place] for place in places.to_pylist()])})
    expected = reference(description, plain)
    for answer in (*routes(graph, Schema.from_json(description["inputs"]), coded).values(), reference(description, coded)):
        np.testing.assert_array_equal(answer, expected)


def test_a_full_small_dictionary_with_a_null_beyond_it() -> None:
    words = [f"w{i}" for i in range(128)]
    description, graph = fit_table(pa.table({"s": words * 2}), {"s": ["vocabulary"]})
    coded = pa.table({"s": pa.DictionaryArray.from_arrays(pa.array([*range(128), None], pa.int8()), pa.array(words))})
    answers = routes(graph, Schema.from_json(description["inputs"]), coded)
    for answer in answers.values():
        np.testing.assert_array_equal(answer[:, 0], reference(description, coded)[:, 0])
    assert answers["bulk"][-1, 0] == 129


def test_batches_that_share_a_dictionary_and_others_between() -> None:
    from tidemill.core.graph import BulkGraph

    description, graph = fit_table(pa.table({"s": list("aabbbcd"), "t": list("xyzxyzx")}), {name: ["vocabulary"] for name in "st"})
    bulk = BulkGraph(graph, Schema.from_json(description["inputs"]))

    def batch(s: list[str | None], t: list[str | None]) -> pa.RecordBatch:
        return pa.record_batch({"s": pa.array(s).dictionary_encode(), "t": pa.array(t).dictionary_encode()})

    for s, t in [("ab", "xy"), ("ab", "zz"), ("ba", "zz"), ("bab", "xyz"), ("ab", "xy")]:
        rows = batch(list(s), list(t))
        np.testing.assert_array_equal(bulk.run(rows)["features"], reference(description, pa.table(rows)))
    empty = batch(["a"], ["x"]).slice(0, 0)
    assert bulk.run(empty)["features"].shape == (0, 2)


def test_a_large_batch_goes_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from tidemill.core import graph as core_graph

    monkeypatch.setattr(core_graph, "ROWS_AT_ONCE", 8)
    table = pa.table({"x": [None, *map(float, range(99))], "s": [f"v{i % 30}" for i in range(100)], "i": pa.array([None, *range(99)])})
    description, graph = fit_table(table, {"x": ["impute", "standardize"]})
    for threads in (1, 3):
        bulk = core_graph.BulkGraph(graph, Schema.from_json(description["inputs"]), threads=threads)
        for rows in (100, 97, 16, 15, 0):
            answer = bulk.run(table.slice(0, rows).combine_chunks().to_batches()[0] if rows else table.to_batches()[0].slice(0, 0))
            np.testing.assert_array_equal(answer["features"], reference(description, table.slice(0, rows)))


def test_outputs_without_a_row_for_each_row_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    from onnx import TensorProto, helper

    from tidemill.core import graph as core_graph

    monkeypatch.setattr(core_graph, "ROWS_AT_ONCE", 2)
    nodes = [helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0), helper.make_node("Neg", ["x"], ["minus"])]
    x = helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, 1])
    outputs = [
        helper.make_tensor_value_info("total", TensorProto.DOUBLE, []),
        helper.make_tensor_value_info("minus", TensorProto.DOUBLE, [None, 1]),
    ]
    opsets = [helper.make_opsetid(domain, version) for domain, version in core_graph.OPSETS.items()]
    model: onnx.ModelProto = helper.make_model(
        helper.make_graph(nodes, "g", [x], outputs), opset_imports=opsets, ir_version=core_graph.IR_VERSION
    )
    answer = core_graph.BulkGraph(model.SerializeToString(), Schema((Column(name="x", type="float64"),))).run(
        pa.record_batch({"x": [1.0, 2.0, 3.0, 4.0, 5.0]})
    )
    assert answer["total"] == 15.0
    assert answer["minus"].ravel().tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0]


def test_the_longer_way_into_the_runtime_answers_the_same() -> None:
    table = pa.table({"x": [1.0, None, 3.0], "s": ["a", None, "b"]})
    description, content = fit_table(table)
    graph = Graph(content, Schema.from_json(description["inputs"]))
    assert graph.runtime._runs[True] is not None, "ONNX Runtime changed within: measure what a row takes now"
    quick = graph.run(graph.signature.from_arrow(table))["features"]
    with pytest.raises(ValueError, match=r"Required inputs .*'s'.* are missing"):
        graph.run({"x": np.zeros((1, 1))})
    graph.runtime._runs.clear()
    np.testing.assert_array_equal(graph.run(graph.signature.from_arrow(table))["features"], quick)
