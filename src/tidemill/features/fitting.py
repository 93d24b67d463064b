"""Fitting: the chains of all columns, level by level, one pass over the rows each.

A level is one `reduce` for the next step of every column that needs the data. Up to there a column goes through its
earlier steps by their NumPy reference: plain float64, no graph is built for a state that nobody keeps, and text goes
through once per distinct value of a batch, with its count. Steps that need no data cost no pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.engine import Mergeable
from tidemill.core.errors import ConfigError, DataError, TidemillError, nearest
from tidemill.core.load import load
from tidemill.core.parallel import ordered_map
from tidemill.core.schema import Column, Schema
from tidemill.features.config import FeaturesConfig, Step
from tidemill.features.defaults import LOOKED_AT, default_of_text
from tidemill.features.operator import (
    KINDS,
    AnyOperator,
    Fitted,
    Texts,
    Values,
    integers,
    joins,
    needs_target,
    numbers,
    params,
    single,
    strings,
    taken_as,
    times,
)
from tidemill.features.reading import Read, Reader
from tidemill.features.reference import apply, part_name
from tidemill.features.statistics import Bounded, Categories, Fillable, Filled, Tally, bounded
from tidemill.features.supervision import Supervision

if TYPE_CHECKING:
    import pyarrow as pa

# Aggregates over the training rows, such as an engine's `reduce` on them.
Reduce = Callable[[Mergeable[Any]], Any]

# What operators that learn from the target need; making it may cost a pass over the rows.
Supervise = Callable[[], Supervision]


def fit(
    columns: Schema,
    config: FeaturesConfig,
    reduce: Reduce,
    *,
    supervise: Supervise | None = None,
    embeds: bool = False,
    threads: int = 1,
) -> dict[str, Any]:
    """What `features.json` holds but for the features' names: `inputs`, fitted steps by column, and `dropped` (reasons by column).

    Args:
        columns: Raw columns that may be inputs.
        supervise: Asked once, where an operator learns from the target; absent where nothing can.
        embeds: Whether the model learns tables for codes of categories, which decides some defaults.
        threads: Threads that statistics of several columns are merged on.

    Raises:
        ConfigError: If a column that the config names is absent, or an operator does not take what reaches it.
        DataError: If no column is left.
    """
    dropped = dict.fromkeys(_present(config.drop, columns, "features.drop"), "dropped by features.drop")
    _present(config.columns, columns, "features")
    derived = [_derived(name, columns, config) for name in config.derived]
    chains = [_Chain(column.name, (column,), _steps(column, config)) for column in columns if column.name not in dropped]
    parts = [part for chain in derived for part in chain.parts]
    supervision = supervise() if supervise is not None and any(chain.taught for chain in (*chains, *derived)) else None
    level = Level(
        [
            *(_Task(chain, _next_fits(chain, supervision), census=True) for chain in chains),
            *(_Task(chain, fits) for chain in (*parts, *derived) if (fits := _next_fits(chain, supervision))),
        ],
        supervision,
        threads,
    )
    while level.tasks:
        for task, outcome in zip(level.tasks, reduce(level), strict=True):
            reason = task.take_in(outcome, learns=supervise is not None, embeds=embeds)
            if reason is not None:
                dropped[task.chain.name] = reason
        chains = [chain for chain in chains if chain.name not in dropped]
        if supervision is None and supervise is not None and any(chain.taught for chain in chains):
            supervision = supervise()
        waiting = [(chain, _next_fits(chain, supervision)) for chain in (*chains, *parts, *derived)]
        level = Level([_Task(chain, fits) for chain, fits in waiting if fits], supervision, threads)
    if not chains and not derived:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
        raise DataError(f"at least one column must be left as a feature, got none ({reasons or 'the data has no other columns'})")
    used = {column.name for chain in (*chains, *derived) for column in chain.columns}
    made: dict[str, Any] = {"inputs": Schema(tuple(column for column in columns if column.name in used)).to_json()}
    made["columns"] = {chain.name: chain.to_json() for chain in chains}
    if derived:
        made["derived"] = {chain.name: {"of": chain.of_json(), "steps": chain.to_json()} for chain in derived}
    if supervision is not None and any(chain.taught for chain in (*chains, *derived)):
        made["folds"] = supervision.folds.to_json()
    return {**made, "dropped": {name: reason for name, reason in dropped.items() if name not in used}}


@dataclass
class _Chain:
    """A raw or derived column's steps, the first `len(fitted)` of them with their statistics by the column that they take."""

    name: str
    columns: tuple[Column, ...]
    """Raw columns that it begins with: itself, or those that a derived column is made of."""
    steps: tuple[Step, ...] | None
    """None as long as a text column's default waits for its distinct values."""
    parts: tuple[_Chain, ...] = ()
    """What a derived column joins: the chain of each of its raw columns up to there."""
    fitted: list[dict[str, Fitted]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.steps is not None and len(self.fitted) == len(self.steps)

    @property
    def taught(self) -> bool:
        """Whether a step learns from the target."""
        return any(needs_target(step.operator) for step in self.steps or ()) or any(part.taught for part in self.parts)

    def reached(self, values: Mapping[str, Values], fold_N: np.ndarray | None = None) -> dict[str, Values]:
        """What the fitted steps make of the raw columns."""
        made: dict[str, Values] = {}
        for part in self.parts:
            made.update(part.reached(values, fold_N))
        made = made or {self.name: values[self.columns[0].name]}
        for step, fitted in zip(self.steps or (), self.fitted, strict=False):
            made = apply(step.operator, made, fitted, name=self.name, fold_N=fold_N).columns
        return made

    def to_json(self) -> list[dict[str, Any]]:
        """Each step with its parameters and statistics; those of a step that takes several columns go by column."""
        made = []
        for step, fitted in zip(self.steps or (), self.fitted, strict=True):
            one = list(fitted) == [self.name]
            statistics = {"fitted": fitted[self.name]} if one else {"fitted": {}, "by_column": fitted}
            made.append({"op": step.op, "params": params(step.operator), **statistics})
        return made

    def of_json(self) -> dict[str, Any]:
        """The steps of each raw column of a derived one, up to where they are joined."""
        return {part.columns[0].name: part.to_json() for part in self.parts}


@dataclass
class _Census:
    """Whether a column says anything: how many rows are null, and whether the others differ."""

    rows: int = 0
    nulls: int = 0
    value: Any = None
    varies: bool = False
    texts: list[str] = field(default_factory=list)
    """Some of a text column's values, the first ones."""

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

                if len(self.texts) < LOOKED_AT:
                    self.texts += values.texts.take(pa.array(np.flatnonzero(known)[: LOOKED_AT - len(self.texts)])).to_pylist()
                value = values.texts[first].as_py()
                if not self.varies:
                    differ = pc.and_(pc.not_equal(values.texts, values.texts[first]), pa.array(known))
                    self.merge(_Census(value=value, varies=bool(pc.any(differ).as_py())))
            elif not self.varies:
                # The first few mostly tell; all have to where they do not.
                varies = any(np.any((part != values.data[first]) & there) for part, there in _first_then_all(values.data, known))
                self.merge(_Census(value=values.data[first], varies=varies))

    def merge(self, other: _Census) -> None:
        self.rows += other.rows
        self.nulls += other.nulls
        self.texts += other.texts[: LOOKED_AT - len(self.texts)]
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


def _first_then_all(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    yield tuple(array[:LOOKED_AT] for array in arrays)
    yield arrays


@dataclass
class _Task:
    """What one chain needs in a level: statistics of what reaches its next step; the census, in the first."""

    chain: _Chain
    fits: dict[str, Any]
    """By the column that the step takes, or by the derived column where it joins several."""
    census: bool = False

    @property
    def operator(self) -> AnyOperator | None:
        """The next step's; None where a text column's default waits."""
        steps = self.chain.steps
        return steps[len(self.chain.fitted)].operator if steps and not self.chain.complete else None

    def init(self) -> tuple[_Census, dict[str, Any]]:
        return _Census(), {name: fit.init() for name, fit in self.fits.items() if not isinstance(fit, dict)}

    def update(self, states: dict[str, Any], batch: Read) -> None:
        operator = self.operator
        reached = self.chain.reached(batch.values, batch.fold_N)
        if operator is not None:
            reached = {name: values.as_kind(taken_as(values.kind, operator.accepts) or values.kind) for name, values in reached.items()}
        if operator is not None and joins(operator):
            name, fit = next(iter(self.fits.items()))
            states[name] = fit.update(states[name], list(reached.values()), batch.counts_N)
            return
        for name, values in reached.items():
            if name in states:
                beside = batch.sums if operator is not None and needs_target(operator) else batch.counts_N
                states[name] = self.fits[name].update(states[name], values, beside)

    def take_in(self, state: tuple[_Census, dict[str, Any]], *, learns: bool, embeds: bool) -> str | None:
        """Let the chain have its statistics; the reason where the column is of no use.

        Args:
            learns: Whether a default may be an operator that learns from the target.
            embeds: Whether it may be codes of a table.
        """
        census, states = state
        reason = census.reason(self.chain.columns[0]) if self.census else None
        if reason is not None or not self.fits:
            return reason
        if self.chain.steps is None:
            seen, rows = states[self.chain.name], census.rows - census.nulls
            self.chain.steps = (default_of_text(seen, rows, census.texts, learns=learns, embeds=embeds),)
            if needs_target(self.chain.steps[0].operator):  # which takes a pass of its own
                return None
            self.fits = _fits_of(self.chain.steps[0], {self.chain.name: strings([])}, self.chain.name, None)
        if isinstance(self.fits.get(self.chain.name), Filled):
            self.chain.fitted += [{self.chain.name: fitted} for fitted in self.fits[self.chain.name].finish(states[self.chain.name])]
            return None
        self.chain.fitted.append({name: fit if isinstance(fit, dict) else fit.finish(states[name]) for name, fit in self.fits.items()})
        return None


@dataclass(frozen=True)
class Level:
    """One pass for all tasks: a `Mergeable` whose state holds one entry a task."""

    tasks: list[_Task]
    supervision: Supervision | None = None
    threads: int = 1

    @property
    def taught(self) -> bool:
        """Whether the rows' folds and targets are looked at."""
        return any(task.chain.taught for task in self.tasks)

    @property
    def columns(self) -> list[str]:
        """Columns that are looked at, text also as dictionaries: see `core.engine.Mergeable`."""
        named = [column.name for task in self.tasks for column in task.chain.columns]
        return list(dict.fromkeys([*named, *(self.supervision.columns if self.supervision is not None and self.taught else [])]))

    def init(self) -> list[Any]:
        return [task.init() for task in self.tasks]

    def update(self, state: list[Any], batch: pa.RecordBatch) -> list[Any]:
        reader = Reader(batch, self.supervision if self.taught else None)
        for task, (census, states) in zip(self.tasks, state, strict=True):
            rows = reader.read(task.chain.columns, taught=task.chain.taught)
            if task.census:
                census.add(rows.values[task.chain.columns[0].name], rows.counts_N)
            if states:
                task.update(states, rows)
        return state

    def merge(self, left: list[Any], right: list[Any]) -> list[Any]:
        def merged(number: int) -> None:
            task, (census, states), (other, others) = self.tasks[number], left[number], right[number]
            census.merge(other)
            for name, state in states.items():
                fit = task.fits[name]
                states[name] = state if isinstance(fit, dict) else fit.merge(state, others[name])

        for _ in ordered_map(merged, range(len(self.tasks)), self.threads):
            pass
        bounded([state for _, states in left for state in states.values() if isinstance(state, Bounded)])
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


def _derived(name: str, columns: Schema, config: FeaturesConfig) -> _Chain:
    """A derived column's chain, nothing of it fitted."""
    if name in columns:
        raise ConfigError(f"features.{name}: a derived column must have a name of its own, a column of the data is called so")
    of, steps = config.derivation(name)
    _present(of, columns, f"features.{name}.of")
    parts = tuple(_Chain(part_name(name, column), (columns[column],), own) for column, own in of.items())
    return _Chain(name, tuple(columns[column] for column in of), steps, parts)


def _next_fits(chain: _Chain, supervision: Supervision | None) -> dict[str, Any]:
    """What the chain's next unfitted step needs of the data, by column; steps that need nothing are fitted on the way."""
    if chain.steps is None:
        return {chain.name: Categories(_uncounted)}
    if not all(part.complete for part in chain.parts):
        return {}
    if chain.taught and supervision is None:
        raise ConfigError(f"features.{chain.name}: an operator that learns from the target must be given it, there is none here")
    empty = {column.name: _EMPTY[KINDS[column.type]] for column in chain.columns}
    while True:
        reached = chain.reached(empty, np.empty(0, np.int64))
        if chain.complete:
            wrong = next((values.kind for values in reached.values() if values.kind not in ("number", "integer")), None)
            if wrong is not None and not _is_part(chain):
                close = "date_parts" if wrong == "time" else "one_hot or vocabulary"
                raise ConfigError(f"features.{chain.name}: must end in numbers, ends in {wrong}", hint=f"add {close}")
            return {}
        fits = _fits_of(chain.steps[len(chain.fitted)], reached, chain.name, supervision)
        if any(not isinstance(fit, dict) for fit in fits.values()):
            return _with_next(chain, reached, fits)
        chain.fitted.append(fits)


def _with_next(chain: _Chain, reached: Mapping[str, Values], fits: dict[str, Any]) -> dict[str, Any]:
    """The next step's fits, with those of the step after it where that one gets the same numbers but for nulls that are filled."""
    step, *later = (chain.steps or ())[len(chain.fitted) :]
    fill_of = getattr(step.operator, "fill_of", None)
    if fill_of is None or not later or list(reached) != [chain.name] or joins(later[0].operator) or needs_target(later[0].operator):
        return fits
    if taken_as(reached[chain.name].kind, step.operator.accepts) != "number":
        return fits
    second = _fits_of(later[0], {chain.name: _EMPTY["number"]}, chain.name, None)[chain.name]
    return {chain.name: Filled(fits[chain.name], fill_of, second)} if isinstance(second, Fillable) else fits


def _is_part(chain: _Chain) -> bool:
    """Whether it leads into a derived column, which goes on with what it makes."""
    return not chain.parts and chain.name != chain.columns[0].name


def _fits_of(step: Step, reached: Mapping[str, Values], chain: str, supervision: Supervision | None) -> dict[str, Any]:
    operator, kinds = step.operator, {}
    for name, values in reached.items():
        kind = taken_as(values.kind, operator.accepts)
        if kind is None:
            raise ConfigError(
                f"features.{name}: {step.op} must get {' or '.join(operator.accepts)}, gets {values.kind}", hint=_ADVICE[values.kind]
            )
        kinds[name] = kind
    where = chain
    try:
        if joins(operator):
            return {chain: operator.fit(list(kinds.values()))}
        made: dict[str, Any] = {}
        for where, kind in kinds.items():
            if needs_target(operator) and supervision is not None:
                made[where] = operator.fit(kind, supervision.predicted)
            else:
                made[where] = single(operator).fit(kind)
        return made
    except TidemillError as error:
        raise ConfigError(f"features.{where}: {error.message}", hint=error.hint) from error


def _uncounted(seen: Tally) -> Fitted:  # the default of the column makes its own summary
    raise TypeError(f"{len(seen)} categories have no summary")


_EMPTY = {"number": numbers([]), "integer": integers([]), "string": strings([]), "time": times([])}
_ADVICE = {
    "number": "bin makes categories of numbers",
    "integer": "bin makes categories of numbers",
    "string": "one_hot or vocabulary makes numbers of text",
    "time": "date_parts makes numbers of times",
}
