"""The narrowest types that hold every value of a table unchanged: what `train`, `valid` and `test` are stored in.

The schema keeps its six types; only the files are narrower, and whoever reads a column as its declared type gets the same values back.

| column    | stored as                                                                   |
|-----------|-----------------------------------------------------------------------------|
| int64     | int8, int16 or int32 where every value fits                                 |
| float64   | float32 where every value is one exactly: halves, whole numbers up to 2^24  |
| others    | as they are                                                                 |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.engine import Mergeable
from tidemill.core.schema import Schema

_INTEGERS = (pa.int8(), pa.int16(), pa.int32())


@dataclass
class Extent:
    """What the values of one column ask of a type."""

    low: int = 0
    high: int = 0
    single: bool = True
    """Whether every number is a float32 exactly."""


@dataclass(frozen=True)
class Extents:
    """Mergeable extents of the whole and floating columns of a schema, in its order."""

    schema: Schema

    def init(self) -> list[Extent]:
        return [Extent() for _ in self.schema]

    def update(self, state: list[Extent], batch: pa.RecordBatch) -> list[Extent]:
        for extent, column in zip(state, self.schema, strict=True):
            if column.type == "int64":
                ends = pc.min_max(batch.column(column.name)).as_py()
                if ends["min"] is not None:
                    extent.low, extent.high = min(extent.low, ends["min"]), max(extent.high, ends["max"])
            elif column.type == "float64" and extent.single:
                extent.single = _is_single(batch.column(column.name))
        return state

    def merge(self, left: list[Extent], right: list[Extent]) -> list[Extent]:
        return [
            Extent(low=min(one.low, other.low), high=max(one.high, other.high), single=one.single and other.single)
            for one, other in zip(left, right, strict=True)
        ]


@dataclass(frozen=True)
class Together:
    """Several aggregations in one pass; the state is a list of theirs."""

    parts: Sequence[Mergeable[Any]] = field(default_factory=tuple)

    def init(self) -> list[Any]:
        return [part.init() for part in self.parts]

    def update(self, state: list[Any], batch: pa.RecordBatch) -> list[Any]:
        return [part.update(one, batch) for part, one in zip(self.parts, state, strict=True)]

    def merge(self, left: list[Any], right: list[Any]) -> list[Any]:
        return [part.merge(one, other) for part, one, other in zip(self.parts, left, right, strict=True)]


def stored_schema(schema: Schema, extents: Sequence[Extent]) -> pa.Schema:
    """Arrow types to store the columns in.

    Args:
        extents: Of all their values, in the order of the schema.
    """
    fields = []
    for column, extent, given in zip(schema, extents, schema.to_arrow(), strict=True):
        kind = given.type
        if column.type == "int64":
            kind = next((narrow for narrow in _INTEGERS if _holds(narrow, extent)), kind)
        elif column.type == "float64" and extent.single:
            kind = pa.float32()
        fields.append(pa.field(column.name, kind, nullable=column.nullable))
    return pa.schema(fields)


def _holds(kind: pa.DataType, extent: Extent) -> bool:
    limits = np.iinfo(kind.to_pandas_dtype())
    return limits.min <= extent.low and extent.high <= limits.max


def _is_single(column: pa.Array) -> bool:
    numbers = column.drop_null().to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore", invalid="ignore"):
        back = numbers.astype(np.float32).astype(np.float64)
    return bool(np.all((back == numbers) | np.isnan(numbers)))
