"""Robust: numbers shifted by their median and scaled by the distance of two quantiles, which outliers do not move."""

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
class Robust:
    """(x - median) / (high quantile - low quantile); by default the interquartile range.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, NaN                  | NaN; fitting leaves it out                                         |
    | +-infinity                 | +-infinity; fitting leaves it out                                  |
    | integer beyond 2^53        | as the nearest float64                                             |
    | any, quantiles were equal  | x - median: more than the middle half was one number, not all      |
    """

    low_quantile: float = field(default=0.25, metadata={"min": 0.0, "max": 1.0})
    """Share of the training rows below the lower end of the scale, in 0..1."""
    high_quantile: float = field(default=0.75, metadata={"min": 0.0, "max": 1.0})
    """Share of the training rows below the upper end of the scale, in 0..1; above `low_quantile`."""

    accepts: ClassVar[tuple[Kind, ...]] = ("number",)

    def check(self) -> None:
        if self.low_quantile >= self.high_quantile:
            raise ConfigError(f"robust: low_quantile must be below high_quantile, got {self.low_quantile} and {self.high_quantile}")

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        return Distribution(self._summary)

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        with np.errstate(all="ignore"):
            return Made({name: numbers((values.data - fitted["median"]) / _divisor(fitted))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        median = graph.constant([[stats["median"] for stats in fitted]], np.float64)
        divisor = graph.constant([[_divisor(stats) for stats in fitted]], np.float64)
        return block.take(block.names, graph.node("Div", graph.node("Sub", graph.numbers(block), median), divisor), DOUBLE)

    def _summary(self, seen: Histogram) -> Fitted:
        low, median, high = seen.quantiles([self.low_quantile, 0.5, self.high_quantile]) or (0.0, 0.0, 0.0)
        return {"low": low, "median": median, "high": high}


def _divisor(fitted: Fitted) -> float:
    return float(fitted["high"] - fitted["low"]) or 1.0
