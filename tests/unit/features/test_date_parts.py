"""Date parts against Python's own calendar and time zones."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.features.date_parts import DateParts
from tidemill.features.operator import times
from tidemill.features.timezone import transitions

PARTS = ("year", "quarter", "month", "day", "weekday", "weekend", "day_of_year", "hour", "minute", "second")
ZONES = (
    "UTC",
    "America/New_York",
    "Asia/Taipei",
    "Europe/London",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Pacific/Apia",
    "Asia/Kolkata",
)


@given(st.integers(-2_208_902_400, 4_102_185_600) | st.integers(1_331_337_600, 1_331_510_400), st.sampled_from(ZONES))
def test_parts_are_those_of_the_zones_clock(second: int, zone: str) -> None:
    operator = DateParts(parts=PARTS, timezone=zone)
    made = operator.reference("t", times([second * 1_000_000 + 999_999]), operator.fit("time"))
    local = dt.datetime.fromtimestamp(second, ZoneInfo(zone))
    expected = (
        local.year, (local.month + 2) // 3, local.month, local.day, local.weekday(), local.weekday() >= 5, local.timetuple().tm_yday,
        local.hour, local.minute, local.second,
    )  # fmt: skip
    assert [int(values.data[0]) for values in made.columns.values()] == list(expected)


def test_null_is_null_in_every_part() -> None:
    operator = DateParts()
    made = operator.reference("t", times([-(2**63), 0]), operator.fit("time"))
    assert [values.known().tolist() for values in made.columns.values()] == [[False, True]] * len(operator.parts)


@pytest.mark.parametrize("zone", ZONES)
def test_transitions_rise_and_change_the_offset(zone: str) -> None:
    found, offsets = transitions(zone)
    assert len(offsets) == len(found) + 1
    assert all(np.diff(found) > 0)
    assert all(np.diff(offsets) != 0)
    for second, before, after in zip(found, offsets, offsets[1:], strict=False):
        for moment, offset in ((second - 1, before), (second, after)):
            assert dt.datetime.fromtimestamp(moment, ZoneInfo(zone)).utcoffset() == dt.timedelta(seconds=offset)


def test_new_york_changes_twice_a_year() -> None:
    found, offsets = transitions("America/New_York")
    spring = int(dt.datetime(2013, 3, 10, 7, tzinfo=dt.UTC).timestamp())
    assert offsets[found.index(spring) : found.index(spring) + 2] == [-5 * 3600, -4 * 3600]
    assert sum(2000 <= dt.datetime.fromtimestamp(second, dt.UTC).year < 2100 for second in found) == 200
