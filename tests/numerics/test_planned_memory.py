"""Planned memory against what real ranks hold at most, over gloo."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks" / "planner"
NAMES = ("DDP 2", "FSDP 2", "FSDP 4, stage 2", "TP 2", "PP 2", "PP 4")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("planner_memory", FOLDER / "memory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_peak_memory_is_planned(name: str, benchmark: ModuleType, ranks: Any) -> None:
    case = benchmark.HEAVY if "stage" in name else benchmark.ACTIVE
    layout = benchmark.LAYOUTS[name]
    told = benchmark.arguments({**case, "shape": {**case["shape"], "depth": 4}}, layout)
    held = ranks.run(f"{FOLDER}/peak.py:count", ranks=benchmark.num_ranks(layout), timeout_s=240.0, arguments=told)
    # A step over divided tensors leaves circles that Python lets go when it looks, at times after the peak: up to a seventh on top in a process
    # that holds as much as a test's. Fresh ones, in benchmarks/planner, are within a tenth.
    assert benchmark.planned(told).total == pytest.approx(max(held), rel=0.2 if "TP" in name else 0.1)
