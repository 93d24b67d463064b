"""One JSON record as a tuple of values, and many such tuples as graph inputs: the short way of small requests.

What it takes is exactly what `RowSignature` would take, and means the same; whatever needs a second look, and every mistake, is left to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

import msgspec
import numpy as np

from tidemill.core.graph import NUMPY_TYPES, Arrays, column_inputs, columns_together
from tidemill.core.schema import Column, Schema

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TYPES: dict[str, Any] = {
    "boolean": bool,
    "int64": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "float32": Annotated[float, msgspec.Meta(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)],
    "float64": float,
    "string": str,
    "timestamp": str | Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
}


class RowReader:
    """Reads the records of one schema. Immutable, safe from several threads."""

    def __init__(self, schema: Schema) -> None:
        # Columns of a type stand together, so that they are converted together.
        columns = sorted(schema, key=lambda column: column.type)
        fields = [(f"f{i}", _TYPES[column.type] | None if column.nullable else _TYPES[column.type]) for i, column in enumerate(columns)]
        names = {f"f{i}": column.name for i, column in enumerate(columns)}
        record = msgspec.defstruct("Record", fields, rename=names, gc=False)
        self._decode = msgspec.json.Decoder(record).decode
        self._kinds: list[tuple[str, int, list[Column]]] = []
        for kind, of in groupby(columns, key=lambda column: column.type):
            start = sum(len(columns) for _, _, columns in self._kinds)
            self._kinds.append((kind, start, list(of)))

    def read(self, body: bytes) -> tuple[Any, ...] | None:
        """The values of one record; None where the long way must look at it."""
        try:
            return msgspec.structs.astuple(self._decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def inputs(self, rows: Sequence[tuple[Any, ...]]) -> Arrays:
        """Graph inputs for rows as `read` gives them.

        Raises:
            DataError: If a text is no time, or none that may stand in a request; the row is its place in `rows`.
        """
        made: Arrays = {}
        for kind, start, columns in self._kinds:
            end = start + len(columns)
            if kind in ("float32", "float64"):
                together_NC = np.array([row[start:end] for row in rows], NUMPY_TYPES[kind])  # None becomes NaN
                for column, array in zip(columns, np.ascontiguousarray(together_NC.T).reshape(len(columns), -1, 1), strict=True):
                    made[column.name] = array
            elif not columns_together(kind, columns, [value for row in rows for value in row[start:end]], made):
                for place, column in enumerate(columns, start):
                    column_inputs(column, [row[place] for row in rows], made)
        return made
