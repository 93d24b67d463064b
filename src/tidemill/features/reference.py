"""The whole feature set in plain NumPy, from `features.json` alone: the independent path that the graph is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.graph import RowSignature
from tidemill.core.load import load
from tidemill.core.project import build
from tidemill.core.schema import Column, Schema
from tidemill.features.operator import Fitted, Made, Operator, Values, integers, numbers, strings, taken_as, times

if TYPE_CHECKING:
    import pyarrow as pa


def features(description: Mapping[str, Any], table: pa.Table | pa.RecordBatch) -> np.ndarray:
    """Features of raw rows, float32 [N, F] in the order of `names`, computed column by column without any graph.

    Args:
        description: What `features.json` holds.
        table: Raw rows with at least the columns of `inputs`.

    Raises:
        DataError: If a column is missing or of another type.
    """
    schema = Schema.from_json(description["inputs"])
    signature = RowSignature(schema)
    made: dict[str, np.ndarray] = {}
    for column in schema:
        values = {column.name: raw_values(signature.arrow_column(table, column), column)}
        sides: dict[str, Values] = {}
        for step in description["columns"][column.name]:
            result = apply(operator_of(step), values, statistics_of(step, list(values)))
            values = result.columns
            sides.update(result.sides)
        made.update({name: _feature(one) for name, one in {**values, **sides}.items()})
    return np.stack([made[name] for name in description["names"]], axis=1)


def apply(operator: Operator, values: Mapping[str, Values], fitted: Mapping[str, Fitted]) -> Made:
    """One step over the columns that its predecessor made of one raw column."""
    together = Made({})
    for name, column in values.items():
        kind = taken_as(column.kind, operator.accepts)
        if kind is None:
            raise TypeError(f"{name}: {column.kind} must be one of {operator.accepts}")
        made = operator.reference(name, column.as_kind(kind), fitted[name])
        together.columns.update(made.columns)
        together.sides.update(made.sides)
    return together


def operator_of(step: Mapping[str, Any]) -> Operator:
    """The operator of a step of `features.json`, with its parameters."""
    operator: Operator = build(load("operator", step["op"]), step["params"], path=step["op"], where="features.json")
    return operator


def statistics_of(step: Mapping[str, Any], names: Sequence[str]) -> dict[str, Fitted]:
    """A step's statistics by the columns that it takes."""
    return dict(step["by_column"]) if "by_column" in step else {names[0]: step["fitted"]}


def raw_values(array: pa.Array, column: Column) -> Values:
    """One Arrow column of the declared type as values."""
    import pyarrow as pa

    if column.type == "string":
        return strings(array.to_pylist())
    if column.type in ("float32", "float64"):
        return numbers(array.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False))
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if column.type == "boolean":
        return integers(array.cast(pa.uint8()).fill_null(0).to_numpy(zero_copy_only=False), valid)
    data = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return times(data, valid) if column.type == "timestamp" else integers(data, valid)


def _feature(values: Values) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.as_kind("number").data.astype(np.float32)
