"""The space of a search: its dimensions, the conditions between them, and what each kind of model brings of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill.core.errors import ConfigError, TidemillError, Unsupported, nearest
from tidemill.core.load import TABLE
from tidemill.models.config import ModelConfig

KINDS = ("int", "float", "log_float", "choice")
KIND = "model.kind"

# Settings beside the parameters of a kind that may be searched, as a choice, and what they may be.
SETTINGS: Mapping[str, tuple[str, ...]] = {"model.calibrate": ("none", "platt", "isotonic"), "model.class_weight": ("none", "balanced")}

# Values that a grid tries of a range, where the range does not say.
GRID_POINTS = 5
MAX_GRID = 100_000


@dataclass(frozen=True, kw_only=True)
class Condition:
    """That another parameter has one of some values, or lies in a range."""

    path: str
    """Path of the other parameter."""
    values: tuple[Any, ...] = ()
    """Values, one of which it must have."""
    low: float = -math.inf
    """Least value, where no values are given."""
    high: float = math.inf
    """Greatest value, where no values are given."""

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Whether `params` have it; not where the other parameter is itself left out."""
        if self.path not in params:
            return False
        return params[self.path] in self.values if self.values else self.low <= params[self.path] <= self.high


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One parameter and what it may be: between `low` and `high`, both included, or one of `choices`."""

    path: str
    """Path in the project file, such as model.max_depth."""
    kind: str
    """int | float | log_float | choice."""
    low: float = 0.0
    """Least value."""
    high: float = 0.0
    """Greatest value."""
    choices: tuple[Any, ...] = ()
    """Values, for a choice."""
    when: tuple[Condition, ...] = ()
    """What must hold of other parameters for this one to be searched."""
    points: int = GRID_POINTS
    """Values that a grid tries."""
    branch: int = 0
    """Which of the ranges that the project gives this path."""

    @property
    def name(self) -> str:
        return self.path.removeprefix("model.")

    @property
    def key(self) -> str:
        """The path, told apart from other ranges of it."""
        return f"{self.path}#{self.branch}" if self.branch else self.path

    def holds(self, value: Any) -> bool:
        if self.kind == "choice":
            return value in self.choices
        return not isinstance(value, (str, bool)) and value is not None and self.low <= value <= self.high

    def applies(self, params: Mapping[str, Any]) -> bool:
        return self.path not in params and all(condition.holds(params) for condition in self.when)

    def ends(self) -> Sequence[Any]:
        """The values that have to be allowed for the whole range to be."""
        if self.kind == "choice":
            return self.choices
        return (int(self.low), int(self.high)) if self.kind == "int" else (float(self.low), float(self.high))

    def grid(self) -> list[Any]:
        """The values that a grid tries: every choice, else `points` at even distances."""
        if self.kind == "choice":
            return list(self.choices)
        count = 1 if self.low == self.high else max(2, self.points)
        shares = [index / max(1, count - 1) for index in range(count)]
        if self.kind == "log_float":
            return [float(self.low * (self.high / self.low) ** share) for share in shares]
        values = [self.low + (self.high - self.low) * share for share in shares]
        return sorted({round(value) for value in values}) if self.kind == "int" else [float(value) for value in values]

    @classmethod
    def read(cls, path: str, range_: Any, *, branch: int = 0) -> Dimension:
        """A dimension from `{ int = [3, 9] }` and its like, with `when` and `points` beside.

        Raises:
            ConfigError: If it is not of that form.
            Unsupported: If the path is of a section that is not searched.
        """
        where = f"tune.space.{path}"
        section = path.partition(".")[0]
        if section != "model":
            if section in TABLE["section"]:
                raise Unsupported(f"{where}: only model parameters are searched, not [{section}]", hint='write "model.<name>"')
            raise ConfigError(f'{where}: must be "model.<name>"', hint=f'did you mean "model.{path}"?')
        given = [key for key in range_ if key not in ("when", "points")] if isinstance(range_, Mapping) else []
        if len(given) != 1 or given[0] not in KINDS:
            close = nearest(str(given[0]), KINDS) if given else None
            hint = f"did you mean {close!r}?" if close and close != given[0] else "for example { int = [3, 9] }"
            raise ConfigError(f"{where}: must be a table of one of {', '.join(KINDS)}, got {range_!r}", hint=hint)
        kind, values = given[0], range_[given[0]]
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"{where}.{kind}: must be a list, got {values!r}")
        points = range_.get("points", GRID_POINTS)
        if isinstance(points, bool) or not isinstance(points, int) or not 1 <= points <= 1000:
            raise ConfigError(f"{where}.points: must be in 1..1000, got {points!r}")
        when = tuple(_conditions(range_.get("when", {}), where))
        if kind == "choice":
            return cls(path=path, kind=kind, choices=tuple(values), when=when, branch=branch)
        if len(values) != 2 or not all(_is_number(value, whole=kind == "int") for value in values) or values[0] > values[1]:
            numbers = "whole numbers" if kind == "int" else "numbers"
            raise ConfigError(f"{where}.{kind}: must be two {numbers}, the lower first, got {values!r}")
        if kind == "log_float" and not values[0] > 0:
            raise ConfigError(f"{where}.log_float: must be above 0, got {values!r}")
        return cls(path=path, kind=kind, low=values[0], high=values[1], when=when, points=points, branch=branch)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Dimensions in an order in which each comes after those that its conditions name, and what is fixed."""

    dimensions: tuple[Dimension, ...]
    """What is searched."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values by path that narrowing settled."""

    def walk(self, params: dict[str, Any]) -> Iterator[Dimension]:
        """The dimensions that apply, one after the other; the caller enters the value of each into `params` before the next."""
        for dimension in self.dimensions:
            if dimension.applies(params):
                yield dimension

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Whether `params` could have been drawn from this space, what is fixed aside."""
        seen: dict[str, Any] = dict(self.fixed)
        for dimension in self.walk(seen):
            if dimension.path not in params or not dimension.holds(params[dimension.path]):
                return False
            seen[dimension.path] = params[dimension.path]
        return True

    def within(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """As much of `params` as the space has a place for; a number outside its range becomes the range's end."""
        seen: dict[str, Any] = dict(self.fixed)
        for dimension in self.walk(seen):
            value: Any = params.get(dimension.path)
            if dimension.kind != "choice" and _is_number(value, whole=False):
                value = min(max(value, dimension.low), dimension.high)
                value = round(value) if dimension.kind == "int" else float(value)
            if value is not None and dimension.holds(value):
                seen[dimension.path] = value
        return {path: value for path, value in seen.items() if path not in self.fixed}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the dimensions' grid values, conditions kept."""
        found: list[dict[str, Any]] = [dict(self.fixed)]
        for dimension in self.dimensions:
            found = list(itertools.chain.from_iterable(_branches(params, dimension) for params in found))
            if len(found) > MAX_GRID:
                raise ConfigError(
                    f"tune.space: a grid must have at most {MAX_GRID:,} combinations", hint="give fewer points, or another sampler"
                )
        return found


def space_of(space: Mapping[str, Any], model: ModelConfig) -> Space:
    """The space that a project writes, or the model's own where it writes none, held against the model's parameters.

    Where `model.kind` is searched, a parameter that only some of its kinds have is searched for those kinds only.

    Raises:
        ConfigError: If a parameter or a condition's parameter is unknown, a value is not allowed, or conditions go round;
            names the path.
        Unsupported: If a path is not of something that is searched.
    """
    written = [
        Dimension.read(path, range_, branch=branch)
        for path, ranges in sorted(flat(space).items())
        for branch, range_ in enumerate(ranges if isinstance(ranges, list) and ranges else [ranges])
    ]
    kinds = _kinds(written, model)
    if all(dimension.path == KIND or dimension.path in SETTINGS for dimension in written):
        written += _own(kinds, searched=any(dimension.path == KIND for dimension in written))
    if not written:
        raise ConfigError(f"tune.space: must be given for model.kind {model.kind!r}, which offers none")
    known = {kind: model.tuned({KIND: kind}) for kind in kinds}
    return Space(dimensions=_ordered([_checked(dimension, known) for dimension in written]))


def flat(space: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Ranges by dotted path, whether the file wrote `"model.max_depth"` or nested tables."""
    found: dict[str, Any] = {}
    for key, value in space.items():
        inside = f"{path}.{key}" if path else key
        nested = isinstance(value, Mapping) and value and not any(kind in value for kind in KINDS) and "." not in inside
        found |= flat(value, inside) if nested else {inside: value}
    return found


def _conditions(when: Any, where: str, path: str = "") -> Iterator[Condition]:
    if not isinstance(when, Mapping):
        raise ConfigError(f'{where}.when: must be a table such as {{ "model.kind" = "xgboost" }}, got {when!r}')
    for key, value in when.items():
        inside = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and not value.keys() <= {"min", "max"}:
            yield from _conditions(value, where, inside)
        elif isinstance(value, Mapping):
            ends = (value.get("min", -math.inf), value.get("max", math.inf))
            if not value or any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in ends) or not ends[0] <= ends[1]:
                raise ConfigError(f"{where}.when.{inside}: must be numbers min <= max, got {dict(value)!r}")
            yield Condition(path=inside, low=ends[0], high=ends[1])
        else:
            yield Condition(path=inside, values=tuple(value) if isinstance(value, (list, tuple)) else (value,))


def _kinds(written: Sequence[Dimension], model: ModelConfig) -> list[str]:
    """The kinds of model that the search may fit."""
    for dimension in written:
        if dimension.path == KIND:
            if dimension.kind != "choice" or not all(isinstance(kind, str) for kind in dimension.choices):
                raise ConfigError(f'tune.space.{KIND}: must be a choice of kinds, such as {{ choice = ["xgboost", "linear"] }}')
            return [str(kind) for kind in dimension.choices]
    return [model.kind]


def _own(kinds: Sequence[str], *, searched: bool) -> list[Dimension]:
    """What the kinds offer themselves, each range for its own kind."""
    found: list[Dimension] = []
    branches: dict[str, int] = {}
    for kind in kinds:
        for name, range_ in sorted(ModelConfig(kind=kind).model().space.items()):
            path = f"model.{name}"
            branch = branches[path] = branches.get(path, -1) + 1
            when = {"when": {KIND: kind}} if searched else {}
            found.append(Dimension.read(path, {**range_, **when}, branch=branch))
    return found


def _checked(dimension: Dimension, known: Mapping[str, ModelConfig]) -> Dimension:
    """The dimension, every value of it allowed, under the condition that its kind is one that has the parameter."""
    where = f"tune.space.{dimension.path}"
    if dimension.path == KIND:
        return dimension
    if dimension.path in SETTINGS:
        allowed = SETTINGS[dimension.path]
        if dimension.kind != "choice" or not set(dimension.choices) <= set(allowed):
            raise ConfigError(f"{where}: must be a choice of {', '.join(allowed)}, got {list(dimension.ends())!r}")
        for value, config in itertools.product(dimension.choices, known.values()):
            config.tuned({dimension.path: value}).check(path="tune.space.model")
        return dimension
    if dimension.name in ("params", "interval"):
        raise Unsupported(f"{where}: is not searched", hint="give a parameter of the kind, kind, calibrate or class_weight")
    asked = [condition.values for condition in dimension.when if condition.path == KIND and condition.values]
    kinds = [kind for kind in known if all(kind in values for values in asked)]
    refused: dict[str, TidemillError] = {}
    for kind in kinds:
        try:
            for value in dimension.ends():
                known[kind].parameters({dimension.name: value}, path="tune.space.model")
        except ConfigError as error:
            if asked or "is not a known key" not in error.message:
                raise
            refused[kind] = error
    having = [kind for kind in kinds if kind not in refused]
    if not having and refused:
        raise next(iter(refused.values()))
    if len(having) == len(known) or asked:
        return dimension
    return Dimension(**{**vars(dimension), "when": (*dimension.when, Condition(path=KIND, values=tuple(having)))})


def _ordered(dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Each after those that its conditions name, else in the order given."""
    by_path: dict[str, list[Dimension]] = {}
    for dimension in dimensions:
        by_path.setdefault(dimension.path, []).append(dimension)
    for dimension in dimensions:
        for condition in dimension.when:
            _check_condition(dimension, condition, by_path)
    found: list[Dimension] = []
    placed: set[str] = set()

    def place(path: str, asking: tuple[str, ...]) -> None:
        if path in asking:
            raise ConfigError(f"tune.space.{path}.when: conditions must not go round: {' needs '.join([*asking, path])}")
        if path in placed:
            return
        for dimension in by_path[path]:
            for condition in dimension.when:
                place(condition.path, (*asking, path))
        placed.add(path)
        found.extend(by_path[path])

    for path in by_path:
        place(path, ())
    return tuple(found)


def _check_condition(dimension: Dimension, condition: Condition, by_path: Mapping[str, Sequence[Dimension]]) -> None:
    where = f"tune.space.{dimension.path}.when.{condition.path}"
    if condition.path not in by_path:
        close = nearest(condition.path, by_path)
        hint = f"did you mean {close!r}?" if close and close != dimension.path else "conditions are on other searched parameters"
        raise ConfigError(f"{where}: must be a parameter of the space", hint=hint)
    parents = by_path[condition.path]
    for value in condition.values:
        if not any(parent.holds(value) for parent in parents):
            known = "; ".join(
                f"one of {', '.join(map(str, parent.choices))}" if parent.kind == "choice" else f"in {parent.low}..{parent.high}"
                for parent in parents
            )
            raise ConfigError(f"{where}: must be a value that the space holds, {known}, got {value!r}")
    if not condition.values and any(parent.kind == "choice" for parent in parents):
        raise ConfigError(f"{where}: min and max need a range, and {condition.path} is a choice", hint="list the values")


def _branches(params: dict[str, Any], dimension: Dimension) -> list[dict[str, Any]]:
    return [{**params, dimension.path: value} for value in dimension.grid()] if dimension.applies(params) else [params]


def _is_number(value: Any, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) if whole else math.isfinite(value)
