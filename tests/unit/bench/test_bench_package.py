from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidemill.bench.package import RunPlan, bench_package, best
from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.events import Event, Events
from tidemill.testing.packages import EXAMPLE, tiny_package

QUICK = RunPlan(batch=(1, 8, 32), seconds=0.01, repeats=2)


def point(batch: int, rows_per_s: float, p50_ms: float, sessions: int = 1) -> dict[str, Any]:
    return {"batch": batch, "rows_per_s": rows_per_s, "latency": {"p50_ms": p50_ms}, "sessions": sessions}


def test_every_way_is_measured(tmp_path: Path) -> None:
    seen: list[Event] = []
    found = bench_package(
        tiny_package(tmp_path / "tiny"), records=[EXAMPLE, {**EXAMPLE, "seats": 1}], plan=QUICK, events=Events(seen.append)
    )
    cores = found["hardware"]["cores"]
    ways = {(p["sessions"], p["threads"]) for p in found["points"]}
    assert {(1, 1), (1, cores), (cores, 1)} <= ways
    assert all(sessions * threads <= cores for sessions, threads in ways)
    assert {p["batch"] for p in found["points"]} == {1, 8, 32}
    assert len(found["points"]) == 3 * len(ways)
    assert all(p["calls"] >= 5 and p["rows_per_s"] > 0 and p["latency"]["min_ms"] <= p["latency"]["p99_ms"] for p in found["points"])
    assert found["best"] in found["points"]
    assert (found["single"]["batch"], found["single"]["sessions"]) == (1, 1)
    assert seen[-1].kind == "bench.done"


@pytest.mark.parametrize("task", ["text", "embedding", "multiclass", "interval"])
def test_every_kind_of_package_is_measured(task: Any, tmp_path: Path) -> None:
    found = bench_package(tiny_package(tmp_path / "tiny", task=task), plan=RunPlan(batch=(2,), seconds=0.01, repeats=1, threads=(1,)))
    assert found["best"]["rows_per_s"] > 0


def test_the_best_is_where_more_rows_stop_to_pay() -> None:
    points = [point(1, 10, 1), point(8, 95, 2), point(64, 100, 20)]
    assert best(points)["batch"] == 8
    assert best([*points, point(8, 92, 1, sessions=2)])["sessions"] == 2
    assert best(points, p99_ms=1.5)["batch"] == 1
    assert best(points, p99_ms=0.5)["batch"] == 8


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (RunPlan(batch=(0,)), "batch: must be >= 1, got 0"),
        (RunPlan(runtime=("openvino:int8",)), "runtime: must be a name, or a name and a precision such as openvino:bf16"),
        (RunPlan(sessions=(1000,), threads=(4,)), "sessions x threads: must be at most the .* cores here, got 1000 x 4"),
    ],
)
def test_what_cannot_be_measured_is_refused(plan: RunPlan, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        bench_package(tiny_package(tmp_path / "tiny"), plan=plan)


def test_runtimes_are_measured_beside_each_other(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "tiny")
    found = bench_package(package, plan=RunPlan(runtime=("all",), batch=(4,), seconds=0.01, repeats=1, threads=(1,)))
    assert found["runtimes"]["onnxruntime"]["max_difference"] == 0
    assert found["runtimes"]["onnxruntime"]["kept"] is True
    assert any(reason.startswith("openvino: ") for reason in found["left_out"])  # it takes no raw columns
    with pytest.raises(Unsupported, match="openvino"):
        bench_package(package, plan=RunPlan(runtime=("openvino",), batch=(4,), seconds=0.01))


def test_a_runtime_whose_answers_are_others_is_no_choice(tmp_path: Path) -> None:
    """A package that promises a parity which nothing keeps."""
    promise = {"name": "parity", "measure": "parity.max_difference", "relation": "<=", "limit": -1.0}
    found = bench_package(tiny_package(tmp_path / "tiny", promises=[promise]), plan=RunPlan(batch=(4,), seconds=0.01, repeats=1))
    assert found["runtimes"]["onnxruntime"]["kept"] is False


def test_a_row_that_the_package_does_not_take_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="distance"):
        bench_package(tiny_package(tmp_path / "tiny"), records=[{**EXAMPLE, "distance": "far"}], plan=QUICK)
