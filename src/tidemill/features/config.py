"""`[features]`: which operators each raw column goes through."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tidemill.core.errors import ConfigError, NotFound
from tidemill.core.load import load, names
from tidemill.core.project import build, to_plain
from tidemill.features.operator import AnyOperator, joins
from tidemill.features.select.selector import step_of


@dataclass(frozen=True)
class Step:
    """One operator in a column's chain, and the name by which it was asked for."""

    op: str
    operator: AnyOperator


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A column made of several raw ones: `route = { of = ["origin", "dest"], steps = ["cross", "target"] }`."""

    of: Mapping[str, tuple[Mapping[str, Any], ...]]
    """Raw columns, each with steps of its own before the others; in a file also a list of columns without."""
    steps: tuple[Mapping[str, Any], ...]
    """Steps, one of which joins the columns; those before it go over each of them."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Chains by column; a column without one gets the default of its type.

    Numbers pass as they are, null NaN, for models treat it as missing themselves. Booleans become 0 and 1. Text becomes
    one-hot features up to 16 distinct values, a vocabulary beyond, in the order of the values where all are numbers; for
    networks over features one-hot up to 4 and an `embedding` beyond, numbers or not. Free text, of several words and different
    in most rows, becomes what its n-grams say of the target (`ngram_target`). Times become date parts. `features.json` says which.
    """

    drop: tuple[str, ...] = ()
    """Columns kept out; a derived column may still be made of them."""
    select: tuple[Mapping[str, Any], ...] = ()
    """Steps that leave features out once all are fitted, each a table of `op` and its parameters, or its name."""
    folds: int = field(default=5, metadata={"min": 2, "max": 100})
    """Parts of the training rows for operators that learn from the target, in 2..100: a row is encoded by the other parts."""
    derived: Mapping[str, Derived] = field(default_factory=dict)
    """Columns made of several raw ones, by name; in a file, keys of [features] itself."""
    columns: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    """Steps by column, each a table of `op` and the operator's parameters; in a file, keys of [features] itself."""

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], path: str, where: str) -> Self:
        """The section `[features]`: `drop`, `select`, `folds`, and one key for each other column, raw or derived.

        A column that is called like one of those keys has its place in the table `columns` or `derived`.

        Raises:
            NotFound: If an operator is not known; names the nearest.
            ConfigError: If a parameter of one is not known or out of range; names its path.
        """
        drop: Any = tree.get("drop", ())
        if not isinstance(drop, (list, tuple)) or not all(isinstance(name, str) for name in drop):
            raise ConfigError(f"{path}.drop: must be a list of columns, got {drop!r} ({where})")
        folds = tree.get("folds", 5)
        if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= 100:
            raise ConfigError(f"{path}.folds: must be a whole number in 2..100, got {folds!r} ({where})")
        given = {name: steps for name, steps in tree.items() if name not in _KEYS}
        for table in ("columns", "derived"):
            if isinstance(given.get(table), Mapping) and "of" not in given[table]:
                given.update(given.pop(table))
        made = {name: _derived(table, f"{path}.{name}", where) for name, table in given.items() if isinstance(table, Mapping)}
        columns = {name: _chain(steps, f"{path}.{name}", where) for name, steps in given.items() if name not in made}
        both = [name for name in drop if name in given]
        if both:
            raise ConfigError(f"{path}.{both[0]}: must be dropped or have steps, not both ({where})")
        selection = _selection(tree.get("select", ()), f"{path}.select", where)
        return cls(drop=tuple(drop), select=selection, folds=folds, derived=made, columns=columns)

    def steps(self, column: str) -> tuple[Step, ...]:
        """The steps of a raw column that is named here."""
        return _steps(self.columns[column], f"features.{column}")

    def derivation(self, name: str) -> tuple[dict[str, tuple[Step, ...]], tuple[Step, ...]]:
        """The steps of each raw column that a derived one is made of, and those from the joining step on."""
        derived = self.derived[name]
        steps = _steps(derived.steps, f"features.{name}.steps")
        at = next(i for i, step in enumerate(steps) if joins(step.operator))
        of = {column: (*_steps(own, f"features.{name}.of.{column}"), *steps[:at]) for column, own in derived.of.items()}
        return of, steps[at:]


_KEYS = ("drop", "select", "folds")


def _steps(tables: Sequence[Mapping[str, Any]], path: str) -> tuple[Step, ...]:
    return tuple(_step(table, f"{path}[{i}]", "project") for i, table in enumerate(tables))


def _derived(table: Mapping[str, Any], path: str, where: str) -> Derived:
    unknown = next((key for key in table if key not in ("of", "steps")), None)
    if unknown is not None:
        raise ConfigError(f"{path}.{unknown}: is not a known key of a derived column ({where}); known: of, steps")
    of = table.get("of")
    if not isinstance(of, (Mapping, list, tuple)) or not of or not all(isinstance(name, str) for name in of):
        raise ConfigError(f'{path}.of: must be raw columns such as ["origin", "dest"], got {of!r} ({where})')
    if len(set(of)) < len(of):
        raise ConfigError(f"{path}.of: must name each column once, got {list(of)!r} ({where})")
    columns = {name: _chain(of[name] if isinstance(of, Mapping) else [], f"{path}.of.{name}", where, joining=None) for name in of}
    return Derived(of=columns, steps=_chain(table.get("steps", ()), f"{path}.steps", where, joining=True))


def _selection(steps: Any, path: str, where: str) -> tuple[Mapping[str, Any], ...]:
    """The steps of `select` as tables; what they mean is known to `features.select`."""
    if not isinstance(steps, (list, tuple)):
        raise ConfigError(f'{path}: must be a list of steps such as ["variance"], got {steps!r} ({where})')
    made = []
    for i, step in enumerate(steps):
        table = step if isinstance(step, Mapping) else {"op": step}
        if not isinstance(table.get("op"), str):
            raise ConfigError(f"{path}[{i}]: must be a name or a table with op, got {step!r} ({where})")
        step_of(table, f"{path}[{i}]", where)
        made.append(dict(table))
    return tuple(made)


def _chain(steps: Any, path: str, where: str, *, joining: bool | None = False) -> tuple[Mapping[str, Any], ...]:
    """Steps as tables, checked; exactly one of them joins columns where `joining`, none otherwise."""
    if not isinstance(steps, (list, tuple)):
        raise ConfigError(f'{path}: must be a list of steps such as ["impute", {{op = "clip", min = 0}}], got {steps!r} ({where})')
    made, joined = [], []
    for i, step in enumerate(steps):
        table = step if isinstance(step, Mapping) else {"op": step}
        checked = _step(table, f"{path}[{i}]", where)
        joined += [checked.op] if joins(checked.operator) else []
        given = {f.name: getattr(checked.operator, f.name) for f in dataclasses.fields(checked.operator) if f.name in table}  # type: ignore[arg-type]
        made.append({"op": checked.op, **to_plain(given)})
    if joined and not joining:
        hint = (
            None
            if joining is None
            else f'{path.rpartition(".")[2]} = {{ of = ["...", "..."], steps = ["{joined[0]}"] }} makes a column of several'
        )
        raise ConfigError(f"{path}: {joined[0]} must get several columns, gets one ({where})", hint=hint)
    if joining and len(joined) != 1:
        raise ConfigError(f"{path}: exactly one step must join the columns, such as cross or pca, got {len(joined)} ({where})")
    return tuple(made)


def _step(table: Mapping[str, Any], path: str, where: str) -> Step:
    if "op" not in table:
        raise ConfigError(f"{path}: must name its operator as op, got {dict(table)!r} ({where}); known: {', '.join(names('operator'))}")
    op = table["op"]
    if not isinstance(op, str) and not isinstance(op, type):
        raise ConfigError(f"{path}: must be an operator's name or a table with op, got {op!r} ({where})")
    try:
        struct = load("operator", op)
    except NotFound as error:
        raise NotFound("operator", error.name, error.known, hint=f"{path} ({where})") from None
    if not isinstance(struct, type) or not dataclasses.is_dataclass(struct) or not hasattr(struct, "nodes"):
        raise ConfigError(f"{path}: must be an operator, a frozen dataclass with nodes and reference, got {op!r} ({where})")
    parameters = {key: value for key, value in table.items() if key != "op"}
    try:
        operator = build(struct, parameters, path=path, where=where)
    except ConfigError as error:
        if error.message.startswith(path):
            raise
        raise ConfigError(f"{path}: {error.message} ({where})", hint=error.hint) from None
    return Step(str(to_plain(op)), operator)
