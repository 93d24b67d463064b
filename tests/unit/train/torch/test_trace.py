from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tidemill.train.torch.trace import FORWARD, KEPT, WAIT, Trace, joined, summary, without  # noqa: E402


def test_spans_join_and_leave_out() -> None:
    assert joined([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert without([(0, 10), (20, 30)], [(-5, 1), (3, 4), (8, 22), (29, 99)]) == [(1, 3), (4, 8), (22, 29)]
    assert without([(0, 1)], []) == [(0, 1)]


def test_each_moment_counts_once() -> None:
    events = [
        ("ProfilerStep#7", (0.0, 1000.0)),
        ("ProfilerStep#8", (1000.0, 2000.0)),
        (WAIT, (0.0, 100.0)),
        (FORWARD, (100.0, 500.0)),
        ("aten::linear", (110.0, 400.0)),
        ("autograd::engine::evaluate_function: AddmmBackward0", (500.0, 1200.0)),
        ("aten::mm", (500.0, 1000.0)),
        ("gloo:all_reduce", (900.0, 1150.0)),  # beside computing up to 1000, then alone
        (FORWARD, (600.0, 700.0)),  # computed again for the backward
        ("Optimizer.step#AdamW.step", (1200.0, 1500.0)),
        ("aten::outside", (3000.0, 4000.0)),
    ]
    told = summary(events)
    assert told["step_ms"] == 1.0
    assert told["shares"] == {"data wait": 0.05, "communication": 0.075, "optimizer": 0.15, "backward": 0.275, "forward": 0.2, "rest": 0.25}
    assert told["hidden"] == 0.05
    assert told["said"].startswith("a step takes 1 ms: backward 28 %, rest 25 %, forward 20 %".replace(" %", "%"))


def test_what_can_be_done_is_said() -> None:
    slow = summary([("ProfilerStep#1", (0.0, 100.0)), (WAIT, (0.0, 60.0))])
    assert "train.loader.workers" in slow["said"]
    assert summary([("aten::mm", (0.0, 1.0))]) == {}


def test_a_run_is_traced(loop: Callable[..., Any], tmp_path: Path) -> None:
    made = loop({"epochs": 2, "batch_size": 16})
    before = {name: value.clone() for name, value in made.weights.tensors().items()}
    made._trace = Trace(tmp_path / "deep" / "trace.json", made.parallel.parts)
    made.run()
    report = made._trace.report
    assert sum(report["shares"].values()) == pytest.approx(1.0, abs=0.01)
    assert min(report["shares"][phase] for phase in ("data wait", "optimizer", "backward", "forward")) > 0
    assert report["shares"]["communication"] == 0
    trace = json.loads((tmp_path / "deep" / "trace.json").read_text())
    assert sum(event.get("name", "").startswith("ProfilerStep") for event in trace["traceEvents"]) >= KEPT
    assert any(not torch.equal(before[name], value) for name, value in made.weights.tensors().items())


def test_a_run_too_short_to_trace_ends_well(loop: Callable[..., Any], tmp_path: Path) -> None:
    made = loop({"epochs": 1, "max_steps": 3, "batch_size": 16})
    made._trace = Trace(tmp_path / "trace.json", made.parallel.parts)
    made.run()
    made._trace.close()
    assert made._trace.report == {}
