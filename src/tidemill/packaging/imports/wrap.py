"""Any graph as a package's: raw columns in, `probability` and `prediction` out.

A model that takes one matrix becomes two graphs, the columns' and its own, merged; one that takes several inputs
becomes one graph. The model's own opsets are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tidemill.core.errors import Unsupported
from tidemill.core.graph import NUMPY_TYPES, OPSETS
from tidemill.core.load import need
from tidemill.core.schema import NULL_BOOLEAN, VALID_SUFFIX, Column, Schema
from tidemill.packaging import merge

if TYPE_CHECKING:
    import onnx

# Where, and Cast to and from text, are as they are used here from this opset on.
OLDEST_OPSET = 13

Form = Literal["probabilities", "positive", "value", "values"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Which tensor of a graph answers, and how: a probability for each class, that of the second class, a number, or several."""

    tensor: str
    form: Form
    classes: list[Any] | None = None


def wrap(model: onnx.ModelProto, wiring: Mapping[str, Sequence[Column]], answer: Answer) -> tuple[dict[str, bytes], Schema]:
    """The package's graphs by file name, and the raw columns that they take.

    Args:
        wiring: Each input of the model, and the columns that go into it side by side.
    """
    model = _modern(model)
    kinds = {value.name: value.type.tensor_type for value in model.graph.input}
    columns = [_fitting(column, kinds[name].elem_type) for name, group in wiring.items() for column in group]
    schema = Schema(tuple({column.name: column for column in columns}.values()))
    if len(wiring) > 1 or any(column.type in ("string", "timestamp") for column in schema):
        whole = _answering(model, wiring, answer, raw=schema)
        full = merge.with_labels(whole, answer.classes) if answer.classes is not None else merge.checked(whole)
        return {"full.onnx": merge.to_bytes(full)}, schema
    (name, group) = next(iter(wiring.items()))
    features = _columns_graph(schema, [column.name for column in group], kinds[name].elem_type, model)
    core = _answering(model, wiring, answer, raw=None)
    full = merge.merge(features, core, classes=answer.classes)
    graphs = {"features.onnx": features, "model.onnx": core, "full.onnx": full}
    return {file: merge.to_bytes(graph) for file, graph in graphs.items()}, schema


def wrap_one_input(model: onnx.ModelProto, name: str, called: str, answer: Answer) -> onnx.ModelProto:
    """The model with its one input under another name and only its answer left, under the package's name."""
    onnx = need("onnx", "importing a model")
    helper, compose = onnx.helper, need("onnx.compose", "importing a model")
    model = _modern(model)
    given = next(value.type.tensor_type for value in model.graph.input if value.name == name)
    inner = compose.add_prefix(model, "source/")
    after, more = _named_answer("source/" + answer.tensor, answer)
    output = merge.PREDICTION if answer.classes is None else merge.PROBABILITY
    shape = ["N"] if answer.classes is None and answer.form == "value" else ["N", len(answer.classes) if answer.classes else "D"]
    sizes = ["N", *(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in given.shape.dim[1:])]
    graph = helper.make_graph(
        _needed([helper.make_node("Identity", [called], ["source/" + name]), *inner.graph.node, *after], output),
        "model",
        [helper.make_tensor_value_info(called, given.elem_type, sizes)],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape)],
        [],
    )
    return _completed(graph, model, inner, more)


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an opset that the added nodes have.

    Raises:
        Unsupported: If it is too old and cannot be brought up.
    """
    helper = need("onnx.helper", "importing a model")
    converter = need("onnx.version_converter", "importing a model")
    versions = {entry.domain or "": entry.version for entry in model.opset_import}
    if "" not in versions:
        model.opset_import.append(helper.make_opsetid("", OPSETS[""]))
        return model
    if versions[""] >= OLDEST_OPSET:
        return model
    try:
        modern: onnx.ModelProto = converter.convert_version(model, OPSETS[""])
    except RuntimeError as error:
        raise Unsupported(
            f"the model must be in ONNX opset {OLDEST_OPSET} or later, is in {versions['']}", hint="export it anew from its library"
        ) from error
    return modern


def _fitting(column: Column, element: int) -> Column:
    """The column as the model's input can take it: whole numbers and times have no null beside NaN."""
    tensor = need("onnx", "importing a model").TensorProto
    floating = element in (tensor.FLOAT, tensor.DOUBLE, tensor.FLOAT16)
    return column if floating or column.type in ("string", "float32", "float64") else replace(column, nullable=False)


def _columns_graph(schema: Schema, names: Sequence[str], element: int, model: onnx.ModelProto) -> onnx.ModelProto:
    """Raw columns to `features` [N, F]."""
    helper = need("onnx.helper", "importing a model")
    nodes, constants = _side_by_side([schema[name] for name in names], element, merge.FEATURES, prefix="columns/")
    graph = helper.make_graph(
        nodes, "features", _raw_inputs(schema), [helper.make_tensor_value_info(merge.FEATURES, element, ["N", len(names)])], constants
    )
    opset = next(entry for entry in model.opset_import if not entry.domain)
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=model.ir_version, producer_name="tidemill")
    return merge.checked(made)


def _answering(model: onnx.ModelProto, wiring: Mapping[str, Sequence[Column]], answer: Answer, *, raw: Schema | None) -> onnx.ModelProto:
    """The model with only its answer left, under the package's name: from `features`, or from the raw columns."""
    onnx = need("onnx", "importing a model")
    helper, compose = onnx.helper, need("onnx.compose", "importing a model")
    kinds = {value.name: value.type.tensor_type for value in model.graph.input}
    prefix = "source/"
    while raw is not None and any(name.startswith((prefix, "columns/")) for name in raw.names):
        prefix = prefix.replace("/", "_/")
    inner = compose.add_prefix(model, prefix)
    nodes, constants = [], []
    if raw is None:
        name = next(iter(wiring))
        nodes.append(helper.make_node("Identity", [merge.FEATURES], [prefix + name]))
        inputs = [helper.make_tensor_value_info(merge.FEATURES, kinds[name].elem_type, ["N", len(wiring[name])])]
    else:
        inputs = _raw_inputs(raw)
        for name, group in wiring.items():
            flat = len(kinds[name].shape.dim) == 1
            made, more = _side_by_side(
                [raw[column.name] for column in group], kinds[name].elem_type, prefix + name, prefix=f"columns/{name}/", flat=flat
            )
            nodes += made
            constants += more
    after, more = _named_answer(prefix + answer.tensor, answer)
    output = merge.PREDICTION if answer.classes is None else merge.PROBABILITY
    graph = helper.make_graph(
        _needed([*nodes, *inner.graph.node, *after], output),
        "model",
        inputs,
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["N"] if answer.classes is None else ["N", len(answer.classes)])],
        [],
    )
    return _completed(graph, model, inner, [*constants, *more])


def _completed(graph: onnx.GraphProto, model: onnx.ModelProto, inner: onnx.ModelProto, constants: Sequence[Any]) -> onnx.ModelProto:
    """The checked model of a graph around `inner`, which is `model` under other names, with the constants that its nodes read."""
    used = {name for node in graph.node for name in _read_by(node)}
    graph.initializer.extend(value for value in [*inner.graph.initializer, *constants] if value.name in used)
    graph.sparse_initializer.extend(inner.graph.sparse_initializer)
    made = need("onnx.helper", "importing a model").make_model(
        graph,
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
        functions=list(inner.functions),
        producer_name="tidemill",
    )
    return merge.checked(made)


def _side_by_side(columns: Sequence[Column], element: int, output: str, *, prefix: str, flat: bool = False) -> tuple[list[Any], list[Any]]:
    """Nodes from raw columns [N, 1] to one tensor [N, F] (or [N]) of a type; null is NaN where the type has it."""
    onnx = need("onnx", "importing a model")
    node, from_array = onnx.helper.make_node, onnx.numpy_helper.from_array
    kind = onnx.helper.tensor_dtype_to_np_dtype(element)
    nodes, parts = [], []
    constants = [from_array(np.array([[np.nan]], kind), prefix + "null")] if kind.kind == "f" else []
    for column in columns:
        if column.type == "string" or kind.kind == "O":
            parts.append(column.name)
            continue
        name = f"{prefix}{column.name}"
        nodes.append(node("Cast", [column.name], [name], to=element))
        if column.type == "int64" and column.nullable:
            nodes.append(node("Where", [column.name + VALID_SUFFIX, name, prefix + "null"], [name + "/known"]))
            name += "/known"
        elif column.type == "boolean" and column.nullable:
            if not any(value.name == prefix + "null_boolean" for value in constants):
                constants.append(from_array(np.array([[NULL_BOOLEAN]], kind), prefix + "null_boolean"))
            nodes.append(node("Equal", [name, prefix + "null_boolean"], [name + "/is_null"]))
            nodes.append(node("Where", [name + "/is_null", prefix + "null", name], [name + "/known"]))
            name += "/known"
        parts.append(name)
    joined = output + "/column" if flat else output
    nodes.append(node("Concat", parts, [joined], axis=1) if len(parts) > 1 else node("Identity", parts, [joined]))
    if flat:
        constants.append(from_array(np.array([-1], np.int64), prefix + "flat"))
        nodes.append(node("Reshape", [joined, prefix + "flat"], [output]))
    return nodes, constants


def _named_answer(tensor: str, answer: Answer) -> tuple[list[Any], list[Any]]:
    onnx = need("onnx", "importing a model")
    node, from_array = onnx.helper.make_node, onnx.numpy_helper.from_array
    if answer.form == "values":
        return [node("Cast", [tensor], [merge.PREDICTION], to=onnx.TensorProto.FLOAT)], []
    if answer.form == "value":
        nodes = [
            node("Cast", [tensor], ["answer/float"], to=onnx.TensorProto.FLOAT),
            node("Reshape", ["answer/float", "answer/flat"], [merge.PREDICTION]),
        ]
        return nodes, [from_array(np.array([-1], np.int64), "answer/flat")]
    # A forest's shares, summed in single precision, may come to a little more than 1.
    single = [
        node("Cast", [tensor], ["answer/unbound"], to=onnx.TensorProto.FLOAT),
        node("Clip", ["answer/unbound", "answer/lowest", "answer/highest"], ["answer/float"]),
    ]
    bounds = [from_array(np.array(value, np.float32), f"answer/{name}") for name, value in (("lowest", 0), ("highest", 1))]
    if answer.form == "probabilities":
        shape = from_array(np.array([-1, len(answer.classes or ())], np.int64), "answer/shape")
        return [*single, node("Reshape", ["answer/float", "answer/shape"], [merge.PROBABILITY])], [*bounds, shape]
    constants = [*bounds, from_array(np.array([-1, 1], np.int64), "answer/shape"), from_array(np.array([[1]], np.float32), "answer/one")]
    nodes = [
        node("Reshape", ["answer/float", "answer/shape"], ["answer/positive"]),
        node("Sub", ["answer/one", "answer/positive"], ["answer/negative"]),
        node("Concat", ["answer/negative", "answer/positive"], [merge.PROBABILITY], axis=1),
    ]
    return [*single, *nodes], constants


def _raw_inputs(schema: Schema) -> list[Any]:
    onnx = need("onnx", "importing a model")
    inputs = []
    for column in schema:
        kind = (
            onnx.TensorProto.STRING if column.type == "string" else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(NUMPY_TYPES[column.type]))
        )
        inputs.append(onnx.helper.make_tensor_value_info(column.name, kind, ["N", 1]))
        if column.type == "int64" and column.nullable:
            inputs.append(onnx.helper.make_tensor_value_info(column.name + VALID_SUFFIX, onnx.TensorProto.BOOL, ["N", 1]))
    return inputs


def _needed(nodes: Sequence[Any], output: str) -> list[Any]:
    """The nodes that an output depends on, in their order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(_read_by(node))
    return kept[::-1]


def _read_by(node: Any) -> set[str]:
    """Every tensor that a node reads, inside its subgraphs too."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                names |= _read_by(inner)
    return names
