"""What is predicted, as operators that learn from it see it, and the folds in which they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.distinct import Distinct
from tidemill.core.engine import Mergeable
from tidemill.core.errors import DataError
from tidemill.core.folds import Folds, content_hash
from tidemill.features.operator import Predicted, TargetSums

if TYPE_CHECKING:
    import pyarrow as pa

# Folds go by the rows' values where at least this share of the rows differ, else by their position.
DIFFERING = 0.5


@dataclass(frozen=True, kw_only=True)
class TargetColumn:
    """What is predicted, as the data artifact's `schema.json` says it."""

    name: str
    task: str
    classes: tuple[Any, ...] | None = None
    """Labels in order; None for a number."""
    weight: str | None = None
    """Column of weights of the rows."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> TargetColumn:
        classes = tuple(facts.get("classes") or ()) or None
        task = facts.get("task") or ("regression" if classes is None else "binary" if len(classes) == 2 else "multiclass")
        return cls(name=facts["target"], task=task, classes=classes, weight=facts.get("weight"))

    @property
    def columns(self) -> list[str]:
        return [self.name, *([self.weight] if self.weight else [])]

    def values(self, batch: pa.RecordBatch) -> np.ndarray:
        """The target of each row, float64 [N]: the index of its class, or the number.

        Raises:
            DataError: If a value is null, or no class.
        """
        array = batch.column(batch.schema.get_field_index(self.name))
        if self.classes is None:
            return _numbers(array, self.name)
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        found = pc.index_in(array, value_set=pa.array(list(self.classes)).cast(array.type))
        if found.null_count:
            strange = array.filter(found.is_null())[0].as_py()
            raise DataError(f"target {self.name!r} must be one of its {len(self.classes)} classes, got {strange!r}", field=self.name)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.float64)

    def weights(self, batch: pa.RecordBatch) -> np.ndarray | None:
        """The weight of each row, float64 [N]; None where rows have none."""
        return _numbers(batch.column(batch.schema.get_field_index(self.weight)), self.weight) if self.weight else None


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """The target and the folds, for fitting."""

    target: TargetColumn
    folds: Folds

    @property
    def columns(self) -> list[str]:
        """Columns that are read for it."""
        return [self.target.name, *self.folds.columns]

    @property
    def predicted(self) -> Predicted:
        classes = self.target.classes or ()
        return Predicted(labels=tuple(map(str, classes)) if len(classes) > 2 else (), num_folds=self.folds.count)

    def sums(self, y_N: np.ndarray, fold_N: np.ndarray, group_N: np.ndarray | None, size: int) -> TargetSums:
        """The target summed over groups of rows, all of a group in one fold; over each row alone where there are no groups.

        Args:
            y_N: The rows' targets, as `TargetColumn.values` gives them.
            fold_N: The folds of the groups, int64 (size,).
            group_N: Each row's group, in 0..size - 1.
        """
        group_N = np.arange(size) if group_N is None else group_N
        rows = np.bincount(group_N, minlength=size)
        width = self.predicted.num_values
        if width > 1:
            counts = np.bincount(group_N * width + y_N.astype(np.int64), minlength=size * width).reshape(size, width).astype(np.float64)
            return TargetSums(rows_N=rows, fold_N=fold_N, sum_NT=counts, square_NT=counts)
        sums = np.bincount(group_N, y_N, size)[:, None]
        with np.errstate(over="ignore"):
            squares = np.bincount(group_N, y_N**2, size)[:, None]
        return TargetSums(rows_N=rows, fold_N=fold_N, sum_NT=sums, square_NT=squares)


def folds_of(count: int, *, keys: Sequence[str], columns: Sequence[str], reduce: Callable[[Mergeable[Any]], Any]) -> Folds:
    """Folds by the keys where there are keys; else by the values of the columns, or by position where rows repeat.

    Equal rows are in one fold, since a copy of a row would tell its target. But where most rows have equals, they are no
    copies: then the few different rows of a category would all be in a few folds.
    """
    if keys:
        return Folds(count=count, columns=tuple(keys))
    rows, distinct = reduce(DistinctRows(tuple(columns)))
    return Folds(count=count, columns=tuple(columns) if distinct.estimate() >= DIFFERING * rows else ())


@dataclass(frozen=True)
class DistinctRows:
    """How many rows there are, and about how many different ones."""

    columns: tuple[str, ...]

    def init(self) -> tuple[int, Distinct]:
        return 0, Distinct()

    def update(self, state: tuple[int, Distinct], batch: pa.RecordBatch) -> tuple[int, Distinct]:
        return self.merge(state, (batch.num_rows, Distinct.of(content_hash(batch, self.columns).view(np.int64))))

    def merge(self, left: tuple[int, Distinct], right: tuple[int, Distinct]) -> tuple[int, Distinct]:
        return left[0] + right[0], left[1].merge(right[1])


def _numbers(array: pa.Array, name: str) -> np.ndarray:
    import pyarrow as pa

    numbers = np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if array.null_count or not np.isfinite(numbers).all():
        raise DataError(f"column {name!r} must be finite numbers without null", field=name, hint="drop those rows in prepare")
    return numbers
