"""The flights example fitted by two workers, each on its row groups, against one process: all rows of the year, as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"


@pytest.mark.long  # tests/unit/train/test_boosting.py asks the same of fewer rows
def test_two_workers_fit_what_one_process_fits(tmp_path: Path, nycflights: Path) -> None:
    for name in ("flights.py", "tidemill.toml"):
        shutil.copy(EXAMPLE / name, tmp_path / name)
    (tmp_path / "data").symlink_to(nycflights)
    settings = tmp_path / "tidemill.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text[: text.index("[tune]")] + text[text.index("[contract]") :], encoding="utf-8")
    for workers in (1, 2):
        command = [
            sys.executable,
            "-m",
            "tidemill.cli",
            "run",
            "--to",
            "train",
            "--set",
            "model.num_rounds=15",
            "--set",
            "engine.threads=1",
        ]
        done = subprocess.run(
            [*command, "--set", f"train.parallel.data={workers}"], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    made = sorted(tmp_path.glob(".tidemill/store/flights/train-*"))
    assert len(made) == 2
    first, second = (pq.read_table(folder / "valid_predictions.parquet")["probability"].to_numpy() for folder in made)
    assert len(first) > 30_000
    assert np.abs(first - second).max() < 1e-4
    losses = [[json.loads(line)["valid_log_loss"] for line in (folder / "history.jsonl").read_text().splitlines()] for folder in made]
    assert len(losses[0]) == 15
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
