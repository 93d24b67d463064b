"""`tidemill doctor --collectives` with real processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidemill.core.launcher import RanksFailed
from tidemill.train.planner import measuring
from tidemill.train.planner.collectives import NAMES


@pytest.mark.slow
def test_every_collective_is_timed_and_no_process_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    before = _children()
    found = measuring.survey(2, sizes=(1024, 1 << 20))
    assert found.measured.backend == "gloo"
    assert {(point.name, point.num_bytes) for point in found.points} == {(name, size) for name in NAMES for size in (1024, 1 << 20)}
    assert all(0 < point.seconds < 10 for point in found.points)
    assert all(line.bandwidth > 1e6 and line.alpha_s < 1 for line in found.measured.lines.values())
    assert _children() == before


@pytest.mark.slow
def test_a_rank_that_fails_ends_all() -> None:
    before = _children()
    with pytest.raises(RanksFailed, match="rank "):
        measuring.survey(2, sizes=("none",))  # type: ignore[arg-type]
    assert _children() == before


def _children() -> list[str]:
    return (Path("/proc/self/task") / str(os.getpid()) / "children").read_text(encoding="ascii").split()
