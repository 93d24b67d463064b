"""Two graphs as one: raw columns to features to the answer, with the class label beside the probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.graph import RUNTIME_OPSETS
from tidemill.core.load import need
from tidemill.core.package import label_array

if TYPE_CHECKING:
    import onnx

FEATURES = "features"
PROBABILITY = "probability"
PREDICTION = "prediction"
INTERVAL = "interval"


def merge(features: onnx.ModelProto, model: onnx.ModelProto, *, classes: Sequence[Any] | None) -> onnx.ModelProto:
    """The graph from raw columns to `probability` [N, K] and `prediction` [N], or to `prediction` without classes.

    What else the model answers, such as `interval` [N, 2], is answered too.

    Tensors inside each part are renamed, so that neither they nor the raw columns can clash. The same parts always
    give the same bytes.

    Args:
        features: Raw columns to `features` float32 [N, F].
        model: `features` to `probability`, or to `prediction` where there are no classes; in the same opsets.

    Raises:
        DataError: If a raw column has the name of an answer, or the parts do not fit together.
    """
    compose = need("onnx.compose", "packaging a model")
    columns = [value.name for value in features.graph.input]
    for name in dict.fromkeys([PROBABILITY, PREDICTION, *(value.name for value in model.graph.output)]):
        if name in columns:
            raise DataError(
                f"column {name!r} must have another name: the package's answer is called so", field=name, hint="rename it in prepare"
            )
    before, after = _free_prefix(FEATURES, columns), _free_prefix("model", columns)
    first = compose.add_prefix(features, before, rename_inputs=False)
    second = compose.add_prefix(model, after, rename_outputs=False)
    try:
        merged: onnx.ModelProto = compose.merge_models(
            first, second, io_map=[(before + FEATURES, after + FEATURES)], name="package", producer_name="tidemill", producer_version=""
        )
    except ValueError as error:
        raise DataError(f"the features' and the model's graphs must fit together: {error}") from error
    return with_labels(merged, classes) if classes is not None else checked(merged)


def with_labels(model: onnx.ModelProto, classes: Sequence[Any]) -> onnx.ModelProto:
    """The graph with `prediction` [N] added: the label of the most probable class, bool, int64 or string.

    Of equally probable classes the first is answered.
    """
    helper, numpy_helper = need("onnx.helper", "packaging a model"), need("onnx.numpy_helper", "packaging a model")
    labels = label_array(classes)
    graph = model.graph
    prefix = _free_prefix("answer", [value.name for value in graph.input])
    graph.initializer.append(numpy_helper.from_array(labels, prefix + "labels"))
    graph.node.extend(
        [
            helper.make_node("ArgMax", [PROBABILITY], [prefix + "class"], name=prefix + "class", axis=1, keepdims=0),
            helper.make_node("Gather", [prefix + "labels", prefix + "class"], [PREDICTION], name=prefix + "label", axis=0),
        ]
    )
    kind = graph.initializer[-1].data_type
    graph.output.append(helper.make_tensor_value_info(PREDICTION, kind, ["N"]))
    return checked(model)


def outputs(classes: Sequence[Any] | None, *, width: int | None = None, interval: bool = False) -> list[dict[str, Any]]:
    """What a graph of this package answers, as the signature says it: name, type, shape with -1 for the rows.

    Args:
        width: Numbers in each prediction, for embeddings.
        interval: Whether low and high stand beside each prediction.
    """
    if classes is None:
        prediction: dict[str, Any] = {"name": PREDICTION, "type": "float32", "shape": [-1] if width is None else [-1, width]}
        return [prediction, {"name": INTERVAL, "type": "float32", "shape": [-1, 2]}] if interval else [prediction]
    kinds = {"b": "boolean", "i": "int64", "O": "string"}
    return [
        {"name": PROBABILITY, "type": "float32", "shape": [-1, len(classes)]},
        {"name": PREDICTION, "type": kinds[label_array(classes).dtype.kind], "shape": [-1]},
    ]


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, found to be valid.

    Raises:
        DataError: If it is not.
    """
    checker = need("onnx.checker", "packaging a model")
    try:
        checker.check_model(model, full_check=False)
    except checker.ValidationError as error:
        raise DataError(f"the package's graph must be valid ONNX: {error}") from error
    return model


def runtime_domains(path: Path) -> list[str]:
    """Domains of the graph's operators that only ONNX Runtime has, sorted."""
    model = need("onnx", "packaging a model").load(str(path), load_external_data=False)
    return sorted({node.domain for node in model.graph.node} & RUNTIME_OPSETS.keys())


def to_bytes(model: onnx.ModelProto) -> bytes:
    """A graph's bytes, the same every time."""
    return bytes(model.SerializeToString(deterministic=True))


def _free_prefix(name: str, columns: Sequence[str]) -> str:
    """`name/`, with as many _ before the / as it takes to begin no column's name."""
    while any(column.startswith(f"{name}/") for column in columns):
        name += "_"
    return f"{name}/"


def is_label(value: Any) -> bool:
    """Whether a class may be called so: bool, whole number of 64 bits, or text."""
    return isinstance(value, (bool, str, np.bool_)) or (isinstance(value, (int, np.integer)) and -(2**63) <= int(value) < 2**63)
