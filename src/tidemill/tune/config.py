"""`[tune]`: which parameters are searched, how, how long, and by how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from tidemill.core.errors import ConfigError
from tidemill.core.metrics import metric_of
from tidemill.tune.space import Dimension, flat


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """A search over the model's parameters; its best goes over what `[model]` says."""

    trials: int = field(default=20, metadata={"min": 1, "max": 100_000})
    """Fits to try. The first one is the project's own parameters, where they lie in the space."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """Range of each parameter: `"model.max_depth" = { int = [3, 9] }`, or float, log_float, choice; absent means the kind's own.
    `when = { "model.kind" = "xgboost" }` beside a range searches it only where another parameter has a value, one of a list,
    or lies between `min` and `max`; a list of ranges offers several, the first whose condition holds. `model.kind`,
    `model.calibrate` and `model.class_weight` are choices, the last two with "none" for absent. `points` is how many values
    a grid tries of a range."""
    sampler: Literal["tpe", "gp", "transfer", "random", "grid"] = "tpe"
    """tpe and gp (a Gaussian process; extra [torch]) learn from the trials before; transfer learns from them and from the
    searches on other tables that `warm_start = "history"` finds; random does not learn; grid tries every combination once,
    in a seeded order."""
    metric: str | None = None
    """Metric on the validation rows that picks the best; the contract's quality metric, else the task's, when absent."""
    pruner: Literal["median", "successive_halving", "hyperband", "none"] = "median"
    """Which trials are stopped early, by what they reached at the same progress: median those behind the median of the
    earlier ones; successive_halving all but the best third at each of growing distances; hyperband the same with first
    distances that differ between trials; none lets all run."""
    timeout_s: float | None = field(default=None, metadata={"min": 0.0})
    """Seconds of fitting, those before a restart counted, after which no trial is started and a running one is stopped; at
    least one is finished. Several workers share the sum of theirs divided by `workers`."""
    seed: int | None = None
    """Seed of the search; the project's when absent."""
    workers: int = field(default=1, metadata={"min": 1, "max": 256})
    """Processes on this machine that try at the same time, each with its share of `engine.threads` and `engine.memory`."""
    storage: str | None = None
    """postgresql://user@host/database where several machines share the search (extra [postgres]): every run that asks the
    same question of the same data takes part. The password comes from PGPASSWORD or ~/.pgpass. Absent means this machine."""
    narrow: bool = False
    """Narrow the space by what the first trials showed: parameters that hardly matter are fixed at the best trial's value,
    ranges of the others shrink around the good trials."""
    narrow_after: int | None = field(default=None, metadata={"min": 8, "max": 100_000})
    """Trials after which the space is narrowed; half of `trials`, at least 8, when absent."""
    warm_start: Literal["none", "portfolio", "history"] = "none"
    """What is tried after the project's own parameters: portfolio is a short list of XGBoost settings that did well on many
    tables; history is what won on the most similar tables searched before, then the portfolio."""
    history: str | None = None
    """Folder of earlier searches, to share it between projects; `.tidemill/studies` when absent."""

    def check(self) -> None:
        """Raise where the space cannot be read; its names and ranges are held against the model by `space_of`."""
        if self.metric is not None:
            metric_of(self.metric)
        for path, ranges in flat(self.space).items():
            for range_ in ranges if isinstance(ranges, list) and ranges else [ranges]:
                Dimension.read(path, range_)
        if self.narrow_after is not None and not self.narrow:
            raise ConfigError(f"tune.narrow_after: has no effect without narrow = true, got {self.narrow_after}")
        if self.sampler == "transfer" and self.warm_start != "history":
            raise ConfigError("tune.sampler: transfer learns from earlier searches", hint='add warm_start = "history"')
        if self.narrow and self.sampler == "grid":
            raise ConfigError("tune.narrow: a grid is tried whole", hint='use sampler = "tpe"')
        if self.storage is not None:
            _check_storage(self.storage)

    def narrows_at(self) -> int | None:
        """Number of finished trials at which the space is narrowed; None for never."""
        return (self.narrow_after or max(8, self.trials // 2)) if self.narrow else None


def _check_storage(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ConfigError(f"tune.storage: must be postgresql://user@host/database, got {parts.scheme or url!r}")
    if parts.password is not None or "password=" in parts.query:
        raise ConfigError("tune.storage: must not hold a password", hint="put it into PGPASSWORD or ~/.pgpass")
