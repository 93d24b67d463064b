"""Batch prediction as a process: killed at any moment, and within its memory."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.core.package import Package
from tidemill.predict.batch import BLOCK_ROWS, predict
from tidemill.testing.packages import tiny_package

PARTS = 40
ROWS = PARTS * BLOCK_ROWS + 77

# Progress is entered after every block, so that there are many moments to die at.
PROGRAM = """
import sys
from pathlib import Path
from tidemill.core.engine import EngineConfig
from tidemill.core.package import Package
from tidemill.predict.batch import BLOCK_ROWS, predict
package, source, output = map(Path, sys.argv[1:])
done = predict(Package.open(package), source, output, keep=["row"], part_rows=BLOCK_ROWS, engine=EngineConfig(threads=1))
print(done.rows, done.resumed_rows)
"""

# The process's own peak is asked for at its end: Python, libraries and all.
MEASURED = """
import resource, sys
from tidemill.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(code)
"""
MEMORY_MIB = 256


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("package") / "tiny")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("rows") / "rows.parquet", ROWS)


@pytest.fixture(scope="module")
def expected(package: Package, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    output = tmp_path_factory.mktemp("expected") / "out.parquet"
    predict(package, rows, output, keep=["row"])
    table = pq.read_table(output)
    assert table["row"].to_pylist() == list(range(ROWS))
    return table


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment(seed: int, package: Package, rows: Path, expected: pa.Table, tmp_path: Path) -> None:
    _killed(seed, package, rows, expected, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3, 33))
def test_killed_at_many_moments(seed: int, package: Package, rows: Path, expected: pa.Table, tmp_path: Path) -> None:
    _killed(seed, package, rows, expected, tmp_path)


def _killed(seed: int, package: Package, rows: Path, expected: pa.Table, folder: Path) -> None:
    """Dies once or twice somewhere; then every row is there once, in order, and what was committed was not made again."""
    rng = random.Random(seed)
    output = folder / ("out.parquet" if seed % 2 else "out")
    progress = folder / f".partial-predict-{output.name}" / "progress.json"
    committed = 0
    for _ in range(rng.randint(1, 2)):
        process = _start(package, rows, output)
        until = rng.randint(min(committed, PARTS), PARTS)
        while process.poll() is None and _parts(progress) < until:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:  # it was quicker
            break
        assert process.returncode == -signal.SIGKILL
        committed = _parts(progress)
    if output.exists():
        assert pq.read_table(output).equals(expected)
    out, err = (process := _start(package, rows, output)).communicate(timeout=120)
    assert process.returncode == 0, err
    done, resumed = map(int, out.split())
    assert done == ROWS
    assert resumed in (committed * BLOCK_ROWS, ROWS if committed > PARTS else 0)
    assert pq.read_table(output).equals(expected)
    assert [path.name for path in folder.iterdir()] == [output.name]


def test_memory_does_not_grow_with_the_input(package: Package, tmp_path: Path) -> None:
    """Ten times the rows take at most the budget's share for reading more, and never the budget beside the libraries."""
    few, many = _write(tmp_path / "few.parquet", 150_000), _write(tmp_path / "many.parquet", 1_500_000)
    none = _write(tmp_path / "none.parquet", 1)
    idle, small, large = (_peak_mib(package, source, tmp_path / "out.parquet") for source in (none, few, many))
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 1_500_000
    assert large - small < MEMORY_MIB // 2
    assert large - idle < MEMORY_MIB


def test_the_command_line_from_another_folder(project: Any, make_rows: Any, tmp_path: Path) -> None:
    project.run()
    elsewhere = tmp_path / "anders wo 別"
    elsewhere.mkdir()
    pq.write_table(make_rows(50, seed=5).drop_columns(["late"]), elsewhere / "new rows.parquet")
    home = ("--home", "../project/.tidemill")
    told = project.call("predict", "small@champion", "new rows.parquet", "out/answers.parquet", *home, "--json", cwd=elsewhere).fine().json
    assert (told["rows"], told["resumed_rows"], told["version"]) == (50, 0, "1")
    found = pq.read_table(elsewhere / "out" / "answers.parquet")
    assert found.schema.names == ["id", "prediction", "probability"], "the package's keys are kept"
    folder = str(project.home / "packages" / "small" / "1")
    project.call("predict", folder, "new rows.parquet", "out/again.parquet", "--batch-rows", "7", "--threads", "2", cwd=elsewhere).fine()
    assert pq.read_table(elsewhere / "out" / "again.parquet").equals(found)
    project.call("predict", folder, "new rows.parquet", "out/again.parquet", "--threads", "-1", cwd=elsewhere).said(
        2, "engine.threads: must be in 0..1024, got -1"
    )
    project.call("predict", folder, "new rows.parquet", "again.csv", cwd=elsewhere).said(2, "must end in .parquet", "again.parquet")


def _start(package: Package, rows: Path, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(package.path), str(rows), str(output)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _parts(progress: Path) -> int:
    try:
        return len(json.loads(progress.read_text())["parts"])
    except FileNotFoundError:
        return 0


def _peak_mib(package: Package, source: Path, output: Path) -> int:
    arguments = ["predict", str(package.path), str(source), str(output), "--keep", "row", "--memory", f"{MEMORY_MIB}MiB", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=False, timeout=300, cwd=output.parent
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def _write(path: Path, rows: int) -> Path:
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, _table(rng, 0, 1).schema) as writer:
        for start in range(0, rows, 100_000):
            writer.write_table(_table(rng, start, min(100_000, rows - start)))
    return path


def _table(rng: np.random.Generator, start: int, rows: int) -> pa.Table:
    carriers = np.array(["UA", "DL", "航空", "new", ""], object)
    return pa.table(
        {
            "row": np.arange(start, start + rows),
            "distance": rng.normal(1000, 300, rows),
            "fare": rng.normal(20, 5, rows).astype(np.float32),
            "seats": pa.array(rng.integers(0, 9, rows), mask=rng.random(rows) < 0.1),
            "carrier": pa.array(carriers[rng.integers(0, len(carriers), rows)], pa.string()),
            "weekend": rng.random(rows) < 0.3,
            "departs": pa.array(rng.integers(0, 10**15, rows), pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        }
    )
