"""Claim: joining and aggregating 33.7 million flights with their weather takes at most 1.3 times as long as hand-written DuckDB SQL.

The year of flights from New York is repeated 100 times, years apart, flights and weather alike, and written to Parquet. Both ways read
it, join on airport and hour, aggregate by airline, airport and month, join the aggregates back to the flights, and write Parquet: ours
as `prepare` in Narwhals and the engine's `write`, the peer as one COPY. Both have the same memory and threads. Each run is a process
of its own, in turn; what they wrote is compared first. The peer may write rows in any order where ours keeps theirs; a second peer
keeps the order too.

Usage: run.py [--repeats 3] [--copies 100] [--memory 2GiB]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import os
import platform
import shutil
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb

from tidemill.core.contract import hardware
from tidemill.core.engine import EngineConfig, Source, Target, memory_bytes, open_engine
from tidemill.testing.memory import peak_pss

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache" / "benchmarks"
sys.path += [str(HERE), str(ROOT / "examples" / "flights")]
WAYS = ("tidemill", "duckdb", "duckdb, order kept")
THREADS = 2

AGGREGATE = """
    SELECT carrier, origin, month, year, count(*) AS flights, avg(arr_delay) AS mean_delay, avg(wind_speed) AS mean_wind
    FROM joined GROUP BY carrier, origin, month, year
"""
JOINED = """
    SELECT f.*, w.temp, w.dewp, w.humid, w.wind_speed, w.precip, w.pressure, w.visib
    FROM read_parquet('{folder}/flights/*.parquet') f LEFT JOIN read_parquet('{folder}/weather.parquet') w USING (origin, time_hour)
"""
BOTH = "SELECT joined.*, a.flights, a.mean_delay, a.mean_wind FROM joined LEFT JOIN a USING (carrier, origin, month, year)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--way", choices=WAYS, help="run this way alone, here, and print its seconds")
    options = parser.parse_args()
    folder = tables(options.copies)
    out = CACHE / "join-out"
    if options.way:
        print(json.dumps({"seconds": run(options.way, folder, out / options.way.replace(", ", "-"), options.memory)}))
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks: dict[str, list[int]] = {way: [] for way in WAYS}
    for repeat in range(options.repeats):
        for way in WAYS if repeat % 2 == 0 else reversed(WAYS):
            peak = peak_pss([sys.executable, __file__, "--way", way, "--copies", str(options.copies), "--memory", options.memory])
            if peak.code:
                raise SystemExit(peak.output)
            taken[way].append(json.loads(peak.output.splitlines()[-1])["seconds"])
            peaks[way].append(peak.bytes >> 20)
            print(f"{way}: {taken[way][-1]:.1f} s, peak {peaks[way][-1]} MiB", flush=True)
        if repeat == 0:
            check_equal(out)
    result = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "ratio": {
            f"to {way}": spread([ours / theirs for ours, theirs in zip(taken["tidemill"], taken[way], strict=True)]) for way in WAYS[1:]
        },
        "seconds": {way: spread(values) for way, values in taken.items()},
        "peak_mib": {way: max(values) for way, values in peaks.items()},
        "rows": duckdb.sql(f"SELECT count(*) FROM '{out}/tidemill/*.parquet'").fetchall()[0][0],
        "memory": options.memory,
        "threads": THREADS,
        "hardware": hardware(),
        "load": os.getloadavg(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("duckdb", "narwhals", "pyarrow")},
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{result['at'][:10]}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("ratio", "seconds", "peak_mib")}, indent=1))
    shutil.rmtree(out)


def run(way: str, folder: Path, out: Path, memory: str) -> float:
    """Seconds from nothing to the written folder."""
    from flights_weather import prepare

    start = time.perf_counter()
    if way == "tidemill":
        with open_engine(EngineConfig(memory=memory, threads=THREADS), scratch=out.parent) as engine:
            sources = {"flights": f"{folder}/flights", "weather": f"{folder}/weather.parquet"}
            frames = {name: engine.frame(engine.scan(Source(path=path), None)) for name, path in sources.items()}
            engine.write(engine.rows(prepare(**frames)), Target(path=out))
        return time.perf_counter() - start
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with duckdb.connect(
        config={"memory_limit": f"{memory_bytes(memory)}B", "threads": THREADS, "temp_directory": str(out / "spill")}
    ) as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.execute(f"SET preserve_insertion_order = {str(way.endswith('kept')).lower()}")
        query = f"WITH joined AS ({JOINED.format(folder=folder)}), a AS ({AGGREGATE}) {BOTH}"
        connection.execute(f"COPY ({query}) TO '{out}/part.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)")
    return time.perf_counter() - start


def check_equal(out: Path) -> None:
    """The same rows, whatever their order: columns of the same sums, which floats may round differently."""
    names = duckdb.sql(f"SELECT * FROM '{out}/tidemill/*.parquet'").columns
    sums = ", ".join(f"sum(hash({name}) % 1000003)" for name in names if not name.startswith("mean_"))
    folders = [out / way.replace(", ", "-") for way in WAYS]
    exact = [duckdb.sql(f"SELECT count(*), {sums} FROM '{folder}/*.parquet'").fetchall() for folder in folders]
    assert exact[0] == exact[1] == exact[2], exact
    means = [duckdb.sql(f"SELECT sum(mean_delay), sum(mean_wind) FROM '{folder}/*.parquet'").fetchall()[0] for folder in folders]
    for found in means[1:]:
        assert all(math.isclose(one, other, rel_tol=1e-9) for one, other in zip(found, means[0], strict=True)), means


def tables(copies: int) -> Path:
    """Flights and weather, `copies` times, a year of their own each; made once."""
    from get_data import get_data

    folder = CACHE / f"flights-{copies}"
    if (folder / "weather.parquet").exists():
        return folder
    source = get_data()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "flights").mkdir(parents=True)
    with open_engine(EngineConfig()) as engine:
        engine.write(engine.scan(Source(path=str(source / "flights.csv.zip")), None), Target(path=folder / "one"))
        engine.write(engine.scan(Source(path=str(source / "weather.csv")), None), Target(path=folder / "skies"))
    with duckdb.connect(config={"memory_limit": "4GiB"}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        shifted = "SELECT * REPLACE (year + i AS year, time_hour + to_years(i) AS time_hour) FROM '{}/{}/*.parquet'"
        for i in range(copies):
            query = shifted.format(folder, "one").replace("+ i ", f"+ {i} ").replace("(i)", f"({i})")
            connection.execute(f"COPY ({query}) TO '{folder}/flights/part-{i:03d}.parquet' (FORMAT parquet, COMPRESSION zstd)")
        every = f"SELECT t.* REPLACE (year + i AS year, time_hour + to_years(i::INT) AS time_hour) FROM '{folder}/skies/*.parquet' t, range({copies}) r(i)"
        connection.execute(f"COPY ({every}) TO '{folder}/weather.partial' (FORMAT parquet, COMPRESSION zstd)")
    for name in ("one", "skies"):
        shutil.rmtree(folder / name)
    (folder / "weather.partial").rename(folder / "weather.parquet")
    return folder


def spread(values: list[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


if __name__ == "__main__":
    main()
