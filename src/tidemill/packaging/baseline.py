"""Reference distributions: what the raw columns and the answers look like on the rows that a model was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.graph import Arrays, RowSignature
from tidemill.core.package import Answers, Predictor
from tidemill.core.schema import VALID_SUFFIX, Column
from tidemill.core.sketch import ColumnSketch
from tidemill.packaging.rows import Rows

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 65_536


def reference_distributions(predictor: Predictor, rows: Rows) -> dict[str, Any]:
    """The document `baseline.json`: `rows`, `columns` and `predictions`, each a mergeable sketch by name.

    Texts are not kept: a text package has `lengths` (characters) in place of `columns`.
    """
    package = predictor.package
    found: dict[str, dict[str, ColumnSketch]] = {"columns": {}, "lengths": {}, "predictions": {}}
    where = "lengths" if package.kind == "text" else "columns"
    for batch in rows.batches(package.schema.names, batch_rows=BATCH_ROWS):
        for column in package.schema:
            _add(found[where], column.name, _of_column(predictor, column, batch, lengths=package.kind == "text"))
        for name, sketch in of_answers(predictor.arrow(batch)).items():
            _add(found["predictions"], name, sketch)
    sketches = {part: {name: sketch.to_json() for name, sketch in of.items()} for part, of in found.items() if of}
    return {"rows": rows.num_rows, **sketches}


def of_answers(answers: Answers) -> dict[str, ColumnSketch]:
    """Sketches of answers: `prediction`, and with classes `probability` (of the second of two) or `confidence` (of the best).

    Embeddings have `norm`.
    """
    prediction = answers.prediction
    if answers.probability is None:
        if prediction.ndim > 1:
            return {"norm": ColumnSketch.of("float64", np.linalg.norm(prediction.astype(np.float64), axis=1))}
        return {"prediction": ColumnSketch.of("float64", prediction)}
    labels = ColumnSketch.of("string", np.array([_text(label) for label in prediction.tolist()], object))
    if answers.probability.shape[1] == 2:
        return {"prediction": labels, "probability": ColumnSketch.of("float64", answers.probability[:, 1])}
    return {"prediction": labels, "confidence": ColumnSketch.of("float64", answers.probability.max(axis=1))}


def _of_column(predictor: Predictor, column: Column, batch: pa.RecordBatch, *, lengths: bool) -> ColumnSketch:
    inputs: Arrays = RowSignature(predictor.package.schema.select([column.name])).from_arrow(batch)
    values, valid = inputs[column.name], inputs.get(column.name + VALID_SUFFIX)
    if lengths:
        return ColumnSketch.of("int64", np.array([len(text) for text in values.ravel().tolist()], np.int64))
    return ColumnSketch.of(column.type, values, valid)


def _add(sketches: dict[str, ColumnSketch], name: str, sketch: ColumnSketch) -> None:
    sketches[name] = sketches[name].merge(sketch) if name in sketches else sketch


def _text(label: Any) -> str:
    """A class as the key of its count."""
    if isinstance(label, bool):
        return "true" if label else "false"
    return str(label)
