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

# What comes on top of `engine.memory` at most: the interpreter with its libraries, what allocators keep, and what training keeps of
# each row of the table; see docs/memory.md.
BESIDE = 320 << 20
A_ROW = {"train": 60}
PREPARE = """
def prepare(rows, shops):
    return rows.join(shops, on="shop", how="left")
"""
ALONE = 'source = "rows.parquet"'
JOINED = 'source = { rows = "rows.parquet", shops = "shops.parquet" }\nprepare = "memory_prepare:prepare"'
PROJECT = """
name = "memory"
task = "binary"
[data]
{source}
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
threads = 1
"""


def project(folder: Path, *, memory: int, num_bytes: int, note_bytes: int = 110, joined: bool = True) -> tuple[Path, int]:
    """A project whose rows take so many bytes in Arrow, and how many they are; by itself, or joined with another table and sorted."""
    rows = write_table(folder, num_bytes=num_bytes, notes=8, note_bytes=note_bytes)
    (folder / "memory_prepare.py").write_text(PREPARE, encoding="utf-8")
    text = PROJECT.format(memory=memory, source=JOINED if joined else ALONE)
    (folder / "tidemill.toml").write_text(text, encoding="utf-8")
    (folder / "tmp").mkdir()
    return folder, rows


def tidemill(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tidemill.cli", *arguments]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}


def peak_of(folder: Path, *arguments: str) -> int:
    """The peak memory of a command, which must end well."""
    peak = peak_pss(tidemill(*arguments), cwd=folder, env=environment(folder))
    assert peak.code == 0, peak.output
    return peak.bytes


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("budget", "times", "note_bytes", "joined"),
    [
        (256 << 20, 5, 300, False),  # longer texts: as large with fewer rows
        pytest.param(256 << 20, 10, 300, False, marks=pytest.mark.long),
        pytest.param(256 << 20, 10, 110, True, marks=pytest.mark.long),
        pytest.param(512 << 20, 10, 110, True, marks=pytest.mark.long),
    ],
)
def test_memory_stays_within_the_budget_on_many_times_as_much_data(
    tmp_path: Path, budget: int, times: int, note_bytes: int, joined: bool
) -> None:
    folder, rows = project(tmp_path, memory=budget, num_bytes=times * budget, note_bytes=note_bytes, joined=joined)
    peaks = {stage: peak_of(folder, "run", "--to", stage) for stage in ("data", "features", "train", "package")}
    train = next(path.parent for path in folder.glob(".tidemill/**/train/part-00000.parquet"))
    peaks["predict"] = peak_of(folder, "predict", "memory", str(train), "answers.parquet", "--memory", str(budget), "--threads", "1")
    print(json.dumps({"rows": rows, **{stage: peak >> 20 for stage, peak in peaks.items()}}))
    for stage, peak in peaks.items():
        assert peak <= budget + BESIDE + A_ROW.get(stage, 0) * rows, (stage, peak >> 20)


@pytest.mark.slow
def test_what_spilled_is_swept_after_a_kill(tmp_path: Path) -> None:
    folder, _ = project(tmp_path, memory=96 << 20, num_bytes=160 << 20)
    for stage, spilled in {"data": "tidemill-*-scratch", "train": "tidemill-xgboost-*"}.items():
        with subprocess.Popen(
            tidemill("run", "--to", stage), cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            left = spilled_bytes(folder, spilled, running)
            running.send_signal(signal.SIGKILL)
        assert left > 0, f"{stage} ended before it could be killed"
        assert scratch(folder), stage  # a killed process sweeps nothing
        assert peak_of(folder, "run", "--to", stage) > 0
        assert scratch(folder) == []


def spilled_bytes(folder: Path, name: str, running: subprocess.Popen[bytes]) -> int:
    """What a run under way has spilled into files under a folder named so, as soon as there is any; 0 where it ended before."""
    while running.poll() is None:
        for place in (folder / ".tidemill", folder / "tmp"):
            size = sum(size_of(path) for found in place.rglob(name) for path in found.rglob("*"))
            if size:
                return size
        time.sleep(0.01)
    return 0


def size_of(path: Path) -> int:
    """Bytes of a file; none of one that has gone."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def scratch(folder: Path) -> list[Path]:
    """Everything that a run leaves behind only when it is killed."""
    home = [path for path in (folder / ".tidemill").rglob("*") if path.name.startswith((".partial", "tidemill-"))]
    return home + [path for path in (folder / "tmp").iterdir() if path.name.startswith("tidemill")]
