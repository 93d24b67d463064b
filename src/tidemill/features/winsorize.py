"""Winsorize: numbers held between two quantiles of the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tidemill.core.errors import ConfigError
from tidemill.features.builder import Block, Builder
from tidemill.features.clip import Clip
from tidemill.features.operator import Fit, Fitted, Kind, Made, Values


@dataclass(frozen=True, kw_only=True)
class Winsorize:
    """The nearest number between two quantiles: `clip` with a quantile on either side, an equal share cut from each by default.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, NaN                  | NaN; fitting leaves it out                                         |
    | +-infinity                 | the quantile on its side; fitting leaves it out                    |
    | integer beyond 2^53        | as the nearest float64                                             |
    """

    low_quantile: float = field(default=0.01, metadata={"min": 0.0, "max": 1.0})
    """Share of the training rows that is raised to the lowest value that passes, in 0..1."""
    high_quantile: float = field(default=0.99, metadata={"min": 0.0, "max": 1.0})
    """Share of the training rows that lies below the highest value that passes, in 0..1; above `low_quantile`."""

    accepts: ClassVar[tuple[Kind, ...]] = ("number",)

    def check(self) -> None:
        if self.low_quantile >= self.high_quantile:
            raise ConfigError(f"winsorize: low_quantile must be below high_quantile, got {self.low_quantile} and {self.high_quantile}")

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        return self._clip().fit(kind)

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        return self._clip().reference(name, values, fitted)

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        return self._clip().nodes(graph, block, fitted)

    def _clip(self) -> Clip:
        return Clip(low_quantile=self.low_quantile, high_quantile=self.high_quantile)
