"""Rows in any form as graph inputs: every type, every null, every kind of wrong value."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper

from tidemill.core.errors import DataError
from tidemill.core.graph import IR_VERSION, MAX_FIXED_WIDTH, OPSETS, BulkGraph, Graph, RowSignature
from tidemill.core.schema import NULL_BOOLEAN, NULL_STRING, NULL_TIMESTAMP, VALID_SUFFIX, Column, ColumnType, Schema

TYPES: tuple[ColumnType, ...] = ("boolean", "int64", "float32", "float64", "string", "timestamp")
NOON = 1_370_088_000_000_000
DTYPES = {
    "boolean": np.dtype("uint8"), "int64": np.dtype("int64"), "float32": np.dtype("float32"),
    "float64": np.dtype("float64"), "timestamp": np.dtype("int64"),
}  # fmt: skip


def _signature(kind: ColumnType, *, nullable: bool = True) -> RowSignature:
    return RowSignature(Schema((Column(name="x", type=kind, nullable=nullable),)))


def _records(kind: ColumnType, *values: Any, nullable: bool = True) -> dict[str, np.ndarray]:
    return _signature(kind, nullable=nullable).from_records([{"x": value} for value in values])


def _arrow(kind: ColumnType, array: Any, *, nullable: bool = True) -> dict[str, np.ndarray]:
    return _signature(kind, nullable=nullable).from_arrow(pa.record_batch({"x": array}))


def _plain(inputs: dict[str, np.ndarray]) -> list[Any]:
    return inputs["x"].ravel().tolist()


RECORDS: list[tuple[ColumnType, list[Any], list[Any]]] = [
    ("boolean", [True, False, None], [1, 0, NULL_BOOLEAN]),
    ("int64", [0, -1, 2**63 - 1, -(2**63), 2**53 + 1, 3.0], [0, -1, 2**63 - 1, -(2**63), 2**53 + 1, 3]),
    ("float32", [1, 0.1, float("inf")], [1.0, float(np.float32(0.1)), float("inf")]),
    ("float64", [1, 0.1, -1e308, float("-inf"), 2**60], [1.0, 0.1, -1e308, float("-inf"), float(2**60)]),
    ("string", ["", "a", "航空", "\U0001f680", None, "\0", "a\0"], ["", "a", "航空", "\U0001f680", NULL_STRING, "\0", "a\0"]),
    ("timestamp", ["2013-06-01T12:00:00Z", "2013-06-01T12:00:00", "2013-06-01 14:00+02:00", NOON, None], [NOON, NOON, NOON, NOON, NULL_TIMESTAMP]),
    ("timestamp", ["2013-06-01", "1969-12-31T23:59:59.999999Z", "0001-01-01", "9999-12-31T23:59:59.999999"],
     [NOON - 43_200_000_000, -1, -62_135_596_800_000_000, 253_402_300_799_999_999]),
    ("timestamp", [dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC), dt.date(2013, 6, 1)], [NOON, NOON - 43_200_000_000]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "expected"), RECORDS)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_records(kind: ColumnType, values: list[Any], expected: list[Any]) -> None:
    inputs = _records(kind, *values)
    assert inputs["x"].shape == (len(values), 1)
    assert _plain(inputs) == expected
    if kind != "string":
        assert inputs["x"].dtype == DTYPES[kind]


@pytest.mark.parametrize("kind", TYPES)
def test_null_in_every_form(kind: ColumnType) -> None:
    array = pa.nulls(2, _signature(kind).schema.to_arrow().field(0).type)
    for inputs in (_records(kind, None, None), _arrow(kind, array), _arrow(kind, pa.nulls(2))):
        assert inputs["x"].shape == (2, 1)
        assert inputs.keys() == ({"x", "x" + VALID_SUFFIX} if kind == "int64" else {"x"})
        if kind == "int64":
            assert inputs["x" + VALID_SUFFIX].ravel().tolist() == [False, False]
        elif kind in ("float32", "float64"):
            assert np.isnan(inputs["x"]).all()
        else:
            assert _plain(inputs) == [{"boolean": NULL_BOOLEAN, "string": NULL_STRING, "timestamp": NULL_TIMESTAMP}[kind]] * 2


@pytest.mark.parametrize("kind", TYPES)
def test_no_rows(kind: ColumnType) -> None:
    for inputs in (_records(kind), _arrow(kind, pa.array([], _signature(kind).schema.to_arrow().field(0).type))):
        assert inputs["x"].shape == (0, 1)


def test_validity_is_an_input_only_where_null_may_be() -> None:
    assert _records("int64", 1, None)["x" + VALID_SUFFIX].ravel().tolist() == [True, False]
    assert _records("int64", 1, nullable=False).keys() == {"x"}
    assert _arrow("int64", pa.array([1, 2]), nullable=False).keys() == {"x"}


@pytest.mark.parametrize(
    ("kind", "value"), [("int64", 1), ("float64", 1.0), ("float32", 1.0), ("string", "a"), ("boolean", True), ("timestamp", 1)]
)
def test_null_is_refused_where_the_model_never_saw_one(kind: ColumnType, value: Any) -> None:
    with pytest.raises(DataError, match="'x' must not be null, is in row 1"):
        _records(kind, value, None, nullable=False)
    signature = RowSignature(Schema((Column(name="x", type=kind, nullable=False),)))
    with pytest.raises(DataError, match="'x' must not be null, is in row 0"):
        signature.from_record({"x": None})
    with pytest.raises(DataError, match="'x' must not be null, is in 1 rows"):
        _arrow(kind, pa.array([value, None]).cast(Schema(signature.schema.columns).to_arrow().field(0).type), nullable=False)


def test_a_number_beyond_float32_is_refused() -> None:
    with pytest.raises(DataError, match="'x' must be a number within float32, got 1e"):
        _records("float32", 1e308)
    with pytest.raises(DataError, match="'x' must be a number within float32, got 1e"):
        RowSignature(Schema((Column(name="x", type="float32"),))).from_record({"x": 1e308})


WRONG: list[tuple[ColumnType, Any, str]] = [
    ("boolean", 1, "true, false or null, got 1"), ("boolean", "true", "got 'true'"), ("boolean", [], "got \\[\\]"),
    ("int64", 1.5, "a whole number of 64 bits or null, got 1.5"), ("int64", 2**63, "got 9223372036854775808"), ("int64", True, "got True"),
    ("int64", "1", "got '1'"), ("int64", float("nan"), "got nan"), ("int64", float("inf"), "got inf"), ("int64", {}, "got {}"),
    ("int64", 1e300, "whole number of 64 bits"),
    ("float64", "1.0", "a number or null, got '1.0'"), ("float64", True, "got True"), ("float64", 10**400, "within float64"),
    ("float32", [1.0], "got \\[1.0\\]"), ("float64", {"a": 1}, "got {'a': 1}"),
    ("string", 1, "text or null, got 1"), ("string", b"a", "got b'a'"), ("string", True, "got True"), ("string", ["a"], "got \\['a'\\]"),
    ("string", "\ud800", "valid Unicode"),
    ("timestamp", "yesterday", "ISO 8601 time, microseconds since 1970 or null, got 'yesterday'"), ("timestamp", 1.5, "got 1.5"),
    ("timestamp", "2013-13-01", "got '2013-13-01'"), ("timestamp", True, "got True"), ("timestamp", 2**63, "got 9223372036854775808"),
    ("timestamp", "", "got ''"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "message"), WRONG)
def test_a_wrong_value_is_named_with_its_field_and_row(kind: ColumnType, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _records(kind, None, value)
    assert caught.value.field == "x"
    if "Unicode" not in message:
        assert "in row 1" in str(caught.value)


def test_a_long_wrong_value_is_shortened() -> None:
    with pytest.raises(DataError) as caught:
        _records("float64", "y" * 10_000)
    assert len(caught.value.message) < 200


def test_records_that_are_none() -> None:
    signature = RowSignature(Schema((Column(name="distance", type="float64"), Column(name="stops", type="int64"))))
    with pytest.raises(DataError, match="field 'stops' must be given; did you mean 'stop'") as caught:
        signature.from_records([{"distance": 1, "stops": 1}, {"distance": 1, "stop": 1}])
    assert caught.value.field == "stops"
    for record in (None, 1, [1, 2]):
        with pytest.raises(DataError, match="every record must be an object of fields"):
            signature.from_records([record])  # type: ignore[list-item]
    assert "other" not in signature.from_records([{"distance": 1, "stops": 1, "other": object()}]), "what is not asked for is ignored"


@pytest.mark.parametrize("width", [MAX_FIXED_WIDTH, MAX_FIXED_WIDTH + 1])
def test_texts_keep_every_character_whatever_array_holds_them(width: int) -> None:
    for text in ("x" * width, "x\0" * (width // 2), "é" * width, " " * width, NULL_STRING):
        assert _plain(_records("string", text, "short")) == [text, "short"]


ARROW: list[tuple[ColumnType, Any, list[Any]]] = [
    ("boolean", pa.array([True, None, False]), [1, 2, 0]),
    ("int64", pa.array([1, 255], pa.uint8()), [1, 255]), ("int64", pa.array([2**63 - 1], pa.uint64()), [2**63 - 1]),
    ("float32", pa.array([1, 2], pa.int16()), [1.0, 2.0]), ("float32", pa.array([0.5], pa.float16()), [0.5]),
    ("float32", pa.array([0.1], pa.float64()), [float(np.float32(0.1))]),
    ("float64", pa.array([decimal.Decimal("1.25")]), [1.25]), ("float64", pa.array([0.5], pa.float32()), [0.5]),
    ("float64", pa.array([2**53], pa.int64()), [2.0**53]),
    ("string", pa.array(["a", None], pa.large_string()), ["a", NULL_STRING]), ("string", pa.array(["a"], pa.string_view()), ["a"]),
    ("string", pa.array(["b", None, "b"]).dictionary_encode(), ["b", NULL_STRING, "b"]),
    ("timestamp", pa.array([dt.date(2013, 6, 1)]), [NOON - 43_200_000_000]),
    ("timestamp", pa.array([NOON // 1000], pa.timestamp("ms")), [NOON]),
    ("timestamp", pa.array([NOON], pa.timestamp("us", tz="America/New_York")), [NOON]),
    ("timestamp", pa.array([NOON * 1000], pa.timestamp("ns")), [NOON]), ("timestamp", pa.array([86_400_000, None], pa.date64()), [86_400_000_000, NULL_TIMESTAMP]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "array", "expected"), ARROW, ids=lambda value: str(getattr(value, "type", "")))
def test_arrow_types_are_narrowed(kind: ColumnType, array: Any, expected: list[Any]) -> None:
    assert _plain(_arrow(kind, array)) == expected
    table = pa.table({"other": array, "x": pa.chunked_array([array.slice(0, 1), array.slice(1)])})
    assert _plain(_signature(kind).from_arrow(table)) == expected


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("boolean", pa.array([1]), "must be boolean, got int64"),
        ("int64", pa.array([1.0]), "must be int64, got double"),
        ("int64", pa.array([2**63], pa.uint64()), "must be int64: .*9223372036854775808"),
        ("float64", pa.array(["1"]), "must be float64, got string"),
        ("float64", pa.array([True]), "must be float64, got bool"),
        ("float64", pa.array([2**53 + 1]), "must be float64: "),
        ("string", pa.array([1]), "must be string, got int64"),
        ("string", pa.array([b"a"]), "must be string, got binary"),
        ("timestamp", pa.array([1]), "must be timestamp, got int64"),
        ("timestamp", pa.array(["2013-06-01"]), "must be timestamp, got string"),
        ("float64", pa.array([[1.0]]), "must be float64, got list"),
    ],
)
def test_arrow_types_that_do_not_fit(kind: ColumnType, array: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"column 'x' {message}") as caught:
        _arrow(kind, array)
    assert caught.value.field == "x"


def test_an_arrow_column_that_is_missing() -> None:
    with pytest.raises(DataError, match="field 'x' must be given"):
        _signature("int64").from_arrow(pa.record_batch({"y": [1]}))


TENSORS: list[tuple[ColumnType, Any, list[Any]]] = [
    ("boolean", np.array([True, False]), [1, 0]), ("boolean", np.array([0, 1, 2], np.uint8), [0, 1, 2]),
    ("int64", np.array([[1], [2]], np.int8), [1, 2]), ("int64", np.array([2**63 - 1], np.uint64), [2**63 - 1]),
    ("float32", np.array([1, 2], np.int32), [1.0, 2.0]), ("float64", np.array([0.5], np.float16), [0.5]),
    ("string", np.array([b"a", "\u00e9".encode()], object), ["a", "\u00e9"]), ("string", np.array(["a", None], object), ["a", NULL_STRING]),
    ("string", np.array(["abc", "d"]), ["abc", "d"]), ("string", np.array([b"ab", b"c"]), ["ab", "c"]),
    ("timestamp", np.array([NOON, NULL_TIMESTAMP]), [NOON, NULL_TIMESTAMP]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "tensor", "expected"), TENSORS)
def test_tensors(kind: ColumnType, tensor: Any, expected: list[Any]) -> None:
    inputs = _signature(kind).from_tensors({"x": tensor, "other": np.zeros(99)})
    assert _plain(inputs) == expected
    assert inputs["x"].shape == (len(expected), 1)
    if kind == "int64":
        assert inputs["x" + VALID_SUFFIX].all(), "all are valid where nothing else is said"


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        ("int64", {}, "field 'x' must be given"),
        ("int64", {"x": np.array([1.0])}, "must be int64, got float64"),
        ("int64", {"x": np.array([2**63], np.uint64)}, "must fit in int64, got 9223372036854775808"),
        ("int64", {"x": np.array([True])}, "must be int64, got bool"),
        ("boolean", {"x": np.array([3], np.uint8)}, "must be 0, 1 or 2 \\(null\\), got 3"),
        ("boolean", {"x": np.array([1])}, "must be boolean, got int64"),
        ("float32", {"x": np.array(["1"])}, "must be float32, got <U1"),
        ("float32", {"x": np.zeros((2, 2))}, "shape \\[N\\] or \\[N, 1\\], got \\[2, 2\\]"),
        ("float32", {"x": np.float32(1.0)}, "shape \\[N\\] or \\[N, 1\\], got \\[\\]"),
        ("string", {"x": np.array([1])}, "must be text, got int64"),
        ("string", {"x": np.array([1], object)}, "text or null, got 1 in row 0"),
        ("string", {"x": np.array([b"\xff"], object)}, "must be UTF-8"),
        ("timestamp", {"x": np.array([1.5])}, "must be timestamp, got float64"),
        ("int64", {"x": np.array([1, 2]), "x__valid": np.array([True])}, "'x__valid' must hold 2 rows, got 1"),
    ],
)
def test_tensors_that_do_not_fit(kind: ColumnType, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _signature(kind).from_tensors(tensors)
    assert caught.value.field


def test_tensors_of_different_lengths() -> None:
    signature = RowSignature(Schema((Column(name="a", type="float64"), Column(name="b", type="float64"))))
    with pytest.raises(DataError, match="input 'b' must hold 2 rows like the others, got 3"):
        signature.from_tensors({"a": np.zeros(2), "b": np.zeros(3)})


def test_tensors_say_what_is_valid() -> None:
    inputs = _signature("int64").from_tensors({"x": np.array([1, 2]), "x__valid": np.array([[True], [False]])})
    assert inputs["x" + VALID_SUFFIX].ravel().tolist() == [True, False]


@pytest.mark.parametrize("form", ["records", "arrow", "tensors"])
def test_column_names_may_be_anything(form: str) -> None:
    names = ["a.b", "q\"uo'te", "\U0001f680", "tab\tnew\nline", " ", "class", "名"]
    signature = RowSignature(Schema(tuple(Column(name=name, type="float64") for name in names)))
    make: dict[str, Callable[[], dict[str, np.ndarray]]] = {
        "records": lambda: signature.from_records([dict.fromkeys(names, 1.0)]),
        "arrow": lambda: signature.from_arrow(pa.record_batch({name: [1.0] for name in names})),
        "tensors": lambda: signature.from_tensors({name: np.array([1.0]) for name in names}),
    }
    assert list(make[form]()) == names


def test_both_graphs_give_the_same_and_errors_name_the_column() -> None:
    schema = Schema((Column(name="carrier", type="string"), Column(name="distance", type="float64")))
    model = _codes(schema)
    batch = pa.record_batch({"carrier": ["UA", None, "DL", "UA", "", "new"], "distance": [1.0, None, 3.0, 4.0, 5.0, 6.0]})
    graph, bulk = Graph(model, schema), BulkGraph(model, schema, threads=2)
    assert graph.outputs == bulk.outputs == ["sum"]
    one = graph.run(graph.signature.from_arrow(batch))["sum"]
    assert one.ravel()[[0, 2, 3, 4, 5]].tolist() == [11.0, 23.0, 14.0, 5.0, 6.0]
    for part in (batch, batch.slice(1, 3), batch.slice(0, 0)):
        assert np.array_equal(bulk.run(part)["sum"], graph.run(graph.signature.from_arrow(part))["sum"], equal_nan=True)
    encoded = batch.set_column(0, "carrier", batch.column(0).dictionary_encode())
    assert np.array_equal(bulk.run(encoded)["sum"], one, equal_nan=True)
    with pytest.raises(DataError, match="column 'distance' must be float64, got string"):
        bulk.run(pa.record_batch({"carrier": ["UA"], "distance": ["far"]}))


def test_a_graph_that_cannot_be_loaded() -> None:
    with pytest.raises(DataError, match="the graph must load in ONNX Runtime"):
        Graph(b"not a graph", Schema(()))


def _codes(schema: Schema) -> bytes:
    """distance + the code of the carrier: UA 10, DL 20, null 30, others 0."""
    nodes = [
        helper.make_node(
            "LabelEncoder", ["carrier"], ["code"], domain="ai.onnx.ml",
            keys_strings=["UA", "DL", NULL_STRING], values_floats=[10.0, 20.0, 30.0], default_float=-0.0,
        ),
        helper.make_node("Cast", ["code"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Add", ["wide", "distance"], ["sum"]),
    ]  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("carrier", TensorProto.STRING, ["N", 1]),
        helper.make_tensor_value_info("distance", TensorProto.DOUBLE, ["N", 1]),
    ]
    graph = helper.make_graph(nodes, "codes", inputs, [helper.make_tensor_value_info("sum", TensorProto.DOUBLE, ["N", 1])])
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
