"""An image model from an ONNX file and a declaration of what is done to an image before it.

The independent path is the file itself, on images that NumPy resizes and scales. Taken are graphs with one input of four dimensions that answer
with probabilities, with one number, or with an embedding.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.image import read_files
from tidemill.core.schema import Column, Schema
from tidemill.packaging import image_reference
from tidemill.packaging.image_config import ImageConfig
from tidemill.packaging.imports.onnx import answer_of, normal, opened
from tidemill.packaging.imports.source import Given, Imported
from tidemill.packaging.imports.wrap import Answer, wrap_one_input
from tidemill.packaging.merge import outputs, to_bytes
from tidemill.packaging.parity import FunctionPath

if TYPE_CHECKING:
    import pyarrow as pa

_TRIED_ROWS = 16
_REFERENCE_ROWS = 32


def declared(image: Mapping[str, Any] | Path | str) -> ImageConfig:
    """The declaration in a file, or given as a mapping.

    Raises:
        ConfigError: If it cannot be read, or a key is wrong.
    """
    if isinstance(image, Mapping):
        return ImageConfig.of(image)
    try:
        return ImageConfig.of(json.loads(Path(image).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{image} must be a JSON declaration of images: {error}") from error


def with_images(table: pa.Table, column: str, folder: Path) -> pa.Table:
    """The sample with its images in base64, as a request brings them; paths are relative to `folder`.

    Raises:
        DataError: If an image cannot be read or is null.
    """
    import pyarrow as pa

    images = read_files(table, column, folder)
    if images.null_count:
        raise DataError(f"column {column!r} must hold an image in every row, is null in {images.null_count}", field=column)
    texts = pa.array([base64.b64encode(image).decode() for image in images.to_pylist()], pa.large_string())
    return table.set_column(table.schema.get_field_index(column), column, texts.cast(pa.string()))


def image_column(table: pa.Table) -> str:
    """The column that holds the images: the one called `image`, or the only one of bytes or texts.

    Raises:
        DataError: If there is none, or several could be it.
    """
    import pyarrow.types as t

    if "image" in table.schema.names:
        return "image"
    binary = [field.name for field in table.schema if t.is_binary(field.type) or t.is_large_binary(field.type)]
    found = binary or [field.name for field in table.schema if t.is_string(field.type) or t.is_large_string(field.type)]
    if len(found) != 1:
        raise DataError(f"the data must hold one column of images, or call it 'image'; has {', '.join(found) or 'none'}")
    return str(found[0])


def read(path: Path, given: Given, config: ImageConfig, column: str) -> Imported:
    """The model in an ONNX file, behind the declared preprocessing.

    Raises:
        DataError: If the file is no valid ONNX.
        Unsupported: If its input is not what the declaration makes, or its output nothing that a package answers.
    """
    model, original = opened(path)
    name = _input(original, config)

    def native(batch: pa.RecordBatch) -> np.ndarray:
        values, made = batch[column].to_pylist(), []
        for start in range(0, len(values), _REFERENCE_ROWS):
            pixels = np.stack([image_reference.prepare(value, config) for value in values[start : start + _REFERENCE_ROWS]])
            made.append(normal(original.run([found], {name: np.ascontiguousarray(pixels)})[0], answer))
        return np.concatenate(made)

    first = given.table.slice(0, _TRIED_ROWS)[column].to_pylist()
    tried = original.run(None, {name: np.stack([image_reference.prepare(value, config) for value in first]).astype(config.dtype)})
    named = dict(zip([value.name for value in original.get_outputs()], tried, strict=True))
    labelled = replace(given, table=given.table.drop_columns([column])) if given.target else given
    found, answer = _answer(model, named, labelled)
    embeds = answer.form == "values"
    task = "embedding" if embeds else "regression" if answer.classes is None else "binary" if len(answer.classes) == 2 else "multiclass"
    return Imported(
        model=f"ONNX image model of {model.producer_name or 'an unnamed producer'}",
        task=task,
        classes=answer.classes,
        schema=Schema((Column(name=column, type="string", nullable=False),)),
        outputs=outputs(answer.classes, width=int(named[found].shape[1]) if embeds else None),
        graphs={"model.onnx": to_bytes(wrap_one_input(model, name, "image", answer))},
        graph="model.onnx",
        native=FunctionPath(native, "the original ONNX file on images that NumPy resized and scaled"),
        kind="image",
        files={"image.json": (json.dumps(config.to_json(), indent=1) + "\n").encode()},
        preprocess="image",
        preprocess_config={"column": column, "input": "image"},
        limits=(
            f"Images are taken as {', '.join(config.formats)} and brought to {config.width} x {config.height} pixels.",
            "How the file was trained is not known here; parity says that it was wrapped, and its images prepared, without a change.",
        ),
    )


def _input(original: Any, config: ImageConfig) -> str:
    """Name of the one input, which must be what the declaration makes."""
    inputs = original.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        shown = ", ".join(f"{value.name} {value.shape}" for value in inputs)
        raise Unsupported(f"an image model must have one input of four dimensions, has {shown}")
    one = inputs[0]
    kind = one.type.removeprefix("tensor(").removesuffix(")")
    if kind != {"float32": "float", "uint8": "uint8"}[config.type]:
        raise Unsupported(f"input {one.name!r} must be {config.type} as image.json says, is {kind}")
    if isinstance(one.shape[0], int):
        raise Unsupported(
            f"input {one.name!r} must take any number of images, takes {one.shape[0]}", hint="export it with a dynamic first axis"
        )
    for size, made, axis in zip(one.shape[1:], config.shape, config.layout[1:], strict=True):
        if isinstance(size, int) and size != made:
            raise Unsupported(f"input {one.name!r} must be {axis} = {made} as image.json says, is {size}")
    return str(one.name)


def _answer(model: Any, found: Mapping[str, Any], given: Given) -> tuple[str, Answer]:
    """The output that answers; rows of numbers that are no probabilities are embeddings where no target says otherwise."""
    try:
        return answer_of(model, found, given)
    except Unsupported:
        wide = [name for name, value in found.items() if np.asarray(value).ndim == 2 and np.asarray(value).dtype == np.float32]
        if given.target is not None or len(found) != 1 or not wide:
            raise
        return wide[0], Answer(tensor=wide[0], form="values")
