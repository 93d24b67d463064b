"""The seam of feature operators: what each is fitted with, its nodes, and its plain NumPy reference.

An operator is a frozen dataclass whose fields are its parameters. It lives in one file, is named by one line of
`core.load.TABLE["operator"]` (or an entry point, or "module:attribute"), and passes `testing.operator.OperatorConformance`.
Its three answers must agree: `nodes` for many columns at once in ONNX, `reference` for one column in NumPy, and both
are told by the JSON statistics that `fit` ends with, nothing else.

Two kinds see more than one column: an operator with `joins` makes a derived column of several (`JoinOperator`), one with
`needs_target` is fitted on the target beside the values (`TargetOperator`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeGuard, TypeVar, cast

import numpy as np

from tidemill.core.schema import NULL_STRING, NULL_TIMESTAMP

if TYPE_CHECKING:
    import pyarrow as pa

    from tidemill.features.builder import Block, Builder

S = TypeVar("S")
Fitted = dict[str, Any]

Kind = Literal["number", "integer", "string", "time"]

# What a raw column is before its first step. An integer is taken as a number where an operator accepts only those.
KINDS: dict[str, Kind] = {
    "boolean": "integer", "int64": "integer", "float32": "number", "float64": "number", "string": "string", "timestamp": "time",
}  # fmt: skip


@dataclass(frozen=True)
class Values:
    """One column of N values in NumPy.

    `number`: float64, null is NaN. `string`: objects, null is None. `integer` and `time` (microseconds UTC): int64,
    null where `valid` is False.
    """

    kind: Kind
    data: np.ndarray
    valid: np.ndarray | None = None
    parts: tuple[Values, ...] = ()
    """Of a cross, the columns that it is made of."""

    def __len__(self) -> int:
        return len(self.data)

    def known(self) -> np.ndarray:
        """Where the value is not null, bool [N]."""
        if self.kind == "number":
            return np.asarray(~np.isnan(self.data))
        if self.kind == "string":
            return np.array([value is not None for value in self.data.tolist()], bool)
        return np.ones(len(self.data), bool) if self.valid is None else self.valid

    @cached_property
    def finite(self) -> np.ndarray:
        """Of numbers those that are neither null nor infinite, float64."""
        kept = np.isfinite(self.data)
        return self.data if kept.all() else self.data.take(np.flatnonzero(kept))

    @cached_property
    def nulls(self) -> int:
        """How many numbers are null."""
        return int(np.count_nonzero(np.isnan(self.data)))

    def as_kind(self, kind: Kind) -> Values:
        """The same values as another kind; only integers become numbers (beyond 2^53 they round)."""
        if kind == self.kind:
            return self
        if (self.kind, kind) != ("integer", "number"):
            raise TypeError(f"{self.kind} values are no {kind}")
        return Values("number", np.where(self.known(), self.data.astype(np.float64), np.nan))


class Texts(Values):
    """Texts as Arrow has them; they become Python's only where somebody asks for `data`."""

    texts: pa.Array
    """Null, or the noncharacter U+FFFF, is null."""

    def __init__(self, texts: pa.Array) -> None:
        import pyarrow.compute as pc

        object.__setattr__(self, "kind", "string")
        object.__setattr__(self, "valid", None)
        object.__setattr__(self, "parts", ())
        object.__setattr__(self, "texts", texts)
        known = pc.fill_null(pc.not_equal(texts, NULL_STRING), False)
        object.__setattr__(self, "_known", np.asarray(known.to_numpy(zero_copy_only=False)))

    @cached_property
    def data(self) -> np.ndarray:
        return strings(self.texts.to_pylist()).data

    def __len__(self) -> int:
        return len(self.texts)

    def known(self) -> np.ndarray:
        known: np.ndarray = self.__dict__["_known"]
        return known


def numbers(data: Any) -> Values:
    """Values of kind `number`."""
    return Values("number", np.asarray(data, np.float64))


def integers(data: Any, valid: np.ndarray | None = None) -> Values:
    """Values of kind `integer`."""
    return Values("integer", np.asarray(data, np.int64), valid)


def times(data: Any, valid: np.ndarray | None = None) -> Values:
    """Values of kind `time`; the int64 minimum is null as in the graph."""
    array = np.asarray(data, np.int64)
    present = array != NULL_TIMESTAMP
    return Values("time", array, present if valid is None else present & valid)


def strings(data: Any) -> Values:
    """Values of kind `string`; the noncharacter U+FFFF is null as in the graph."""
    array = np.empty(len(data), object)
    array[:] = [None if value == NULL_STRING else value for value in data]
    return Values("string", array)


@dataclass(frozen=True)
class Made:
    """What a step makes of one column: columns that go on to the next step, and features that are finished."""

    columns: dict[str, Values]
    sides: dict[str, Values] = field(default_factory=dict)


class Fit(Protocol[S]):
    """A statistic of one column, computed in pieces and merged in order. States are plain, picklable data.

    `update` may change and return the state it is given, `merge` its first argument.
    """

    def init(self) -> S: ...

    def update(self, state: S, values: Values, counts: np.ndarray | None) -> S:
        """Take in values; `counts` says how often each occurs (int64 [N]), None means once."""
        ...

    def merge(self, left: S, right: S) -> S: ...

    def finish(self, state: S) -> Fitted:
        """The fitted statistics: JSON values, finite, enough for `nodes` and `reference`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What is predicted, as an operator that learns from it sees it: T numbers a row."""

    labels: tuple[str, ...] = ()
    """What each number is called, one per class of a multiclass task; empty where there is one number."""
    num_folds: int
    """Folds of the training rows, from 0; as many stand for all rows."""

    @property
    def num_values(self) -> int:
        """T."""
        return max(1, len(self.labels))


@dataclass(frozen=True, kw_only=True)
class TargetSums:
    """The target over the rows that each of N values stands for, all of one fold."""

    rows_N: np.ndarray
    """How many rows, int64 [N]."""
    fold_N: np.ndarray
    """Their fold, int64 [N]."""
    sum_NT: np.ndarray
    """Sums of the target's numbers, float64 [N, T]; 0 and 1 for each class."""
    square_NT: np.ndarray
    """Sums of their squares, float64 [N, T]."""


class TargetFit(Protocol[S]):
    """A `Fit` that sees the target beside the values."""

    def init(self) -> S: ...

    def update(self, state: S, values: Values, target: TargetSums) -> S: ...

    def merge(self, left: S, right: S) -> S: ...

    def finish(self, state: S) -> Fitted: ...


class JoinFit(Protocol[S]):
    """A `Fit` of several columns together."""

    def init(self) -> S: ...

    def update(self, state: S, columns: Sequence[Values], counts: np.ndarray | None) -> S: ...

    def merge(self, left: S, right: S) -> S: ...

    def finish(self, state: S) -> Fitted: ...


class Operator(Protocol):
    """One step of a column's chain. Immutable; its parameters are its dataclass fields.

    A `check()` method, where there is one, is called when the project is read and raises ConfigError.

    One that does nothing to a column of numbers but fill its nulls may have `fill_of(fitted)`, the number that it fills them with:
    the next step may then be fitted in the same pass (see `statistics.Filled`).
    """

    accepts: ClassVar[tuple[Kind, ...]]

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        """What to fit on a column of this kind, or the fitted statistics themselves where no data is needed.

        Raises:
            ConfigError: If the parameters do not fit the kind.
        """
        ...

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        """The step on one column in plain NumPy, without ONNX; for the parity gate, and for fitting the next step."""
        ...

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        """The step on several columns at once, as ONNX nodes; side features leave through `graph.emit`.

        Names and their order are those that `reference` gives, column by column.
        """
        ...


class TargetOperator(Protocol):
    """An operator that learns from the target, fold by fold: a training row sees what the other folds taught.

    In a graph for training `graph.fold` names the input with each row's fold; in one that answers it is None, and what all
    rows taught holds. `reference` does the same by `fold_N`.
    """

    needs_target: ClassVar[Literal[True]]
    accepts: ClassVar[tuple[Kind, ...]]

    def fit(self, kind: Kind, predicted: Predicted) -> TargetFit[Any]: ...

    def reference(self, name: str, values: Values, fitted: Fitted, fold_N: np.ndarray | None = None) -> Made: ...

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block: ...


class JoinOperator(Protocol):
    """An operator that makes one derived column, or several, of all the columns that reach it. `name` is the derived column's."""

    joins: ClassVar[Literal[True]]
    accepts: ClassVar[tuple[Kind, ...]]

    def fit(self, kinds: Sequence[Kind]) -> JoinFit[Any] | Fitted: ...

    def reference(self, name: str, columns: Sequence[Values], fitted: Fitted) -> Made: ...

    def nodes(self, graph: Builder, name: str, columns: Sequence[Block], fitted: Fitted) -> Block:
        """The step as nodes; `columns` are blocks of one column or more, together in the order that `reference` sees."""
        ...


AnyOperator = Operator | TargetOperator | JoinOperator


def joins(operator: AnyOperator) -> TypeGuard[JoinOperator]:
    """Whether an operator makes one column of several."""
    return bool(getattr(operator, "joins", False))


def needs_target(operator: AnyOperator) -> TypeGuard[TargetOperator]:
    """Whether an operator learns from the target."""
    return bool(getattr(operator, "needs_target", False))


def single(operator: AnyOperator) -> Operator:
    """An operator that joins nothing and needs no target, as such."""
    return cast("Operator", operator)


def taken_as(kind: Kind, accepts: Sequence[Kind]) -> Kind | None:
    """The kind as which an operator takes a column, None where it does not."""
    if kind in accepts:
        return kind
    return "number" if kind == "integer" and "number" in accepts else None


def params(operator: AnyOperator) -> Mapping[str, Any]:
    """An operator's parameters as JSON values."""
    from tidemill.core.project import to_plain

    plain: Mapping[str, Any] = to_plain(operator)
    return plain
