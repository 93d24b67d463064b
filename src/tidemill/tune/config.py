"""`[tune]`: which parameters are searched, how, and how long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tidemill.core.errors import ConfigError, Unsupported, nearest
from tidemill.core.load import TABLE
from tidemill.core.metrics import metric_of
from tidemill.models.config import ModelConfig

KINDS = ("int", "float", "log_float", "choice")

# Keys of [model] that are not parameters of its kind.
_NOT_SEARCHED = ("kind", "calibrate", "class_weight", "params")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """A search over the model's parameters; its best goes over what `[model]` says."""

    trials: int = field(default=20, metadata={"min": 1, "max": 100_000})
    """Fits to try. The first one is the project's own parameters, where they lie in the space."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """Range of each parameter: `"model.max_depth" = { int = [3, 9] }`, or float, log_float, choice; absent means the kind's own."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe learns from the trials before; random does not."""
    metric: str | None = None
    """Metric on the validation rows that picks the best; the contract's quality metric, else the task's, when absent."""
    pruner: Literal["median", "none"] = "median"
    """median stops a trial that is behind the median of the earlier ones at the same progress; none lets all run."""
    timeout_s: float | None = field(default=None, metadata={"min": 0.0})
    """Seconds of fitting after which no trial is started; at least one is run."""
    seed: int | None = None
    """Seed of the search; the project's when absent."""

    def check(self) -> None:
        """Raise where the space cannot be read; its names and ranges are held against the model by `dimensions`."""
        if self.metric is not None:
            metric_of(self.metric)
        for path, range_ in flat(self.space).items():
            Dimension.read(path, range_)


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

    @property
    def name(self) -> str:
        return self.path.removeprefix("model.")

    def holds(self, value: Any) -> bool:
        return value in self.choices if self.kind == "choice" else self.low <= value <= self.high

    def ends(self) -> Sequence[Any]:
        """The values that have to be allowed for the whole range to be."""
        if self.kind == "choice":
            return self.choices
        return (int(self.low), int(self.high)) if self.kind == "int" else (float(self.low), float(self.high))

    @classmethod
    def read(cls, path: str, range_: Any) -> Dimension:
        """A dimension from `{ int = [3, 9] }` and its like.

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
        if not isinstance(range_, Mapping) or len(range_) != 1 or next(iter(range_)) not in KINDS:
            given = next(iter(range_), None) if isinstance(range_, Mapping) else None
            close = nearest(str(given), KINDS)
            hint = f"did you mean {close!r}?" if close and close != given else "for example { int = [3, 9] }"
            raise ConfigError(f"{where}: must be a table of one of {', '.join(KINDS)}, got {range_!r}", hint=hint)
        kind, values = next(iter(range_.items()))
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"{where}.{kind}: must be a list, got {values!r}")
        if kind == "choice":
            return cls(path=path, kind=kind, choices=tuple(values))
        if len(values) != 2 or not all(_is_number(value, whole=kind == "int") for value in values) or values[0] > values[1]:
            numbers = "whole numbers" if kind == "int" else "numbers"
            raise ConfigError(f"{where}.{kind}: must be two {numbers}, the lower first, got {values!r}")
        if kind == "log_float" and not values[0] > 0:
            raise ConfigError(f"{where}.log_float: must be above 0, got {values!r}")
        return cls(path=path, kind=kind, low=values[0], high=values[1])


def dimensions(config: TuneConfig, model: ModelConfig) -> list[Dimension]:
    """The dimensions of the search in the order of their paths, held against the model's parameters.

    Raises:
        ConfigError: If a parameter is unknown, or a value of its range is not allowed; names the path.
        Unsupported: If a path is not of a parameter of the model's kind.
    """
    space = flat(config.space) or {f"model.{name}": range_ for name, range_ in model.model().space.items()}
    if not space:
        raise ConfigError(f"tune.space: must be given for model.kind {model.kind!r}, which offers none")
    found = [Dimension.read(path, space[path]) for path in sorted(space)]
    for dimension in found:
        if dimension.name in _NOT_SEARCHED:
            raise Unsupported(f"tune.space.{dimension.path}: is not searched", hint=f"give a parameter of {model.kind!r}")
        for value in dimension.ends():
            model.parameters({dimension.name: value}, path="tune.space.model")
    return found


def flat(space: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Ranges by dotted path, whether the file wrote `"model.max_depth"` or nested tables."""
    found: dict[str, Any] = {}
    for key, value in space.items():
        inside = f"{path}.{key}" if path else key
        nested = isinstance(value, Mapping) and value and not any(kind in value for kind in KINDS) and "." not in inside
        found |= flat(value, inside) if nested else {inside: value}
    return found


def _is_number(value: Any, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) if whole else math.isfinite(value)
