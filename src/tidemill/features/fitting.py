"""Fitting: the chains of all columns, level by level, one pass over the rows each.

A level is one `reduce` for the next step of every column that needs the data. Up to there a column goes through its
earlier steps by their NumPy reference: plain float64, no graph is built for a state that nobody keeps, and text goes
through once per distinct value of a batch, with its count. Steps that need no data cost no pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.engine import Mergeable
from tidemill.core.errors import ConfigError, DataError, TidemillError, nearest
from tidemill.core.graph import RowSignature
from tidemill.core.load import load
from tidemill.core.schema import Column, Schema
from tidemill.features.config import FeaturesConfig, Step
from tidemill.features.operator import KINDS, Fit, Fitted, Kind, Texts, Values, integers, numbers, params, strings, taken_as, times
from tidemill.features.reference import apply, raw_values
from tidemill.features.statistics import Categories, Tally, bounded

if TYPE_CHECKING:
    import pyarrow as pa

# Aggregates over the training rows, such as an engine's `reduce` on them.
Reduce = Callable[[Mergeable[Any]], Any]

# A text column without steps becomes one-hot features up to so many distinct values, else a vocabulary.
MAX_ONE_HOT = 16


def fit(columns: Schema, config: FeaturesConfig, reduce: Reduce) -> dict[str, Any]:
    """The `inputs`, `columns` (fitted steps by column) and `dropped` (reasons by column) of `features.json`.

    Args:
        columns: Raw columns that may be inputs.

    Raises:
        ConfigError: If a column that the config names is absent, or an operator does not take what reaches it.
        DataError: If no column is left.
    """
    dropped = dict.fromkeys(_present(config.drop, columns, "features.drop"), "dropped by features.drop")
    _present(config.columns, columns, "features")
    chains = [_Chain(column, _steps(column, config)) for column in columns if column.name not in dropped]
    level = Level([_Task(chain, _next_fits(chain), census=True) for chain in chains])
    while level.tasks:
        for task, outcome in zip(level.tasks, reduce(level), strict=True):
            reason = task.take_in(outcome)
            if reason is not None:
                dropped[task.chain.column.name] = reason
        chains = [chain for chain in chains if chain.column.name not in dropped]
        level = Level([_Task(chain, fits) for chain in chains if (fits := _next_fits(chain))])
    if not chains:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
        raise DataError(f"at least one column must be left as a feature, got none ({reasons or 'the data has no other columns'})")
    inputs = Schema(tuple(chain.column for chain in chains))
    return {"inputs": inputs.to_json(), "columns": {chain.column.name: chain.to_json() for chain in chains}, "dropped": dropped}


@dataclass
class _Chain:
    """A column's steps, the first `len(fitted)` of them with their statistics by the column that they take."""

    column: Column
    steps: tuple[Step, ...] | None
    """None as long as a text column's default waits for its distinct values."""
    fitted: list[dict[str, Fitted]] = field(default_factory=list)

    def reached(self, values: Values) -> dict[str, Values]:
        """What the fitted steps make of the raw column."""
        made = {self.column.name: values}
        for step, fitted in zip(self.steps or (), self.fitted, strict=False):
            made = apply(step.operator, made, fitted).columns
        return made

    def to_json(self) -> list[dict[str, Any]]:
        """Each step with its parameters and statistics; those of a step that takes several columns go by column."""
        made = []
        for step, fitted in zip(self.steps or (), self.fitted, strict=True):
            one = list(fitted) == [self.column.name]
            statistics = {"fitted": fitted[self.column.name]} if one else {"fitted": {}, "by_column": fitted}
            made.append({"op": step.op, "params": params(step.operator), **statistics})
        return made


@dataclass
class _Census:
    """Whether a column says anything: how many rows are null, and whether the others differ."""

    rows: int = 0
    nulls: int = 0
    value: Any = None
    varies: bool = False

    def add(self, values: Values, counts: np.ndarray | None) -> None:
        known = values.known()
        weights = np.ones(len(values), np.int64) if counts is None else counts
        self.rows += int(weights.sum())
        self.nulls += int(weights[~known].sum())
        if known.any():
            first = int(np.flatnonzero(known)[0])
            if isinstance(values, Texts):  # compared where they lie
                import pyarrow as pa
                import pyarrow.compute as pc

                differ = pc.and_(pc.not_equal(values.texts, values.texts[first]), pa.array(known))
                self.merge(_Census(value=values.texts[first].as_py(), varies=bool(pc.any(differ).as_py())))
            else:
                self.merge(_Census(value=values.data[first], varies=bool(np.any(values.data[known] != values.data[first]))))

    def merge(self, other: _Census) -> None:
        self.rows += other.rows
        self.nulls += other.nulls
        self.varies |= other.varies or (self.value is not None and other.value is not None and self.value != other.value)
        self.value = other.value if self.value is None else self.value

    def reason(self, column: Column) -> str | None:
        """Why the column is of no use, None where it is."""
        if self.nulls == self.rows:
            return "every value is null"
        if self.nulls or self.varies:
            return None
        if column.type == "timestamp":
            return f"every value is {np.datetime64(int(self.value), 'us')} UTC"
        return f"every value is {bool(self.value) if column.type == 'boolean' else self.value!s:.60}"


@dataclass
class _Task:
    """What one column needs in a level: statistics of what reaches its next step; the census, in the first."""

    chain: _Chain
    fits: dict[str, Fit[Any] | Fitted]
    census: bool = False

    def init(self) -> tuple[_Census, dict[str, Any]]:
        return _Census(), {name: fit.init() for name, fit in self.fits.items() if not isinstance(fit, dict)}

    def take_in(self, state: tuple[_Census, dict[str, Any]]) -> str | None:
        """Let the chain have its statistics; the reason where the column is of no use."""
        census, states = state
        reason = census.reason(self.chain.column) if self.census else None
        if reason is not None or not self.fits:
            return reason
        if self.chain.steps is None:
            self.chain.steps = (_default_of_text(states[self.chain.column.name]),)
            self.fits = dict(_fits_of(self.chain.steps[0], {self.chain.column.name: strings([])}))
        self.chain.fitted.append({name: fit if isinstance(fit, dict) else fit.finish(states[name]) for name, fit in self.fits.items()})
        return None


@dataclass(frozen=True)
class Level:
    """One pass for all tasks: a `Mergeable` whose state holds one entry a task."""

    tasks: list[_Task]

    @property
    def columns(self) -> list[str]:
        """Raw columns that are looked at, text also as dictionaries: see `core.engine.Mergeable`."""
        return list(dict.fromkeys(task.chain.column.name for task in self.tasks))

    def init(self) -> list[Any]:
        return [task.init() for task in self.tasks]

    def update(self, state: list[Any], batch: pa.RecordBatch) -> list[Any]:
        signature = RowSignature(Schema(tuple(task.chain.column for task in self.tasks)))
        for task, (census, states) in zip(self.tasks, state, strict=True):
            values, counts = _batch_values(signature.arrow_column(batch, task.chain.column), task.chain.column)
            if task.census:
                census.add(values, counts)
            for name, reached in task.chain.reached(values).items() if states else ():
                fit = task.fits[name]
                if not isinstance(fit, dict):
                    states[name] = fit.update(states[name], reached.as_kind(_kind_for(task.chain, reached)), counts)
        return state

    def merge(self, left: list[Any], right: list[Any]) -> list[Any]:
        for task, (census, states), (other, others) in zip(self.tasks, left, right, strict=True):
            census.merge(other)
            for name, state in states.items():
                fit = task.fits[name]
                states[name] = state if isinstance(fit, dict) else fit.merge(state, others[name])
        bounded([state for _, states in left for state in states.values() if isinstance(state, Tally)])
        return left


def _present(names: Any, columns: Schema, where: str) -> list[str]:
    for name in names:
        if name not in columns:
            close = nearest(name, columns.names)
            hint = f"did you mean {close!r}?" if close else f"known: {', '.join(columns.names[:12])}"
            raise ConfigError(
                f"{where}: column {name!r} must be one that can be a feature, is not in the data or has another role", hint=hint
            )
    return list(names)


def _steps(column: Column, config: FeaturesConfig) -> tuple[Step, ...] | None:
    """The column's steps: its own or its type's default; None for text, which waits for its distinct values."""
    if column.name in config.columns:
        return config.steps(column.name)
    if column.type == "string":
        return None
    return (Step("date_parts", load("operator", "date_parts")()),) if column.type == "timestamp" else ()


def _default_of_text(seen: Tally) -> Step:
    name = "one_hot" if len(seen) <= MAX_ONE_HOT else "vocabulary"
    return Step(name, load("operator", name)())


def _next_fits(chain: _Chain) -> dict[str, Fit[Any] | Fitted]:
    """What the chain's next unfitted step needs of the data, by column; steps that need nothing are fitted on the way."""
    empty = {"number": numbers([]), "integer": integers([]), "string": strings([]), "time": times([])}[KINDS[chain.column.type]]
    if chain.steps is None:
        return {chain.column.name: Categories(_uncounted)}
    while True:
        reached = chain.reached(empty)
        if len(chain.fitted) == len(chain.steps):
            wrong = next((values.kind for values in reached.values() if values.kind not in ("number", "integer")), None)
            if wrong is not None:
                close = "date_parts" if wrong == "time" else "one_hot or vocabulary"
                raise ConfigError(f"features.{chain.column.name}: must end in numbers, ends in {wrong}", hint=f"add {close}")
            return {}
        fits = _fits_of(chain.steps[len(chain.fitted)], reached)
        if any(not isinstance(fit, dict) for fit in fits.values()):
            return fits
        chain.fitted.append({name: fit for name, fit in fits.items() if isinstance(fit, dict)})


def _fits_of(step: Step, reached: Mapping[str, Values]) -> dict[str, Fit[Any] | Fitted]:
    fits = {}
    for name, values in reached.items():
        kind = taken_as(values.kind, step.operator.accepts)
        if kind is None:
            raise ConfigError(
                f"features.{name}: {step.op} must get {' or '.join(step.operator.accepts)}, gets {values.kind}", hint=_ADVICE[values.kind]
            )
        try:
            fits[name] = step.operator.fit(kind)
        except TidemillError as error:
            raise ConfigError(f"features.{name}: {error.message}", hint=error.hint) from error
    return fits


def _kind_for(chain: _Chain, values: Values) -> Kind:
    """The kind as which the chain's next step takes values that reach it."""
    steps = chain.steps or ()
    return (taken_as(values.kind, steps[len(chain.fitted)].operator.accepts) if steps else None) or values.kind


def _batch_values(array: pa.Array, column: Column) -> tuple[Values, np.ndarray | None]:
    """One column of a batch; text as its distinct values and how often each occurs."""
    if column.type != "string":
        return raw_values(array, column), None
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(array.type):
        distinct = pc.value_counts(array)
        return Texts(distinct.field("values")), distinct.field("counts").to_numpy()
    # A null is the place after the last.
    places = pc.fill_null(array.indices, len(array.dictionary)).to_numpy()
    counts = np.bincount(places, minlength=len(array.dictionary) + 1)
    occurs = np.flatnonzero(counts)
    texts = array.dictionary.take(pa.array(occurs, mask=occurs == len(array.dictionary)))
    return Texts(texts), counts[occurs]


def _uncounted(seen: Tally) -> Fitted:  # the default of the column makes its own summary
    raise TypeError(f"{len(seen)} categories have no summary")


_ADVICE = {
    "number": "bin makes categories of numbers",
    "integer": "bin makes categories of numbers",
    "string": "one_hot or vocabulary makes numbers of text",
    "time": "date_parts makes numbers of times",
}
