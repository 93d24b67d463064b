"""Tiny packages with answers that can be worked out by hand, for tests of whatever runs packages. Needs `onnx`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tidemill.core.graph import IR_VERSION, NUMPY_TYPES, OPSETS
from tidemill.core.package import Package, write
from tidemill.core.schema import NULL_TIMESTAMP, VALID_SUFFIX, Column, Schema

TinyTask = Literal["binary", "multiclass", "regression", "interval", "text", "embedding"]

COLUMNS = Schema(
    (
        Column(name="distance", type="float64"),
        Column(name="fare", type="float32"),
        Column(name="seats", type="int64"),
        Column(name="carrier", type="string"),
        Column(name="weekend", type="boolean"),
        Column(name="departs", type="timestamp"),
    )
)
TEXT = Schema((Column(name="text", type="string", nullable=False),))

EXAMPLE = {"distance": 1400.0, "fare": 12.5, "seats": 3, "carrier": "UA", "weekend": True, "departs": "2013-06-01T19:30:00Z"}
TEXT_EXAMPLE = {"text": "great"}

_CARRIERS = {"UA": 1.0, "DL": -1.0, "航空": 0.25}
_TEXTS = {"great": 3.0, "awful": -3.0}
_CLASSES: dict[str, list[Any] | None] = {
    "binary": [False, True], "multiclass": ["high", "low", "mid"], "regression": None, "interval": None, "text": ["NEGATIVE", "POSITIVE"], "embedding": None,
}  # fmt: skip


def tiny_package(
    path: Path,
    *,
    task: TinyTask = "binary",
    name: str = "tiny",
    version: str | None = None,
    classes: Sequence[Any] | None = None,
    promises: Sequence[Mapping[str, Any]] = (),
    evidence: Mapping[str, Any] | None = None,
) -> Package:
    """A package of one hand-made graph at `path`: six columns of the six types, or one text.

    Args:
        task: `interval` is a regression with an interval from 1 below to 2 above, `text` is a text classifier, `embedding` one
            text to four numbers.
        version: The ledger's number that the opened package is to carry.
        classes: Labels in place of the task's own, as many of them.
        promises: What `contract.json` holds.
        evidence: Measurements by name, as `Package.evidence` gives them.
    """
    kind = "text" if task in ("text", "embedding") else "row"
    labels = list(classes) if classes is not None else _CLASSES[task]
    outputs = [{"name": "probability", "type": "float32"}] if labels else [{"name": "prediction", "type": "float32"}]
    signature: dict[str, Any] = {
        "kind": kind,
        "inputs": (TEXT if kind == "text" else COLUMNS).to_json(),
        "outputs": outputs,
        "example": TEXT_EXAMPLE if kind == "text" else EXAMPLE,
    }
    if labels:
        signature["classes"] = labels
    if task == "interval":
        signature["interval"] = 0.9
        outputs.append({"name": "interval", "type": "float32"})
    documents: dict[str, Any] = {"contract.json": {"promises": [dict(promise) for promise in promises]}, "card.md": f"# {name}\n"}
    documents |= {f"evidence/{key}.json": value for key, value in (evidence or {}).items()}
    graph = {
        "binary": _binary,
        "multiclass": _multiclass,
        "regression": _regression,
        "interval": _interval,
        "text": _binary,
        "embedding": _embedding,
    }[task]
    made = write(
        path,
        name=name,
        task={"text": "binary", "interval": "regression"}.get(task, task),
        signature=signature,
        files={"full.onnx": graph(kind)},
        documents=documents,
        lineage={},
    )
    return Package(made.path, made.manifest, version)


def tiny_score(record: Mapping[str, Any]) -> float:
    """What the tiny graph computes of a record before its link function, in plain Python."""
    if "text" in record:
        return _TEXTS.get(record["text"], 0.0)
    score = 0.001 * (record["distance"] or 0.0) + 0.01 * (record["fare"] or 0.0) - 0.1 * (record["seats"] or 0)
    score += _CARRIERS.get(record["carrier"], 0.0) + (0.5 if record["weekend"] else 0.0)
    departs = record["departs"]
    if departs is not None:
        score += 0.3 if int(str(departs)[11:13]) >= 18 else 0.0
    return score


def tiny_probability(record: Mapping[str, Any]) -> float:
    """What a tiny binary package answers for a record: the probability of its second class."""
    return 1 / (1 + math.exp(-tiny_score(record)))


def _binary(kind: str) -> bytes:
    nodes, constants = _score(kind)
    nodes += [
        _node("Sigmoid", ["score"], ["positive"]),
        _node("Sub", ["one", "positive"], ["negative"]),
        _node("Concat", ["negative", "positive"], ["probability"], axis=1),
    ]
    return _model(kind, nodes, {**constants, "one": _floats([[1]])}, "probability", [None, 2])


def _multiclass(kind: str) -> bytes:
    nodes, constants = _score(kind)
    nodes += [
        _node("Neg", ["score"], ["minus"]),
        _node("Sub", ["score", "score"], ["zero"]),
        _node("Concat", ["score", "minus", "zero"], ["logits"], axis=1),
        _node("Softmax", ["logits"], ["probability"], axis=1),
    ]
    return _model(kind, nodes, constants, "probability", [None, 3])


def _regression(kind: str) -> bytes:
    nodes, constants = _score(kind)
    nodes.append(_node("Reshape", ["score", "flat"], ["prediction"]))
    return _model(kind, nodes, {**constants, "flat": _ints([-1])}, "prediction", [None])


def _interval(kind: str) -> bytes:
    nodes, constants = _score(kind)
    nodes += [_node("Reshape", ["score", "flat"], ["prediction"]), _node("Add", ["score", "ends"], ["interval"])]
    constants = {**constants, "flat": _ints([-1]), "ends": _floats([[-1, 2]])}
    return _model(kind, nodes, constants, "prediction", [None], more={"interval": [None, 2]})


def _embedding(kind: str) -> bytes:
    nodes, constants = _score(kind)
    nodes.append(_node("Mul", ["score", "direction"], ["prediction"]))
    return _model(kind, nodes, {**constants, "direction": _floats([[1, 0, -1, 0.5]])}, "prediction", [None, 4])


def _score(kind: str) -> tuple[list[Any], dict[str, np.ndarray]]:
    if kind == "text":
        return [_encoder("text", "score", _TEXTS)], {}
    constants = {
        "none": _floats([[0]]), "per_mile": _floats([[0.001]]), "per_unit": _floats([[0.01]]), "per_seat": _floats([[-0.1]]),
        "true": np.array([[1]], np.int32), "half": _floats([[0.5]]), "null_time": _ints([[NULL_TIMESTAMP]]), "hour": _ints([[3_600_000_000]]),
        "day": _ints([[24]]), "evening": _ints([[18]]), "third": _floats([[0.3]]),
    }  # fmt: skip
    nodes = [
        _node("Cast", ["distance"], ["miles"], to=1),
        _node("IsNaN", ["miles"], ["no_miles"]),
        _node("Where", ["no_miles", "none", "miles"], ["known_miles"]),
        _node("Mul", ["known_miles", "per_mile"], ["a"]),
        _node("IsNaN", ["fare"], ["no_fare"]),
        _node("Where", ["no_fare", "none", "fare"], ["known_fare"]),
        _node("Mul", ["known_fare", "per_unit"], ["b"]),
        _node("Cast", ["seats"], ["seats_float"], to=1),
        _node("Where", ["seats" + VALID_SUFFIX, "seats_float", "none"], ["known_seats"]),
        _node("Mul", ["known_seats", "per_seat"], ["c"]),
        _encoder("carrier", "d", _CARRIERS),
        _node("Cast", ["weekend"], ["weekend_int"], to=6),
        _node("Equal", ["weekend_int", "true"], ["is_weekend"]),
        _node("Where", ["is_weekend", "half", "none"], ["e"]),
        _node("Div", ["departs", "hour"], ["hours"]),
        _node("Mod", ["hours", "day"], ["hour_of_day"]),
        _node("Less", ["hour_of_day", "evening"], ["early"]),
        _node("Equal", ["departs", "null_time"], ["no_time"]),
        _node("Or", ["early", "no_time"], ["not_evening"]),
        _node("Where", ["not_evening", "none", "third"], ["f"]),
        _node("Sum", ["a", "b", "c", "d", "e", "f"], ["score"]),
    ]
    return nodes, constants


def _floats(values: list[Any]) -> np.ndarray:
    return np.array(values, np.float32)


def _ints(values: list[Any]) -> np.ndarray:
    return np.array(values, np.int64)


def _encoder(column: str, output: str, values: Mapping[str, float]) -> Any:
    return _node(
        "LabelEncoder", [column], [output], domain="ai.onnx.ml",
        keys_strings=list(values), values_floats=list(values.values()), default_float=0.0,
    )  # fmt: skip


def _node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, **attributes)


def _model(
    kind: str,
    nodes: list[Any],
    constants: Mapping[str, np.ndarray],
    output: str,
    shape: list[int | None],
    *,
    more: Mapping[str, list[int | None]] | None = None,
) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    inputs = []
    for column in TEXT if kind == "text" else COLUMNS:
        element = TensorProto.STRING if column.type == "string" else helper.np_dtype_to_tensor_dtype(np.dtype(NUMPY_TYPES[column.type]))
        inputs.append(helper.make_tensor_value_info(column.name, element, [None, 1]))
        if column.type == "int64" and column.nullable:
            inputs.append(helper.make_tensor_value_info(column.name + VALID_SUFFIX, TensorProto.BOOL, [None, 1]))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, of) for name, of in {output: shape, **(more or {})}.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    opsets = [helper.make_opsetid(domain, number) for domain, number in OPSETS.items()]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())
