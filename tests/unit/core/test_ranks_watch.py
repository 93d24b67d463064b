"""Which rank is named, from heartbeats written by hand."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tidemill.core.ranks.pulse import Beat, Collective, Pulse, read_beat
from tidemill.core.ranks.watch import Watch

HANG_S = 10.0

Say = Callable[..., None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def say(tmp_path: Path) -> Say:
    beats: dict[int, Beat] = {}

    def write(rank: int, **told: object) -> None:
        before = beats.get(rank)
        number = 0 if before is None else before.beats + 1
        beats[rank] = Beat(**{"rank": rank, "host": f"host-{rank}", "pid": 1, "patient": False, **told, "beats": number})  # type: ignore[arg-type]
        (tmp_path / f"rank-{rank}.beat").write_text(json.dumps(asdict(beats[rank])))

    return write


def test_the_rank_that_entered_no_collective_is_named_not_those_that_wait_for_it(tmp_path: Path, clock: list[float], say: Say) -> None:
    watch = Watch(tmp_path, 3, HANG_S)
    for moment in range(9):
        clock[0] = 1000.0 + moment
        for rank in range(3):
            say(rank, step=7, progress=20, collective="gloo:all_reduce", collectives=12, waiting=rank != 1)
        assert watch.hung() is None
    clock[0] = 1009.0
    found = watch.hung()
    assert found is not None
    assert found.rank == 1
    assert "host-1" in found.said
    assert "gloo:all_reduce" in found.said


def test_the_rank_behind_in_steps_is_named(tmp_path: Path, clock: list[float], say: Say) -> None:
    watch = Watch(tmp_path, 3, HANG_S)
    for moment in (0.0, 9.0):
        clock[0] = 1000.0 + moment
        for rank, step in enumerate((8, 8, 7)):
            say(rank, step=step, progress=step, waiting=True)
        found = watch.hung()
    assert found is not None
    assert found.rank == 2


def test_a_frozen_rank_is_named_though_it_is_ahead(tmp_path: Path, clock: list[float], say: Say) -> None:
    watch = Watch(tmp_path, 2, HANG_S)
    say(0, step=9, progress=9)
    found = None
    for moment in range(12):
        clock[0] = 1000.0 + moment
        say(1, step=7, progress=7 + moment)
        found = found or watch.hung()
    assert found is not None
    assert found.rank == 0


def test_steps_and_collectives_are_progress(tmp_path: Path, clock: list[float], say: Say) -> None:
    watch = Watch(tmp_path, 2, HANG_S)
    for moment in range(100):
        clock[0] = 1000.0 + moment
        for rank in range(2):
            say(rank, step=1, progress=moment // 5)
        assert watch.hung() is None


def test_while_one_rank_is_patient_nobody_hangs_for_ten_times_as_long(tmp_path: Path, clock: list[float], say: Say) -> None:
    watch = Watch(tmp_path, 2, HANG_S)
    found = None
    for moment in range(100):
        clock[0] = 1000.0 + moment
        say(0, step=1, progress=1, waiting=True)
        say(1, step=1, progress=1, patient=True, doing="saving")
        found = watch.hung()
        assert (found is None) == (moment <= 80)
    assert found is not None
    assert found.rank == 1
    assert "saving" in found.said


def test_a_finished_rank_is_not_named(tmp_path: Path, clock: list[float], say: Say) -> None:
    watch = Watch(tmp_path, 2, HANG_S)
    say(0, step=1, progress=1)
    for moment in range(20):
        clock[0] = 1000.0 + moment
        say(1, step=1, progress=moment)
        assert watch.hung(ended=[0]) is None


def test_a_rank_that_never_told_anything_is_named_in_the_end(tmp_path: Path, clock: list[float], say: Say) -> None:
    watch = Watch(tmp_path, 2, HANG_S)
    found = None
    for moment in range(90):
        clock[0] = 1000.0 + moment
        say(0, step=0, progress=moment)
        found = watch.hung()
        assert (found is None) == (moment <= 80)
    assert found is not None
    assert (found.rank, found.beat) == (1, None)


def test_a_pulse_tells_of_steps_of_collectives_and_of_patience(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path / "rank-3.beat", rank=3, every_s=0.01)
    pulse.collective = lambda: Collective("gloo:broadcast", 4, waiting=True)

    def told(wanted: Callable[[Beat], bool]) -> Beat:
        limit = time.monotonic() + 20
        while (beat := read_beat(tmp_path / "rank-3.beat")) is None or not wanted(beat):
            assert time.monotonic() < limit, beat
            time.sleep(0.005)
        return beat

    pulse.start()
    try:
        first = told(lambda beat: beat.beats > 1)
        assert (first.rank, first.step, first.patient, first.collective, first.collectives, first.waiting) == (
            3,
            None,
            True,
            "gloo:broadcast",
            4,
            True,
        )
        pulse.step(5)
        training = told(lambda beat: beat.step == 5)
        assert not training.patient
        assert training.progress > first.progress
        with pulse.patient("saving"):
            assert told(lambda beat: beat.doing == "saving").patient
        after = told(lambda beat: beat.doing == "training")
        assert not after.patient
        assert re.search(r"\.py:\d+ \w+", after.line), "where the main thread is"
        still = told(lambda beat: beat.beats > after.beats + 2)
        assert still.progress == after.progress, "beating alone is no progress"
    finally:
        pulse.stop()
