"""Min-max: numbers shifted and scaled so that the training rows fill a range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.core.sketch import Moments
from tidemill.features.builder import DOUBLE, Block, Builder
from tidemill.features.operator import Fit, Fitted, Kind, Made, Values, numbers
from tidemill.features.statistics import MeanAndStd


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """The lowest training number becomes `low`, the highest `high`, others lie on the line through both.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, NaN                  | NaN; fitting leaves it out                                         |
    | outside the training range | outside `low` to `high`, or the nearer of them with `clip`         |
    | +-infinity                 | as above; fitting leaves it out, and what lies beyond +-1e145      |
    | integer beyond 2^53        | as the nearest float64                                             |
    | any number, all were equal | `low` (infinity NaN)                                               |
    """

    low: float = 0.0
    """What the lowest training number becomes."""
    high: float = 1.0
    """What the highest training number becomes; above `low`."""
    clip: bool = False
    """Whether numbers outside the training range are held at `low` and `high`."""

    accepts: ClassVar[tuple[Kind, ...]] = ("number",)

    def check(self) -> None:
        if not np.isfinite(self.low) or not np.isfinite(self.high) or self.low >= self.high:
            raise ConfigError(f"min_max: low must be below high, both finite, got {self.low} and {self.high}")

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        return MeanAndStd(_range)

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        with np.errstate(all="ignore"):
            made = (values.data - fitted["min"]) / _width(fitted) * (self.high - self.low) + self.low
        return Made({name: numbers(np.clip(made, self.low, self.high) if self.clip else made)})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        lowest = graph.constant([[stats["min"] for stats in fitted]], np.float64)
        width = graph.constant([[_width(stats) for stats in fitted]], np.float64)
        made = graph.node("Div", graph.node("Sub", graph.numbers(block), lowest), width)
        if self.high - self.low != 1:
            made = graph.node("Mul", made, graph.constant([[self.high - self.low]], np.float64))
        if self.low:
            made = graph.node("Add", made, graph.constant([[self.low]], np.float64))
        if self.clip:
            made = graph.node("Min", made, graph.constant([[self.high]], np.float64))
            made = graph.node("Max", made, graph.constant([[self.low]], np.float64))
        return block.take(block.names, made, DOUBLE)


def _range(seen: Moments) -> Fitted:
    return {"min": 0.0, "max": 0.0} if seen.min is None or seen.max is None else {"min": seen.min, "max": seen.max}


def _width(fitted: Fitted) -> float:
    """Highest less lowest; infinity in the place of 0, so that every finite number becomes 0."""
    return float(fitted["max"] - fitted["min"]) or float("inf")
