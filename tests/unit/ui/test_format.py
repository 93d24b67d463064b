from __future__ import annotations

import math

import pytest

from tidemill.ui import format as shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (336_776, "336,776"), (-12.5, "−12.5"), (0.123456, "0.1235"), (1e-5, "1e-5"), (2.4e-7, "2.4e-7"), (-3e-8, "−3e-8"),
        (123_456.7, "123,457"), (1e18, "1e18"), (math.nan, "NaN"), (-math.inf, "−∞"), (None, "–"), (0.5, "0.5"), (99.99, "99.99"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert shown.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.7071, "0.7071"),
        (0.5, "0.5000"),
        (24.1, "24.10"),
        (0, "0"),
        (-0.00042, "−0.0004"),
        (1, "1.000"),
        (2e-6, "2e-6"),
        (1234.5, "1,234"),
    ],
)
def test_scores_of_a_column_line_up(value: float, text: str) -> None:
    assert shown.score(value) == text


@pytest.mark.parametrize(("share", "text"), [(0, "0 %"), (1e-6, "< 0.1 %"), (0.256, "25.6 %"), (0.3, "30 %"), (1, "100 %"), (None, "–")])
def test_shares(share: float | None, text: str) -> None:
    assert shown.percent(share).replace(shown.SPACE, " ") == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0042, "4.2 ms"), (12.34, "12.3 s"), (59.99, "60 s"), (150, "2 min 30 s"), (120, "2 min"), (7321, "2 h 2 min")]
)
def test_durations(value: float, text: str) -> None:
    assert shown.seconds(value).replace(shown.SPACE, " ") == text


@pytest.mark.parametrize(("value", "text"), [(0.0583, "58.3 µs"), (0.112, "0.112 ms"), (5, "5 ms")])
def test_latencies(value: float, text: str) -> None:
    assert shown.milliseconds(value).replace(shown.SPACE, " ") == text


@pytest.mark.parametrize(("value", "text"), [(12, "12 B"), (4_210_000, "4.21 MB"), (1_410_000_000, "1.41 GB"), (None, "–")])
def test_sizes(value: int | None, text: str) -> None:
    assert shown.size(value).replace(shown.SPACE, " ") == text


def test_times_are_told_in_utc() -> None:
    assert shown.moment("2026-03-14T09:26:53.589+02:00") == "14 March 2026, 07:26 UTC"
    assert shown.date("2026-03-14T09:26:53Z") == "14 March 2026"
    assert shown.moment("some day") == "some day"
