"""Clip: numbers held between two bounds, given or fitted as quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.features.builder import DOUBLE, Block, Builder
from tidemill.features.operator import Fit, Fitted, Kind, Made, Values, numbers
from tidemill.features.statistics import Distribution, Histogram


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The nearest number between the bounds; a quantile is used where no bound is given.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, NaN                  | NaN; fitting leaves it out                                         |
    | +-infinity                 | the bound on its side, or itself where there is none               |
    | integer beyond 2^53        | as the nearest float64                                             |
    """

    min: float | None = None
    """Lowest value that passes."""
    max: float | None = None
    """Highest value that passes."""
    low_quantile: float | None = field(default=None, metadata={"min": 0.0, "max": 1.0})
    """Share of the training rows that lies below the lowest value that passes, in 0..1; in place of `min`."""
    high_quantile: float | None = field(default=None, metadata={"min": 0.0, "max": 1.0})
    """Share of the training rows that lies below the highest value that passes, in 0..1; in place of `max`."""

    accepts: ClassVar[tuple[Kind, ...]] = ("number",)

    def check(self) -> None:
        if (self.min is not None and self.low_quantile is not None) or (self.max is not None and self.high_quantile is not None):
            raise ConfigError("clip: a side must have a bound or a quantile, not both")
        if all(bound is None for bound in (self.min, self.max, self.low_quantile, self.high_quantile)):
            raise ConfigError("clip: min, max, low_quantile or high_quantile must be given")
        low, high = (self.min, self.max) if self.low_quantile is None else (self.low_quantile, self.high_quantile)
        if low is not None and high is not None and low > high:
            raise ConfigError(f"clip: the lower bound must not be above the upper, got {low} and {high}")

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        if self.low_quantile is None and self.high_quantile is None:
            return {"min": self.min, "max": self.max}
        return Distribution(self._bounds)

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        low, high = _sides(fitted)
        return Made({name: numbers(np.minimum(np.maximum(values.data, low), high))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        x = graph.numbers(block)
        sides = [_sides(stats) for stats in fitted]
        if any(low > -np.inf for low, _ in sides):
            x = graph.node("Max", x, graph.constant([[low for low, _ in sides]], np.float64))
        if any(high < np.inf for _, high in sides):
            x = graph.node("Min", x, graph.constant([[high for _, high in sides]], np.float64))
        return block.take(block.names, x, DOUBLE)

    def _bounds(self, seen: Histogram) -> Fitted:
        fitted: Fitted = {"min": self.min, "max": self.max}
        for side, share in (("min", self.low_quantile), ("max", self.high_quantile)):
            if share is not None:
                fitted[side] = next(iter(seen.quantiles([share])), None)
        return fitted


def _sides(fitted: Fitted) -> tuple[float, float]:
    low, high = fitted["min"], fitted["max"]
    return -np.inf if low is None else low, np.inf if high is None else high
