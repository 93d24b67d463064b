from __future__ import annotations

import pytest

from tidemill.serve.counts import Snapshot
from tidemill.serve.replicas.config import ReplicasConfig
from tidemill.serve.replicas.scaling import Load, Scaler

CONFIG = ReplicasConfig(min=1, max=3, cpu=0.8, in_flight=10.0, up_s=3.0, down_s=30.0)


def after(scaler: Scaler, load: Load, *, seconds: int, replicas: int, start: int = 0) -> tuple[int, int]:
    """How many replicas there are when the load has been so for a while, and when that changed first."""
    for now in range(start, start + seconds + 1):
        wanted = scaler.look(load, replicas=replicas, now=float(now))
        if wanted != replicas:
            return wanted, now
    return replicas, -1


@pytest.mark.parametrize("load", [Load(cpu=0.9, in_flight=1.0), Load(cpu=0.1, in_flight=11.0)])
def test_a_load_that_stays_starts_another(load: Load) -> None:
    assert after(Scaler(CONFIG), load, seconds=10, replicas=1) == (2, 3)


def test_a_peak_starts_none() -> None:
    scaler, high, idle = Scaler(CONFIG), Load(cpu=0.9, in_flight=1.0), Load(cpu=0.1, in_flight=0.1)
    for now in range(20):
        assert scaler.look(high if now % 3 else idle, replicas=1, now=float(now)) == 1


def test_there_are_never_more_or_fewer_than_the_bounds() -> None:
    assert after(Scaler(CONFIG), Load(cpu=9.0, in_flight=900.0), seconds=100, replicas=3) == (3, -1)
    assert after(Scaler(CONFIG), Load(cpu=0.0, in_flight=0.0), seconds=100, replicas=1) == (1, -1)


def test_one_is_ended_when_fewer_would_long_have_been_enough() -> None:
    idle = Load(cpu=0.2, in_flight=0.5)
    assert after(Scaler(CONFIG), idle, seconds=29, replicas=2) == (2, -1)
    assert after(Scaler(CONFIG), idle, seconds=40, replicas=2) == (1, 30)


def test_what_just_keeps_two_busy_changes_nothing() -> None:
    """Too little for a third and too much for one: else it would go up and down for ever."""
    assert after(Scaler(CONFIG), Load(cpu=1.0, in_flight=2.0), seconds=1000, replicas=2) == (2, -1)


def test_the_clock_starts_anew_after_a_move() -> None:
    scaler, high = Scaler(CONFIG), Load(cpu=2.7, in_flight=1.0)
    assert after(scaler, high, seconds=10, replicas=1) == (2, 3)
    assert after(scaler, high, seconds=10, replicas=2, start=4) == (3, 7)


def test_load_is_what_was_counted_meanwhile() -> None:
    def counted(cpu: float, *seconds: float) -> Snapshot:
        samples = [[[str(i)], [value, 3, 4]] for i, value in enumerate(seconds)]
        return {
            "tidemill_process_cpu_seconds_total": {"together": "sum", "gauge": False, "samples": [[[], [cpu]]]},
            "tidemill_request_duration_seconds": {"together": "sum", "gauge": False, "samples": samples},
        }

    load = Load.between(counted(10.0, 5.0), counted(13.0, 20.0, 5.0), seconds=2.0)
    assert (load.cpu, load.in_flight) == (1.5, 10.0)
    assert Load.between({}, {}, seconds=1.0) == Load(cpu=0.0, in_flight=0.0)
