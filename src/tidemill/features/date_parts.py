"""Date parts: a time as year, month, weekday, hour and so on, in a time zone of one's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.core.schema import NULL_TIMESTAMP
from tidemill.features import timezone
from tidemill.features.builder import INT64, Block, Builder
from tidemill.features.operator import Fitted, Kind, Made, Values, integers

Part = Literal["year", "quarter", "month", "day", "weekday", "weekend", "day_of_year", "hour", "minute", "second"]

MICROSECONDS = 1_000_000
DAY = 86_400
# The Gregorian calendar repeats after 400 years, which are whole weeks too. Shifted by 750 such periods every time that
# int64 microseconds can say is positive, and ONNX Runtime's division, which truncates, rounds down.
PERIOD_DAYS = 146_097
PERIODS = 750


@dataclass(frozen=True, kw_only=True)
class DateParts:
    """Features `<column>.<part>`, whole numbers in the proleptic Gregorian calendar.

    weekday counts from 0, Monday, to 6; weekend is 1 on Saturday and Sunday; the others count as people do. A time zone
    is a table of its transitions in the graph, made at fitting for 1900 to 2100; outside, its first and last offsets
    hold on.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null                       | NaN in every part                                                  |
    | before 1970, before year 1 | counted on backwards; the year 0 is there, as in ISO 8601          |
    | any microsecond of int64   | exact                                                              |
    """

    parts: tuple[Part, ...] = ("day_of_year", "weekday", "hour", "minute")
    """Parts to make: year, quarter, month, day, weekday, weekend, day_of_year, hour, minute, second."""
    timezone: str = "UTC"
    """Zone of the IANA database, such as America/New_York."""

    accepts: ClassVar[tuple[Kind, ...]] = ("time",)

    def check(self) -> None:
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ConfigError(f"date_parts: parts must be given, each once, got {list(self.parts)}")
        timezone.zone(self.timezone)

    def fit(self, kind: Kind) -> Fitted:
        transitions, offsets = timezone.transitions(self.timezone)
        return {"transitions": transitions, "offsets": offsets}

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        known = values.known()
        seconds = np.floor_divide(np.where(known, values.data, 0), MICROSECONDS)
        offset = np.asarray(fitted["offsets"], np.int64)[
            np.searchsorted(np.asarray(fitted["transitions"], np.int64), seconds, side="right")
        ]
        local = (seconds + offset).astype("M8[s]")
        return Made({f"{name}.{part}": integers(_REFERENCE[part](local).astype(np.int64), known) for part in self.parts})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        time = graph.stack(block.tensors)
        valid = graph.node("Not", graph.node("Equal", time, graph.constant([[NULL_TIMESTAMP]], np.int64)))
        calendar = _Calendar(
            graph, timezone.local_nodes(graph, _whole_seconds(graph, time), fitted[0]["transitions"], fitted[0]["offsets"])
        )
        made = [calendar[part] for part in self.parts]
        # Features go column by column, part by part; tensors hold one part of all columns.
        count, parts = len(block), len(self.parts)
        tensors: tuple[str, ...] = (graph.stack(made),)
        valids: tuple[str, ...] = (valid,)
        if count > 1:
            order = graph.constant([part * count + column for column in range(count) for part in range(parts)], np.int64)
            tensors = (graph.node("Gather", tensors[0], order, axis=1),)
            valids = (graph.node("Gather", valid, graph.constant(np.repeat(np.arange(count), parts), np.int64), axis=1),)
        names = [f"{name}.{part}" for name in block.names for part in self.parts]
        origins = tuple(origin for origin in block.origins for _ in self.parts)
        return block.take(names, tensors[0], INT64, kind="integer", origins=origins, valid=valids)


class _Calendar:
    """Parts of local seconds as nodes, each made when first asked for.

    Years are counted from March, after Howard Hinnant's `civil_from_days`, so that the leap day comes last.
    """

    def __init__(self, graph: Builder, seconds: str) -> None:
        self._graph = graph
        self._made = {"seconds": self._add(seconds, PERIODS * PERIOD_DAYS * DAY)}

    def __getitem__(self, part: str) -> str:
        if part not in self._made:
            self._made[part] = getattr(self, f"_{part}")()
        return self._made[part]

    def _days(self) -> str:
        return self._div(self["seconds"], DAY)

    def _hour(self) -> str:
        return self._mod(self._div(self["seconds"], 3600), 24)

    def _minute(self) -> str:
        return self._mod(self._div(self["seconds"], 60), 60)

    def _second(self) -> str:
        return self._mod(self["seconds"], 60)

    def _weekday(self) -> str:
        return self._mod(self._add(self["days"], 3), 7)

    def _weekend(self) -> str:
        return self._div(self["weekday"], 5)

    def _march_days(self) -> str:
        """Days since 1 March of the year 0."""
        return self._add(self["days"], 719_468)

    def _day_of_period(self) -> str:
        return self._mod(self["march_days"], PERIOD_DAYS)

    def _year_of_period(self) -> str:
        day = self["day_of_period"]
        without_leaps = self._graph.node("Sub", day, self._div(day, 1460))
        without_leaps = self._graph.node("Add", without_leaps, self._div(day, 36_524))
        return self._div(self._graph.node("Sub", without_leaps, self._div(day, 146_096)), 365)

    def _march_day_of_year(self) -> str:
        year = self["year_of_period"]
        return self._graph.node("Sub", self["day_of_period"], self._days_of_years(year))

    def _march_month(self) -> str:
        """0 for March to 11 for February."""
        return self._div(self._add(self._mul(self["march_day_of_year"], 5), 2), 153)

    def _day(self) -> str:
        before = self._div(self._add(self._mul(self["march_month"], 153), 2), 5)
        return self._add(self._graph.node("Sub", self["march_day_of_year"], before), 1)

    def _month(self) -> str:
        return self._add(self._mod(self._add(self["march_month"], 2), 12), 1)

    def _quarter(self) -> str:
        return self._div(self._add(self["month"], 2), 3)

    def _shifted_year(self) -> str:
        """The year, 400 for each period of the shift too many."""
        period = self._mul(self._div(self["march_days"], PERIOD_DAYS), 400)
        year = self._graph.node("Add", self["year_of_period"], period)
        # January and February belong to the year after.
        return self._graph.node("Add", year, self._div(self["march_month"], 10))

    def _year(self) -> str:
        return self._add(self["shifted_year"], -400 * PERIODS)

    def _day_of_year(self) -> str:
        before = self._add(self["shifted_year"], -1)
        first = self._graph.node("Add", self._days_of_years(before), self._div(before, 400))
        return self._graph.node("Sub", self._add(self["days"], 719_163), first)

    def _days_of_years(self, years: str) -> str:
        """Days of so many years, without the leap day of every 400th."""
        days = self._graph.node("Add", self._mul(years, 365), self._div(years, 4))
        return self._graph.node("Sub", days, self._div(years, 100))

    def _add(self, tensor: str, number: int) -> str:
        return self._graph.node("Add", tensor, self._number(number))

    def _mul(self, tensor: str, number: int) -> str:
        return self._graph.node("Mul", tensor, self._number(number))

    def _div(self, tensor: str, number: int) -> str:
        return self._graph.node("Div", tensor, self._number(number))

    def _mod(self, tensor: str, number: int) -> str:
        return self._graph.node("Mod", tensor, self._number(number))

    def _number(self, number: int) -> str:
        return self._graph.constant([[number]], np.int64)


def _whole_seconds(graph: Builder, microseconds: str) -> str:
    """Seconds rounded down, also before 1970."""
    unit = graph.constant([[MICROSECONDS]], np.int64)
    seconds = graph.node("Div", microseconds, unit)
    rest = graph.node("Sub", microseconds, graph.node("Mul", seconds, unit))
    return graph.node("Sub", seconds, graph.cast(graph.node("Less", rest, graph.constant([[0]], np.int64)), INT64))


def _since(local: np.ndarray, unit: str, within: str) -> np.ndarray:
    """Whole units since the last whole `within`, such as days of the month."""
    since: np.ndarray = (local.astype(f"M8[{unit}]") - local.astype(f"M8[{within}]").astype(f"M8[{unit}]")).astype(np.int64)
    return since


def _weekday_of(local: np.ndarray) -> np.ndarray:
    return (local.astype("M8[D]").astype(np.int64) + 3) % 7


_REFERENCE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "year": lambda local: local.astype("M8[Y]").astype(np.int64) + 1970,
    "quarter": lambda local: _since(local, "M", "Y") // 3 + 1,
    "month": lambda local: _since(local, "M", "Y") + 1,
    "day": lambda local: _since(local, "D", "M") + 1,
    "weekday": _weekday_of,
    "weekend": lambda local: _weekday_of(local) >= 5,
    "day_of_year": lambda local: _since(local, "D", "Y") + 1,
    "hour": lambda local: _since(local, "h", "D"),
    "minute": lambda local: _since(local, "m", "h"),
    "second": lambda local: _since(local, "s", "m"),
}
