"""The examples on bicycles, employment and clicks, each as a user runs it, on few rows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def copied(name: str, into: Path, script: Callable[[str], Any]) -> Path:
    """A copy of the example with its data beside it, fetched once for all tests; skips where the package cannot be fetched."""
    module = script(f"examples/{name}/get_data.py")
    try:
        data = Path(module.get_data())
    except subprocess.CalledProcessError:
        pytest.skip(f"{module.PACKAGE} cannot be fetched here")
    folder = bare(name, into)
    (folder / "data").symlink_to(data)
    return folder


def bare(name: str, into: Path) -> Path:
    """A copy of the example without its data."""
    folder = into / name
    shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns(".tidemill", "data", "__pycache__"))
    return folder


def demo(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "demo.py", *arguments], cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def package(folder: Path, name: str) -> tuple[dict[str, object], dict[str, dict[str, float]]]:
    """The first version's manifest, and its evidence by name."""
    path = folder / ".tidemill" / "packages" / name / "1"
    evidence = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (path / "evidence").glob("*.json")}
    return json.loads((path / "tidemill.json").read_text(encoding="utf-8")), evidence


def test_bicycles_come_with_intervals_that_hold_what_they_say(tmp_path: Path, script: Callable[[str], Any]) -> None:
    folder = copied("bikes", tmp_path, script)
    said = demo(folder, "--set", "model.num_rounds=150", "--set", "contract.quality.max=70")
    manifest, evidence = package(folder, "bikes")
    inputs = {column["name"] for column in manifest["signature"]["inputs"]}  # type: ignore[index]
    assert inputs.isdisjoint({"casual", "registered", "day"}), "parts of the target, or what names the day"
    assert evidence["interval"]["level"] == 0.9
    assert 0.85 < evidence["interval"]["coverage"] < 0.95
    hours = re.findall(r"(?:clear|misty|snow) +(\d+) bicycles, +(\d+) to +(\d+)", said)
    assert len(hours) == 3
    assert all(int(low) <= int(number) <= int(high) for number, low, high in hours)
    assert int(hours[0][0]) > int(hours[2][0]), "rain keeps people from riding"


def test_employment_drifts_a_little_more_each_year(tmp_path: Path, script: Callable[[str], Any]) -> None:
    folder = copied("employment", tmp_path, script)
    said = demo(folder, "--sample", "0.2", "--set", "model.num_rounds=30", "--set", "contract.quality.min=0.8")
    ages = [float(distance) for distance in re.findall(r"^  201[78]  .*?AGEP (0\.\d+)", said, re.MULTILINE)]
    assert len(ages) == 2
    assert 0.01 < ages[0] < ages[1] < 0.1
    assert said.count("employment: no drift in ") == 3
    assert all((folder / ".tidemill" / f"{year}.html").is_file() for year in (2016, 2017, 2018))


def test_clicks_are_made_alike_and_learnt(tmp_path: Path) -> None:
    folder = bare("clicks", tmp_path)
    said = demo(folder, "--rows", "20000", "--set", "model.num_rounds=20", "--set", "contract.quality.min=0.6")
    _, evidence = package(folder, "clicks")
    value, ceiling = evidence["quality"]["value"], float(re.search(r"can be better than (0\.\d+)", said)[1])  # type: ignore[index]
    assert 0.6 < value < ceiling + 0.02
    memory = float(re.search(r"([\d.]+) GiB of memory at most, for 20,000 rows", said)[1])  # type: ignore[index]
    assert 0.05 < memory < 2
    first = (folder / "data" / "clicks-20000" / "part-000.parquet").read_bytes()
    shutil.rmtree(folder / "data")
    subprocess.run([sys.executable, "get_data.py", "20000"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    assert (folder / "data" / "clicks-20000" / "part-000.parquet").read_bytes() == first
