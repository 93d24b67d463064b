"""Cyclical: a number that comes round again, such as an hour, as a point on a circle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.features.builder import DOUBLE, Block, Builder
from tidemill.features.operator import Fitted, Kind, Made, Values, numbers

# What date_parts makes, by the end of its name: after how much it comes round; None where it does not.
PERIODS: dict[str, float | None] = {
    "year": None, "quarter": 4.0, "month": 12.0, "day": 31.0, "weekday": 7.0, "weekend": None, "day_of_year": 366.0,
    "hour": 24.0, "minute": 60.0, "second": 60.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cyclical:
    """Features `<column>.sin` and `<column>.cos` of 2 pi x / period, so that the last hour is next to the first.

    After `date_parts` the periods are known: quarter 4, month 12, day 31, weekday 7, day_of_year 366, hour 24, minute and
    second 60; year and weekend do not come round and pass as they are.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, NaN                  | NaN in both                                                        |
    | +-infinity                 | NaN in both                                                        |
    | integer beyond 2^53        | as the nearest float64                                             |
    | beyond one period, below 0 | the rest after whole periods, exact                                |
    """

    period: float | None = None
    """After how much the column comes round, above 0; absent: what the part of a date has."""

    accepts: ClassVar[tuple[Kind, ...]] = ("number",)

    def check(self) -> None:
        if self.period is not None and not (0 < self.period < np.inf):
            raise ConfigError(f"cyclical: period must be above 0 and finite, got {self.period}")

    def fit(self, kind: Kind) -> Fitted:
        return {}

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        period = self._period(name)
        if period is None:
            return Made({name: values})
        with np.errstate(invalid="ignore"):
            turns = np.fmod(values.data, period) / period
        made = {}
        for part, shifted in ((".sin", turns - 0.25), (".cos", turns)):
            made[name + part] = numbers(np.sin((0.25 - np.abs(shifted - np.rint(shifted))) * (2 * np.pi)))
        return Made(made)

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        x = graph.numbers(block)
        periods = [self._period(name) for name in block.names]
        whole = graph.constant([[period or 1.0 for period in periods]], np.float64)
        turns = graph.node("Div", graph.node("Mod", x, whole, fmod=1), whole)
        quarter = graph.constant([[0.25]], np.float64)
        shifted = graph.stack([graph.node("Sub", turns, quarter), turns])
        # The cosine as a sine of what is left to a quarter of a turn: exactly 0 and 1 where they shall be, whoever computes.
        distance = graph.node("Abs", graph.node("Sub", shifted, graph.node("Round", shifted)))
        angle = graph.node("Mul", graph.node("Sub", quarter, distance), graph.constant([[2 * np.pi]], np.float64))
        made = [graph.node("Sin", angle)]
        passing = None in periods
        # Features go column by column; tensors hold the sine, the cosine, and what passes of all columns.
        count = len(block)
        places = [(i, part) for i, period in enumerate(periods) for part in ((2,) if period is None else (0, 1))]
        stacked = graph.stack([*made, x] if passing else made)
        if count > 1 or passing:
            stacked = graph.node("Gather", stacked, graph.constant([part * count + i for i, part in places], np.int64), axis=1)
        names = [block.names[i] + (".sin", ".cos", "")[part] for i, part in places]
        return block.take(names, stacked, DOUBLE, origins=tuple(block.origins[i] for i, _ in places))

    def _period(self, name: str) -> float | None:
        if self.period is not None:
            return self.period
        part = name.rpartition(".")[2]
        if part not in PERIODS or part == name:
            raise ConfigError(
                f"features.{name}: cyclical must be given the period of a column that is no part of a date", hint="period = 24"
            )
        return PERIODS[part]
