"""What the machine does beside is not counted as the package's time."""

from __future__ import annotations

import itertools
import time

import pytest

from tidemill.core import contract


def test_an_interrupted_call_counts_with_its_own_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    monkeypatch.setattr(contract, "_involuntary_switches", lambda: next(calls))
    measured = contract.measure_latency(lambda _: time.sleep(0.001), rows=1, seconds=0.0)
    assert measured["interrupted"] == measured["calls"] == 200
    assert measured["mean_ms"] < 1, "a call that only waits takes no processor time"


def test_a_call_that_waits_by_itself_counts_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "_involuntary_switches", lambda: 0)
    measured = contract.measure_latency(lambda _: time.sleep(0.001), rows=1, seconds=0.0)
    assert measured["interrupted"] == 0
    assert measured["p50_ms"] >= 1


def test_each_row_is_measured_in_turn() -> None:
    seen: list[int] = []
    contract.measure_latency(seen.append, rows=3, seconds=0.0, warmup=2)
    assert seen[:8] == [0, 1, 0, 1, 2, 0, 1, 2]
