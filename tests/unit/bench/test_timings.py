from __future__ import annotations

import numpy as np
import pytest

from tidemill.bench.timings import knee, middle, summary


def test_times_are_summed_up_in_milliseconds() -> None:
    found = summary(np.arange(1, 101) / 1000)
    assert found == pytest.approx(
        {"mean_ms": 50.5, "std_ms": 28.866070, "min_ms": 1, "p50_ms": 50.5, "p95_ms": 95.05, "p99_ms": 99.01, "max_ms": 100}
    )
    assert summary(np.empty(0)) == {}


def points(*gains: float) -> list[dict[str, float]]:
    return [{"load": 2**i, "gain": gain} for i, gain in enumerate(gains)]


@pytest.mark.parametrize(
    ("gains", "at", "rising"),
    [
        ((10, 19, 20, 20), 2, False),  # saturated early
        ((10, 20, 40, 80), 8, True),  # still rising
        ((10, 20, 15, 5), 2, False),  # falls again
        ((20, 20, 20, 20), 1, False),  # more never pays
        ((10, 17, 18, 20), 4, False),  # nine tenths exactly are enough
    ],
)
def test_the_knee_is_the_least_load_that_reaches_nine_tenths(gains: tuple[float, ...], at: int, rising: bool) -> None:
    assert knee(points(*gains)[::-1], by="load", gain="gain") == {"at": at, "rising": rising}


def test_too_little_says_nothing_of_a_knee() -> None:
    assert knee(points(1, 2), by="load", gain="gain") is None
    assert knee(points(0, 0, 0), by="load", gain="gain") is None


def test_the_middle_run_is_kept() -> None:
    assert middle(points(3, 1, 2), gain="gain")["gain"] == 2
    assert middle(points(3, 1, 2, 4), gain="gain")["gain"] == 2
    assert middle(points(7), gain="gain")["gain"] == 7
