"""A model from an ONNX file. The independent path is that file itself, run on inputs that NumPy makes.

Taken are graphs with one [N, F] input of numbers, or one input for each column, that answer with probabilities (a
ZipMap is taken off), with one probability, or with one number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import DataError, Unsupported
from tidemill.core.graph import session
from tidemill.core.load import need
from tidemill.core.schema import NULL_STRING, Column
from tidemill.packaging.imports.source import Given, Imported, to_numpy
from tidemill.packaging.imports.wrap import Answer, wrap
from tidemill.packaging.merge import outputs
from tidemill.packaging.parity import FunctionPath

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort
    import pyarrow as pa

# Metadata in which exporters leave the names of a matrix's columns, as JSON or comma-separated.
NAMES_KEYS = ("feature_names", "features", "columns", "feature_names_in")

_TRIED_ROWS = 200


def read(path: Path, given: Given) -> Imported:
    """The model in an ONNX file.

    Raises:
        DataError: If the file is no valid ONNX, or the data lacks its columns.
        Unsupported: If its inputs or outputs are of a shape that no package has.
    """
    model, original = opened(path)
    wiring = _wiring(model, given)
    feed = Feed(
        wiring, {value.name: value.type for value in original.get_inputs()}, {value.name: value.shape for value in original.get_inputs()}
    )
    tried = original.run(None, feed(given.table.slice(0, _TRIED_ROWS).combine_chunks().to_batches()[0]))
    found = dict(zip([value.name for value in original.get_outputs()], tried, strict=True))
    name, answer = answer_of(model, found, given)
    task = "regression" if answer.classes is None else "binary" if len(answer.classes) == 2 else "multiclass"
    graphs, schema = wrap(model, wiring, answer)

    def native(batch: pa.RecordBatch) -> np.ndarray:
        return normal(original.run([name], feed(batch))[0], answer)

    return Imported(
        model=f"ONNX graph of {model.producer_name or 'an unnamed producer'}",
        task=task,
        classes=answer.classes,
        schema=schema,
        outputs=outputs(answer.classes),
        graphs=graphs,
        graph="full.onnx",
        native=FunctionPath(native, "the original ONNX file on inputs made by NumPy"),
        limits=("How the file was trained is not known here; parity says that it was wrapped without a change.",),
    )


class Feed:
    """A batch as the inputs of the original file, made by NumPy."""

    def __init__(self, wiring: Mapping[str, Sequence[Column]], types: Mapping[str, str], shapes: Mapping[str, Sequence[Any]]) -> None:
        self._wiring = wiring
        self._kinds = {name: _numpy_kind(types[name]) for name in wiring}
        self._flat = {name for name in wiring if len(shapes[name]) == 1}

    def __call__(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        made = {}
        for name, columns in self._wiring.items():
            array = to_numpy(batch, columns, self._kinds[name])
            if self._kinds[name] is object:
                array = np.where(array == None, NULL_STRING, array)  # noqa: E711 - element by element
            made[name] = array[:, 0] if name in self._flat else array
        return made


def opened(path: Path) -> tuple[onnx.ModelProto, ort.InferenceSession]:
    """The model in an ONNX file, and that file as it answers by itself.

    Raises:
        DataError: If it is no valid ONNX.
    """
    onnx = need("onnx", "importing an ONNX model")
    try:
        model = onnx.load(str(path))
        content = bytes(model.SerializeToString())
    except Exception as error:  # the protobuf decoder and onnx raise a family without a public root
        raise DataError(f"{path} must be an ONNX model: {error}") from error
    return model, session(content)


def _wiring(model: onnx.ModelProto, given: Given) -> dict[str, list[Column]]:
    """Each input of the file and the columns that go into it.

    Raises:
        Unsupported: If an input is neither a matrix nor a column.
    """
    constants = {value.name for value in model.graph.initializer}
    inputs = {value.name: value.type for value in model.graph.input if value.name not in constants}
    shapes = {name: _shape(kind) for name, kind in inputs.items()}
    for name, shape in shapes.items():
        if shape is None or len(shape) not in (1, 2):
            raise Unsupported(
                f"input {name!r} must be a matrix [N, F] or a column, is {'no tensor' if shape is None else f'of {len(shape)} dimensions'}",
                hint="packages take rows of a table, and text from a Hugging Face folder",
            )
    if len(inputs) == 1:
        name, shape = next(iter(shapes.items()))
        width = shape[1] if shape is not None and len(shape) == 2 else 1
        named = _names(model)
        if named and (width is None or len(named) == width):
            return {name: _checked_kinds(name, inputs[name], given.columns(named, "the model"))}
        if width == 1 and name in given.features:
            return {name: _checked_kinds(name, inputs[name], given.columns([name], "the model"))}
        return {name: _checked_kinds(name, inputs[name], given.numbers(width, "the model"))}
    wide = next((name for name, shape in shapes.items() if shape and len(shape) == 2 and shape[1] not in (1, None)), None)
    if wide is not None:
        raise Unsupported(f"input {wide!r} must be one column, is {shapes[wide]}: one matrix or one input a column can be packaged")
    columns = given.columns(list(inputs), "the model's inputs")
    return {column.name: _checked_kinds(column.name, inputs[column.name], [column]) for column in columns}


def _checked_kinds(name: str, kind: Any, columns: list[Column]) -> list[Column]:
    """The columns, found to be of what an input takes."""
    text = kind.tensor_type.elem_type == need("onnx", "importing an ONNX model").TensorProto.STRING
    for column in columns:
        if (column.type == "string") != text or (column.type == "timestamp" and len(columns) > 1):
            wanted = "text" if text else "numbers"
            raise DataError(f"column {column.name!r} must be {wanted} for the model's input {name!r}, is {column.type}", field=column.name)
    return columns


def _names(model: onnx.ModelProto) -> list[str] | None:
    """Column names that the file carries in its metadata."""
    stored = {entry.key: entry.value for entry in model.metadata_props}
    text = next((stored[key] for key in NAMES_KEYS if key in stored), None)
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = [part.strip() for part in text.split(",")]
    return [str(name) for name in names] if isinstance(names, list) else None


def answer_of(model: onnx.ModelProto, found: Mapping[str, Any], given: Given) -> tuple[str, Answer]:
    """The output that answers, as the file names it, and what it means.

    Raises:
        Unsupported: If no output is a probability or a number, or several might be.
    """
    maps = {name: value for name, value in found.items() if isinstance(value, list) and value and isinstance(value[0], dict)}
    if maps:
        name = next(iter(maps))
        node = next(node for node in model.graph.node if name in node.output)
        if node.op_type != "ZipMap":
            raise Unsupported(f"output {name!r} must come from a ZipMap or be a tensor, comes from {node.op_type}")
        return name, Answer(tensor=node.input[0], form="probabilities", classes=_plain_labels(list(maps[name][0])))
    numbers = {name: np.asarray(value) for name, value in found.items() if np.asarray(value).dtype.kind == "f"}
    if len(numbers) > 1:
        likely = [name for name in numbers if "prob" in name.lower()]
        if len(likely) != 1:
            raise Unsupported(f"one output must answer, the model has {', '.join(numbers)}", hint="call the one that answers `probability`")
        numbers = {likely[0]: numbers[likely[0]]}
    if not numbers:
        raise Unsupported(
            f"an output must hold probabilities or numbers, the model has {', '.join(found)}",
            hint="export the classifier with its probabilities",
        )
    name, values = next(iter(numbers.items()))
    if values.ndim == 2 and values.shape[1] > 1:
        return name, _matrix_answer(name, values, model, given)
    if values.ndim > 2:
        raise Unsupported(f"output {name!r} must be one number or one probability for each class, has shape {list(values.shape)}")
    known = given.labels()
    shares = bool(np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1)
    binary = given.task == "binary" or (given.task is None and shares and known is not None and len(known) == 2)
    if not binary:
        return name, Answer(tensor=name, form="value")
    return name, Answer(tensor=name, form="positive", classes=_two(known))


def _matrix_answer(name: str, values: np.ndarray, model: onnx.ModelProto, given: Given) -> Answer:
    width = values.shape[1]
    if given.task == "regression" or not (np.abs(values.sum(axis=1) - 1) < 1e-3).all() or values.min() < -1e-6:
        raise Unsupported(
            f"output {name!r} must be probabilities that sum to 1, or one number; it holds {width} others",
            hint="export the model with a Softmax",
        )
    stated = _stated_labels(model)
    for labels in (stated, given.labels()):
        if labels is not None and len(labels) == width:
            return Answer(tensor=name, form="probabilities", classes=labels)
    if (
        stated is None
        and given.labels() is not None
        and max((label for label in given.labels() or [] if isinstance(label, int)), default=width) >= width
    ):
        raise DataError(
            f"target {given.target!r} must have the model's {width} classes, has {len(given.labels() or [])}", field=given.target
        )
    return Answer(tensor=name, form="probabilities", classes=list(range(width)))


def _stated_labels(model: onnx.ModelProto) -> list[Any] | None:
    """Class labels that a classifier node of the graph carries."""
    for node in reversed(model.graph.node):
        for attribute in node.attribute:
            if attribute.name in ("classlabels_int64s", "classlabels_ints") and attribute.ints:
                return [int(label) for label in attribute.ints]
            if attribute.name == "classlabels_strings" and attribute.strings:
                return [label.decode() for label in attribute.strings]
    return None


def _two(labels: list[Any] | None) -> list[Any]:
    if labels is None:
        return [0, 1]
    if len(labels) != 2:
        raise DataError(f"a binary model's target must have 2 values, has {len(labels)}")
    return labels


def normal(value: Any, answer: Answer) -> np.ndarray:
    """The original's output in the shape of a package's."""
    if isinstance(value, list):
        return np.array([[row[label] for label in answer.classes or ()] for row in value])
    array = np.asarray(value, np.float64)
    if answer.form == "values":
        return array
    if answer.form == "value":
        return array.reshape(-1)
    if answer.form == "positive":
        return np.stack([1 - array.reshape(-1), array.reshape(-1)], axis=1)
    return array


def _plain_labels(labels: list[Any]) -> list[Any]:
    return [int(label) if isinstance(label, (int, np.integer)) else str(label) for label in labels]


def _shape(kind: Any) -> list[int | None] | None:
    """Dimensions, None for one that is open; None for what is no tensor. An absent shape counts as a matrix."""
    if not kind.HasField("tensor_type"):
        return None
    if not kind.tensor_type.HasField("shape"):
        return [None, None]
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.tensor_type.shape.dim]


def _numpy_kind(name: str) -> Any:
    """The NumPy type of an ONNX Runtime input type such as `tensor(float)`."""
    kinds = {"float": np.float32, "double": np.float64, "float16": np.float16, "string": object, "bool": np.bool_}
    inner = name.removeprefix("tensor(").removesuffix(")")
    return kinds[inner] if inner in kinds else np.dtype(inner).type
