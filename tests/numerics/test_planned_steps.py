"""The planner against published runs: the rows that its constants were not fitted on, and the memory of the state."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from tidemill.train.planner.layout import Layout
from tidemill.train.planner.memory import Precision, state
from tidemill.train.planner.network import Transformer


@pytest.fixture(scope="module")
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    """The script that fits and tests, with its table."""
    return script("benchmarks/planner/calibrate.py")


def test_step_times_of_runs_that_nothing_was_fitted_on(benchmark: ModuleType) -> None:
    found = benchmark.errors("test")
    assert len(found) == 18
    median, worst = benchmark.summary(list(found.values()))
    assert median <= 0.15, found
    assert worst <= 0.25, found


def test_each_generation_by_itself(benchmark: ModuleType) -> None:
    tested = benchmark.errors("test")
    for prefix in ("a100", "h100", "llama", "titan"):
        found = [error for name, error in tested.items() if name.startswith(prefix)]
        assert len(found) >= 2
        assert benchmark.summary(found)[1] <= 0.25


def test_constants_are_those_that_the_rows_marked_so_give(benchmark: ModuleType) -> None:
    rows = [row for row in benchmark.rows() if row["role"] == "calibrate"]
    assert len(rows) > 2 * len(benchmark.FITTED), "rows for each constant"
    assert benchmark.fit(rows) == benchmark.CALIBRATED


def test_the_table_is_consistent(benchmark: ModuleType) -> None:
    sources = benchmark.json.loads((benchmark.HERE / "published.json").read_text(encoding="utf-8"))["sources"]
    for row in benchmark.rows():
        assert row["source"] in sources
        network, layout = Transformer(**row["model"]), Layout(**row["layout"])
        assert abs(network.parameters / row["parameters"] - 1) < 0.04, row["id"]
        assert network.illegal(layout.tensor, 1) is None


def test_published_step_of_gpt3(benchmark: ModuleType) -> None:
    """The source prints both: 138 TFLOP/s a device and about 32 s an iteration."""
    (row,) = [row for row in benchmark.rows() if row["id"] == "gpt3-a100"]
    assert benchmark.published_s(row) == pytest.approx(32, abs=0.5)


# Memory of the state, as published.


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_zero(stage: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 devices, 12 bytes of optimizer each."""
    mixed = Precision(name="fp16", parameter=2, gradient=2, optimizer=12, compute=2, reduce=2)
    total = state(7.5e9, mixed, stage=stage, shards=64).total / 1e9
    assert float(f"{total:.3g}") == gigabytes


@pytest.mark.parametrize("shards", [1, 2, 48])
@pytest.mark.parametrize(("parameter", "gradient", "optimizer"), [(2, 2, 16), (2, 4, 12), (4, 4, 8)])
def test_the_distributed_optimizer_of_megatron(parameter: int, gradient: int, optimizer: int, shards: int) -> None:
    """20, 18 and 16 bytes a parameter become 4 + 16/d, 6 + 12/d and 8 + 8/d."""
    precision = Precision(name="x", parameter=parameter, gradient=gradient, optimizer=optimizer, compute=2, reduce=2)
    assert state(1.0, precision, stage=1, shards=shards).total == parameter + gradient + optimizer / shards
