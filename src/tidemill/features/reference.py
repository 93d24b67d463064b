"""The whole feature set in plain NumPy, from `features.json` alone: the independent path that the graph is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.graph import RowSignature
from tidemill.core.load import load
from tidemill.core.project import build
from tidemill.core.schema import Column, Schema
from tidemill.features.operator import (
    AnyOperator,
    Fitted,
    Kind,
    Made,
    Values,
    integers,
    joins,
    needs_target,
    numbers,
    single,
    strings,
    taken_as,
    times,
)

if TYPE_CHECKING:
    import pyarrow as pa


def features(description: Mapping[str, Any], table: pa.Table | pa.RecordBatch, fold_N: np.ndarray | None = None) -> np.ndarray:
    """Features of raw rows, float32 [N, F] in the order of `names`, computed column by column without any graph.

    Args:
        description: What `features.json` holds.
        table: Raw rows with at least the columns of `inputs`.
        fold_N: Each row's fold, for features as a model is trained on them; absent for those that a package answers with.

    Raises:
        DataError: If a column is missing or of another type.
    """
    schema = Schema.from_json(description["inputs"])
    signature = RowSignature(schema)
    raw = {column.name: raw_values(signature.arrow_column(table, column), column) for column in schema}
    made: dict[str, Values] = {}
    for name, steps in description["columns"].items():
        made.update(_walked(name, steps, {name: raw[name]}, made, fold_N))
    for name, derived in description.get("derived", {}).items():
        parts: dict[str, Values] = {}
        for column, steps in derived["of"].items():
            part = part_name(name, column)
            parts.update(_walked(part, steps, {part: raw[column]}, made, fold_N))
        made.update(_walked(name, derived["steps"], parts, made, fold_N))
    return np.stack([_feature(made[name]) for name in description["names"]], axis=1)


def part_name(derived: str, column: str) -> str:
    """What a raw column is called on its way into a derived one."""
    return f"{derived}.{column}"


def _walked(
    name: str, steps: Sequence[Mapping[str, Any]], values: dict[str, Values], sides: dict[str, Values], fold_N: np.ndarray | None
) -> dict[str, Values]:
    for step in steps:
        operator = operator_of(step)
        result = apply(operator, values, statistics_of(step, [name] if joins(operator) else list(values)), name=name, fold_N=fold_N)
        values = result.columns
        sides.update(result.sides)
    return values


def apply(
    operator: AnyOperator, values: Mapping[str, Values], fitted: Mapping[str, Fitted], *, name: str, fold_N: np.ndarray | None = None
) -> Made:
    """One step over the columns that its predecessor made of one raw column, or of those that a derived one joins.

    Args:
        name: The raw or derived column.
        fold_N: Each row's fold, where a model is trained on it.
    """
    taken = {column: one.as_kind(_kind(column, one, operator)) for column, one in values.items()}
    if joins(operator):
        return operator.reference(name, list(taken.values()), fitted[name])
    alone = single(operator)
    together = Made({})
    for column, one in taken.items():
        if needs_target(operator):
            made = operator.reference(column, one, fitted[column], fold_N)
        else:
            made = alone.reference(column, one, fitted[column])
        together.columns.update(made.columns)
        together.sides.update(made.sides)
    return together


def _kind(name: str, values: Values, operator: AnyOperator) -> Kind:
    kind = taken_as(values.kind, operator.accepts)
    if kind is None:
        raise TypeError(f"{name}: {values.kind} must be one of {operator.accepts}")
    return kind


def operator_of(step: Mapping[str, Any]) -> AnyOperator:
    """The operator of a step of `features.json`, with its parameters."""
    operator: AnyOperator = build(load("operator", step["op"]), step["params"], path=step["op"], where="features.json")
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
