"""The flights example: what may enter the model, the demo and the circle, each as a user runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"

# Known only after the plane has left, or landed.
AFTERWARDS = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}

pytestmark = pytest.mark.slow


@pytest.fixture
def flights(tmp_path: Path, nycflights: Path) -> Path:
    """A copy of the example with its data beside it."""
    folder = tmp_path / "flights"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(".tidemill", "data", "__pycache__"))
    (folder / "data").mkdir()
    for table in ("flights.csv.zip", "weather.csv", "planes.csv"):
        (folder / "data" / table).symlink_to(nycflights / table)
    return folder


def run(folder: Path, script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, script, *arguments], cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_answers_from_what_is_known_before_departure(flights: Path) -> None:
    said = run(flights, "demo.py", "--sample", "0.2", "--set", "tune.trials=2", "--set", "model.num_rounds=60")
    answer = json.loads(next(line for line in said.splitlines() if line.startswith('{"prediction"')))
    assert answer["model"] == "flights"
    assert 0 < answer["probability"] < 1
    assert re.search(r"quality   roc_auc 0\.\d{4}, 95 % interval", said)
    report = Path(re.search(r"report    file://(\S+)", said)[1])  # type: ignore[index]
    assert report.is_file()

    package = json.loads((flights / ".tidemill/packages/flights/1/tidemill.json").read_text(encoding="utf-8"))
    inputs = {column["name"] for column in package["signature"]["inputs"]}
    assert inputs.isdisjoint(AFTERWARDS)
    assert {"carrier", "origin", "dest", "temp", "seats"} <= inputs
    assert package["signature"]["target"] == "late"
    quality = json.loads((flights / ".tidemill/packages/flights/1/evidence/quality.json").read_text(encoding="utf-8"))
    assert 0.6 < quality["value"] < 0.8, "above it, something from after the departure has come in"


def test_the_circle_drifts_refuses_promotes_and_rolls_back(flights: Path) -> None:
    said = run(flights, "loop.py", "--sample", "0.5")
    story = said[said.index("The ledger tells the story") :]
    kinds = ["version 1 was registered", "version 1 became champion", "drift was reported", "a candidate for flights was refused"]
    kinds += ["version 2 was registered", "version 2 became champion", "champion of flights went back to version 1"]
    places = [story.index(kind) for kind in kinds]
    assert places == sorted(places)
    assert "severe drift" in said
    assert "temp (" in said
