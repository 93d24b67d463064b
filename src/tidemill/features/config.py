"""`[features]`: which operators each raw column goes through."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from tidemill.core.errors import ConfigError, NotFound
from tidemill.core.load import load, names
from tidemill.core.project import build, to_plain
from tidemill.features.operator import Operator


@dataclass(frozen=True)
class Step:
    """One operator in a column's chain, and the name by which it was asked for."""

    op: str
    operator: Operator


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Chains by column; a column without one gets the default of its type.

    Numbers pass as they are, null NaN, for models treat it as missing themselves. Booleans become 0 and 1. Text becomes
    one-hot features up to 16 distinct values, a vocabulary beyond. Times become date parts.
    """

    drop: tuple[str, ...] = ()
    """Columns kept out."""
    select: tuple[Mapping[str, Any], ...] = ()
    """Steps that leave features out once all are fitted, each a table of `op` and its parameters, or its name."""
    columns: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    """Steps by column, each a table of `op` and the operator's parameters; in a file, keys of [features] itself."""

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], path: str, where: str) -> Self:
        """The section `[features]`: `drop`, `select`, `columns` where it is a table, and one key for each other column.

        Raises:
            NotFound: If an operator is not known; names the nearest.
            ConfigError: If a parameter of one is not known or out of range; names its path.
        """
        drop: Any = tree.get("drop", ())
        if not isinstance(drop, (list, tuple)) or not all(isinstance(name, str) for name in drop):
            raise ConfigError(f"{path}.drop: must be a list of columns, got {drop!r} ({where})")
        chains = {name: steps for name, steps in tree.items() if name not in ("drop", "select")}
        if isinstance(chains.get("columns"), Mapping):
            chains.update(chains.pop("columns"))
        both = [name for name in drop if name in chains]
        if both:
            raise ConfigError(f"{path}.{both[0]}: must be dropped or have steps, not both ({where})")
        columns = {name: _chain(steps, f"{path}.{name}", where) for name, steps in chains.items()}
        return cls(drop=tuple(drop), select=_selection(tree.get("select", ()), f"{path}.select", where), columns=columns)

    def steps(self, column: str) -> tuple[Step, ...]:
        """The steps of a column that is named here."""
        return tuple(_step(step, f"features.{column}[{i}]", "project") for i, step in enumerate(self.columns[column]))


def _selection(steps: Any, path: str, where: str) -> tuple[Mapping[str, Any], ...]:
    """The steps of `select` as tables; what they mean is known to `features.select`."""
    if not isinstance(steps, (list, tuple)):
        raise ConfigError(f'{path}: must be a list of steps such as ["variance"], got {steps!r} ({where})')
    made = []
    for i, step in enumerate(steps):
        table = step if isinstance(step, Mapping) else {"op": step}
        if not isinstance(table.get("op"), str):
            raise ConfigError(f"{path}[{i}]: must be a name or a table with op, got {step!r} ({where})")
        made.append(dict(table))
    return tuple(made)


def _chain(steps: Any, path: str, where: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(steps, (list, tuple)):
        raise ConfigError(f'{path}: must be a list of steps such as ["impute", {{op = "clip", min = 0}}], got {steps!r} ({where})')
    made = []
    for i, step in enumerate(steps):
        table = step if isinstance(step, Mapping) else {"op": step}
        checked = _step(table, f"{path}[{i}]", where)
        given = {f.name: getattr(checked.operator, f.name) for f in dataclasses.fields(checked.operator) if f.name in table}  # type: ignore[arg-type]
        made.append({"op": checked.op, **to_plain(given)})
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
