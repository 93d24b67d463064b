"""What is predicted: the task, told from the target's values unless the project says it, and the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import narwhals as nw
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.errors import DataError, Unsupported
from tidemill.core.schema import Column

MAX_CLASSES = 1_000
FEW = 20
# Squared errors of larger ones leave float32, in which models are fitted.
LARGEST = 1e18
"""Whole numbers with up to this many values are classes, unless the project says `task = "regression"`."""


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    """The target as the stages after this one see it."""

    column: Column
    """As stored: classes as boolean, int64 or string; a quantity as it came."""
    task: str
    """binary | multiclass | regression"""
    classes: list[Any] | None
    """Sorted; None for regression."""

    def stored(self, values: pa.Array) -> pa.Array:
        """Raw values of the target as they are stored."""
        kinds = {"boolean": pa.bool_(), "int64": pa.int64(), "string": pa.string(), "float32": pa.float32(), "float64": pa.float64()}
        return values.cast(kinds[self.column.type])


def told(frame: nw.LazyFrame[Any], column: Column, task: str | None) -> TargetFacts:
    """The facts of the target's values that are not null.

    Args:
        frame: A lazy frame that holds the column.
        task: What the project says, or None to tell it from the values: text, booleans and two values are classes, whole numbers
            are where there are at most 20 of them, anything else is a quantity.

    Raises:
        DataError: If the target is constant, all null, or does not fit the task.
        Unsupported: If the task is not built.
    """
    name = column.name
    if task not in (None, "binary", "multiclass", "regression"):
        raise Unsupported(f'task = "{task}" is not built in this version', hint="binary, multiclass and regression are")
    if column.type == "timestamp":
        raise DataError(f"target {name!r} must be classes or a number, is a timestamp", field=name, hint="make it a duration in prepare")
    values = frame.select(name).filter(~nw.col(name).is_null())
    distinct = int(values.select(nw.col(name).n_unique()).collect("pyarrow").to_arrow()[name][0].as_py() or 0)
    if distinct == 0:
        raise DataError(f"target {name!r} must have values, all are null", field=name)
    found = sorted(values.unique().collect("pyarrow").to_arrow()[name].to_pylist()) if distinct <= MAX_CLASSES else None
    if distinct == 1:
        raise DataError(f"target {name!r} must have at least two values, all are {(found or [None])[0]!r}", field=name)
    if found is None and column.type == "string":
        raise DataError(f"target {name!r} must have at most {MAX_CLASSES} classes, has {distinct}", field=name, hint="is it an identifier?")
    countable = column.type in ("boolean", "string", "int64") or (found is not None and all(float(value).is_integer() for value in found))
    if task is None:
        task = "regression" if not countable or (column.is_number and distinct > FEW) else "binary" if distinct == 2 else "multiclass"
    if task == "regression":
        return _quantity(values, column)
    if not countable or found is None:
        what = f"{distinct:,} values" if countable or found is None else f"fractions such as {next(v for v in found if v != int(v))}"
        raise DataError(
            f'target {name!r} must be classes for task = "{task}", has {what}', field=name, hint='did you mean task = "regression"?'
        )
    if task == "binary" and distinct != 2:
        raise DataError(
            f'target {name!r} must have 2 values for task = "binary", has {distinct}: {", ".join(map(repr, found[:6]))}',
            field=name,
            hint='did you mean task = "multiclass"?',
        )
    kind = "int64" if column.is_number else column.type
    classes = [int(value) for value in found] if column.is_number else found
    return TargetFacts(column=Column(name=name, type=kind, nullable=False), task=task, classes=classes)


def _quantity(values: nw.LazyFrame[Any], column: Column) -> TargetFacts:
    name = column.name
    if column.type == "string":
        raise DataError(f'target {name!r} must be a number for task = "regression", is text', field=name)
    if column.type in ("float32", "float64"):
        infinite = values.filter((nw.col(name) == float("inf")) | (nw.col(name) == -float("inf"))).select(nw.len().alias("rows"))
        rows = infinite.collect("pyarrow").to_arrow()["rows"][0].as_py()
        if rows:
            raise DataError(f"target {name!r} must be finite, {rows} rows are infinite", field=name, hint="drop or clip them in prepare")
        large = values.filter(nw.col(name).abs() > LARGEST).select(nw.len().alias("rows")).collect("pyarrow").to_arrow()["rows"][0].as_py()
        if large:
            message = f"target {name!r} must be within {LARGEST:g} of 0, {large:,} rows are not"
            raise DataError(message, field=name, hint="scale it or take its logarithm in prepare")
    kind = "int64" if column.type == "boolean" else column.type
    return TargetFacts(column=Column(name=name, type=kind, nullable=False), task="regression", classes=None)


def class_counts(values: pa.ChunkedArray | pa.Array) -> dict[Any, int]:
    """Rows by class."""
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist()}
