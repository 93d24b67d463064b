"""`engine.memory` holds over every stage on a table ten times as large, and what spilled is swept after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tidemill.testing.memory import peak_pss, write_table

BUDGET = 256 << 20
# What comes on top of `engine.memory` at most: the interpreter with its libraries, and what allocators keep; see docs/memory.md.
BESIDE = 384 << 20
PREPARE = """
def prepare(rows, shops):
    return rows.join(shops, on="shop", how="left")
"""
PROJECT = """
name = "memory"
task = "binary"
[data]
source = {{ rows = "rows.parquet", shops = "shops.parquet" }}
prepare = "memory_prepare:prepare"
target = "bought"
keys = ["id"]
split = {{ by = "group", column = "shop" }}
[model]
kind = "xgboost"
num_rounds = 5
external_memory = true
[contract]
quality = {{ metric = "roc_auc", min = 0.4 }}
[engine]
memory = "{memory}"
threads = 2
"""


def project(folder: Path, *, memory: int, num_bytes: int, notes: int) -> Path:
    write_table(folder, num_bytes=num_bytes, notes=notes)
    (folder / "memory_prepare.py").write_text(PREPARE, encoding="utf-8")
    (folder / "tidemill.toml").write_text(PROJECT.format(memory=memory), encoding="utf-8")
    (folder / "tmp").mkdir()
    return folder


def tidemill(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tidemill.cli", *arguments]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "2"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_memory_stays_within_the_budget_on_ten_times_as_much_data(tmp_path: Path) -> None:
    folder = project(tmp_path, memory=BUDGET, num_bytes=10 * BUDGET, notes=24)
    peaks = {}
    for stage in ("data", "features", "train"):
        peak = peak_pss(tidemill("run", "--to", stage), cwd=folder, env=environment(folder))
        assert peak.code == 0, peak.output
        peaks[stage] = peak.bytes >> 20
    assert peak_pss(tidemill("run"), cwd=folder, env=environment(folder)).code == 0
    train = next(path.parent for path in folder.glob(".tidemill/**/train/part-00000.parquet"))
    command = tidemill("predict", "memory", str(train), "answers.parquet", "--memory", str(BUDGET), "--threads", "2")
    peak = peak_pss(command, cwd=folder, env=environment(folder))
    assert peak.code == 0, peak.output
    peaks["predict"] = peak.bytes >> 20
    print(json.dumps(peaks))
    assert max(peaks.values()) <= (BUDGET + BESIDE) >> 20, peaks


@pytest.mark.slow
def test_what_spilled_is_swept_after_a_kill(tmp_path: Path) -> None:
    folder = project(tmp_path, memory=96 << 20, num_bytes=200 << 20, notes=4)
    for stage, spilled in {"data": "-scratch", "features": "-scratch", "train": "tidemill-xgboost-"}.items():
        with subprocess.Popen(tidemill("run", "--to", stage), cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL) as running:
            left = wait_for(spilled, folder, running)
            running.send_signal(signal.SIGKILL)
        assert left, f"{stage} ended before it could be killed"
        done = subprocess.run(
            tidemill("run", "--to", stage), check=False, cwd=folder, env=environment(folder), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert scratch(folder) == []


def wait_for(name: str, folder: Path, running: subprocess.Popen[bytes]) -> bool:
    """Whether a run under way has a file or folder named so; told a moment after."""
    while running.poll() is None:
        if any(name in path.name for path in scratch(folder)):
            time.sleep(0.3)
            return running.poll() is None
        time.sleep(0.01)
    return False


def scratch(folder: Path) -> list[Path]:
    """Everything that a run leaves behind only when it is killed."""
    home = [path for path in (folder / ".tidemill").rglob("*") if path.name.startswith((".partial", "tidemill-"))]
    return home + [path for path in (folder / "tmp").iterdir() if path.name.startswith("tidemill")]
