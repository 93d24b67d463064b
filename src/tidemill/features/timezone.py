"""A time zone as a table of transitions, found without leaving the standard library, and as nodes."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import numpy as np

from tidemill.core.errors import ConfigError

if TYPE_CHECKING:
    from tidemill.features.builder import Builder

FIRST_YEAR, LAST_YEAR = 1900, 2100
# No zone has changed its clocks and back within a day.
_STEP = 24 * 3600


def zone(name: str) -> ZoneInfo:
    """The zone of the IANA database by its name.

    Raises:
        ConfigError: If there is no such zone.
    """
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(
            f"date_parts: timezone must be one of the IANA database, got {name!r}", hint="such as UTC, Europe/Paris or Asia/Taipei"
        ) from error


@functools.cache
def transitions(name: str) -> tuple[list[int], list[int]]:
    """When a zone's offset changes (seconds since 1970, rising), and the offsets (seconds) before, between and after."""
    where = zone(name)

    def offset(second: int) -> int:
        moment = dt.datetime.fromtimestamp(second, where)
        return int((moment.utcoffset() or dt.timedelta()).total_seconds())

    start, end = (int(dt.datetime(year, 1, 1, tzinfo=dt.UTC).timestamp()) for year in (FIRST_YEAR, LAST_YEAR))
    found: list[int] = []
    offsets = [offset(start)]
    for second in range(start, end, _STEP):
        if offset(second + _STEP) == offsets[-1]:
            continue
        low, high = second, second + _STEP
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offsets[-1] else (low, middle)
        found.append(high)
        offsets.append(offset(high))
    return found, offsets


def local_nodes(graph: Builder, seconds: str, found: Sequence[int], offsets: Sequence[int]) -> str:
    """Seconds UTC (int64 tensor) as seconds of the zone's clock.

    Time is cut into equal spans that hold one transition at most: a row looks up its span, and compares once.
    """
    if not found:
        return seconds if offsets[0] == 0 else graph.node("Add", seconds, graph.constant([[offsets[0]]], np.int64))
    span = int(min(np.diff(found), default=1))
    start = found[0] - span
    switch, before, after = [start], [offsets[0]], [offsets[0]]
    for i, second in enumerate(found):
        place = (second - start) // span
        while len(switch) <= place:
            switch.append(second)
            before.append(offsets[i])
            after.append(offsets[i])
        after[place] = offsets[i + 1]

    def number(value: int) -> str:
        return graph.constant([[value]], np.int64)

    span_of = graph.node("Div", graph.node("Sub", seconds, number(start)), number(span))
    span_of = graph.node("Min", graph.node("Max", span_of, number(0)), number(len(switch) - 1))
    at, low, high = (graph.node("Gather", graph.constant(table, np.int64), span_of, axis=0) for table in (switch, before, after))
    return graph.node("Add", seconds, graph.node("Where", graph.node("GreaterOrEqual", seconds, at), high, low))
