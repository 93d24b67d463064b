"""The circle in small: serve, drift, retrain, refuse the worse, promote the better, roll back, and the ledger's account.

Each step is a command that you can type; rows of July go through a real server that was trained on winter.
Arguments are passed on to every `tidemill run`, such as `--sample 0.3`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
from demo import FOLDER, TIDEMILL, ask, free_port, say, wait_until_ready
from get_data import get_data

HOME = FOLDER / ".tidemill" / "loop"
LIVE_ROWS = 4000


def main() -> int:
    data = get_data()
    shutil.rmtree(HOME, ignore_errors=True)
    tell("Winter: a first model keeps its contract and becomes champion.")
    tidemill("run", "-f", "loop.toml")

    tell(f"July: the champion answers {LIVE_ROWS} rows of another season, and logs them.")
    log = HOME / "log"
    serve_rows(july_rows(data), log)

    tell("What came in is held against what the champion was made from.")
    tidemill("monitor", "report", "flights", "--data", str(log.relative_to(FOLDER)))

    newer = ["run", "-f", "loop.toml", "--set", "data.prepare=seasons:spring_and_summer"]
    tell("A challenger on newer rows, but blind to schedule and weather: the gate refuses it (exit code 3).")
    blind = 'features.drop=["time_hour","month","day","departs_minute","arrives_minute","planned_minutes","temp","dewp","humid","precip","pressure","visib"]'
    tidemill(*newer, "--set", blind, "--set", "model.num_rounds=2", expect=3)

    tell("A challenger on newer rows with everything: no loss against the champion, registered, promoted.")
    tidemill(*newer)
    tidemill("models", "promote", "flights", "2", "--expected", "1", "--why", "learned spring and summer")

    tell("Somebody complains: back to the version before, at once.")
    tidemill("models", "rollback", "flights", "--why", "complaints about evening flights")

    tell("The ledger tells the story.")
    tidemill("models", "history", "flights")
    return 0


def tidemill(*arguments: str, expect: int = 0) -> None:
    if arguments[0] == "run":
        arguments += tuple(sys.argv[1:])
    command = [TIDEMILL, *arguments, "--home", str(HOME)]
    say(shlex.join(["tidemill", *arguments]))
    code = subprocess.run([*command, *(["--quiet"] if arguments[0] == "run" else [])], cwd=FOLDER, check=False).returncode
    if code != expect:
        raise SystemExit(f"expected exit code {expect}, got {code}")


def serve_rows(rows: list[dict[str, Any]], log: Path, *, batch: int = 500) -> None:
    """Send rows to a real server, as a client would."""
    port = free_port()
    say(f"tidemill serve flights --port {port} --log {log.name}")
    command = [TIDEMILL, "serve", "flights", "--port", str(port), "--log", str(log), "--home", str(HOME), "--quiet"]
    server = subprocess.Popen(command, cwd=FOLDER)
    try:
        wait_until_ready(server, port)
        late = 0
        for start in range(0, len(rows), batch):
            answers = ask(port, "/predict_batch", {"records": rows[start : start + batch]})["predictions"]
            late += sum(bool(answer["prediction"]) for answer in answers)
        print(f"{len(rows)} flights asked for, {late} expected to be late")
        time.sleep(1)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def july_rows(data: Path) -> list[dict[str, Any]]:
    """Flights of July as requests: the example's own `prepare`, without the target."""
    sys.path.insert(0, str(FOLDER))
    import narwhals as nw
    from seasons import july

    work = HOME / "july"
    work.mkdir(parents=True, exist_ok=True)
    shutil.unpack_archive(data / "flights.csv.zip", work)
    frames = {
        name: nw.from_native(duckdb.read_csv(str(path), na_values=["NA"]))
        for name, path in {"flights": work / "flights.csv", "weather": data / "weather.csv", "planes": data / "planes.csv"}.items()
    }
    table = july(**frames).drop("late").sort("time_hour", "carrier", "flight").collect("pyarrow").to_native()
    table = table.take([place * len(table) // LIVE_ROWS for place in range(LIVE_ROWS)])
    return json.loads(json.dumps(table.to_pylist(), default=lambda value: value.isoformat()))


def tell(text: str) -> None:
    print(f"\n--- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
