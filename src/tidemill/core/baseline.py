"""Distributions of raw columns and answers as mergeable sketches: of the rows that a model was made from, and of live ones.

The document is that of `baseline.json`: `rows`, `columns` (for a text package `lengths`, in characters: texts are not
kept; for an image package `lengths`, in bytes of a file) and `predictions`, each a sketch by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.package import Answers, Predictor
from tidemill.core.schema import VALID_SUFFIX, Column
from tidemill.core.sketch import ColumnSketch

if TYPE_CHECKING:
    import pyarrow as pa

    from tidemill.core.graph import Arrays

Sketches = dict[str, dict[str, ColumnSketch]]


def distributions(predictor: Predictor, batches: Iterable[pa.RecordBatch]) -> tuple[int, Sketches]:
    """The number of rows, and sketches by part (`columns` or `lengths`, `predictions`) and name.

    Raises:
        DataError: If a column is missing or of another type.
    """
    package = predictor.package
    where = "columns" if package.kind == "row" else "lengths"
    found: Sketches = {where: {}, "predictions": {}}
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        inputs = predictor.signature.from_arrow(batch)
        for column in package.schema:
            _add(found[where], column.name, _of_column(column, inputs, lengths=where == "lengths"))
        for name, sketch in _of_answers(predictor.arrow(batch)).items():
            _add(found["predictions"], name, sketch)
    return rows, found


def to_json(rows: int, sketches: Sketches) -> dict[str, Any]:
    return {"rows": rows, **{part: {name: sketch.to_json() for name, sketch in of.items()} for part, of in sketches.items()}}


def from_json(document: dict[str, Any]) -> tuple[int, Sketches]:
    parts = {part: of for part, of in document.items() if part in ("columns", "lengths", "predictions")}
    return document["rows"], {part: {name: ColumnSketch.from_json(tree) for name, tree in of.items()} for part, of in parts.items()}


def _of_column(column: Column, inputs: Arrays, *, lengths: bool) -> ColumnSketch:
    values = inputs[column.name]
    if lengths:
        return ColumnSketch.of("int64", np.array([len(text) for text in values.ravel().tolist()], np.int64))
    return ColumnSketch.of(column.type, values, inputs.get(column.name + VALID_SUFFIX))


def _of_answers(answers: Answers) -> dict[str, ColumnSketch]:
    """`prediction`, and with classes `probability` (of the second of two) or `confidence` (of the best); embeddings have `norm`."""
    prediction = answers.prediction
    if answers.probability is None:
        if prediction.ndim > 1:
            return {"norm": ColumnSketch.of("float64", np.linalg.norm(prediction.astype(np.float64), axis=1))}
        return {"prediction": ColumnSketch.of("float64", prediction)}
    labels = ColumnSketch.of("string", np.array([_text(label) for label in prediction.tolist()], object))
    if answers.probability.shape[1] == 2:
        return {"prediction": labels, "probability": ColumnSketch.of("float64", answers.probability[:, 1])}
    return {"prediction": labels, "confidence": ColumnSketch.of("float64", answers.probability.max(axis=1))}


def _add(sketches: dict[str, ColumnSketch], name: str, sketch: ColumnSketch) -> None:
    sketches[name] = sketches[name].merge(sketch) if name in sketches else sketch


def _text(label: Any) -> str:
    """A class as the key of its count."""
    return str(label).lower() if isinstance(label, bool) else str(label)
