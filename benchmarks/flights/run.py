"""Claim: the flights demo is not below a careful XGBoost script on the same rows, and takes at most three times its time.

Runs the script (`peer.py`) and `tidemill run` in turn, each as a whole process with 20 trials, compares their answers on
the same test rows by a paired bootstrap, and writes the result beside this file. Usage: run.py [repeats] [trials]
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from tidemill.core.metrics import paired_difference
from tidemill.pipeline import environment

HERE = Path(__file__).parent
FLIGHTS = HERE.parents[1] / "examples" / "flights"
TIDEMILL = str(Path(sys.executable).parent / "tidemill")
KEY = ["time_hour", "carrier", "flight", "origin", "dest", "departs_minute"]


def main(repeats: int, trials: int) -> None:
    sys.path.insert(0, str(FLIGHTS))
    from get_data import get_data

    data = get_data()
    seconds: dict[str, list[float]] = {"peer": [], "tidemill": []}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for repeat in range(repeats):
            for name in ("peer", "tidemill") if repeat % 2 == 0 else ("tidemill", "peer"):
                seconds[name].append(run_peer(data, work, trials) if name == "peer" else run_tidemill(work, trials))
                print(f"{name} {seconds[name][-1]:.1f} s", flush=True)
        result = compare(work)
    ratios = [ours / theirs for ours, theirs in zip(seconds["tidemill"], seconds["peer"], strict=True)]
    result |= {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "trials": trials,
        "seconds": {name: [round(value, 1) for value in values] for name, values in seconds.items()},
        "time_ratio": {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)},
        "environment": environment(),
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{result['at'][:10]}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("rows", "auc", "gain", "time_ratio")}, indent=1))


def run_peer(data: Path, work: Path, trials: int) -> float:
    return timed([sys.executable, str(HERE / "peer.py"), str(data), str(work), str(trials)])


def run_tidemill(work: Path, trials: int) -> float:
    shutil.rmtree(work / "home", ignore_errors=True)
    return timed([TIDEMILL, "run", "--home", str(work / "home"), "--quiet", "--set", f"tune.trials={trials}"])


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=FLIGHTS, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def compare(work: Path) -> dict[str, Any]:
    """Both AUCs and the bounds of their paired difference, over the test rows, which must be the same."""
    ours = work / "ours.parquet"
    test = next((work / "home" / "store" / "flights").glob("data-*")) / "test"
    home = ["--home", str(work / "home"), "--quiet"]
    keep = ",".join([*KEY, "late"])
    subprocess.run([TIDEMILL, "predict", "flights", str(test), str(ours), "--keep", keep, *home], check=True, stdout=subprocess.DEVNULL)
    both = [rank(pd.read_parquet(path)) for path in (work / "peer.parquet", ours)]
    rows = both[0].merge(both[1], on=[*KEY, "rank"], suffixes=("_peer", "_ours"), validate="one_to_one")
    if not len(rows) == len(both[0]) == len(both[1]) or (rows["late_peer"] != rows["late_ours"]).any():
        raise SystemExit(f"the test rows differ: {len(both[0])} and {len(both[1])}, {len(rows)} in common")
    y = rows["late_peer"].to_numpy().astype(int)
    peer, tidemill = rows["probability_peer"].to_numpy(), rows["probability_ours"].to_numpy()
    found = paired_difference("roc_auc", y, peer, tidemill, seed=0)
    auc = {"peer": json.loads((work / "peer.json").read_text(encoding="utf-8"))["auc"]}
    auc["tidemill"] = auc["peer"] + found.estimate
    return {"rows": len(rows), "auc": auc, "gain": {"estimate": found.estimate, "lower_95": found.lower, "upper_95": found.upper}}


def rank(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows in a common order; a rank tells apart flights that share the whole key."""
    rows = rows.assign(time_hour=pd.to_datetime(rows["time_hour"], utc=True).astype("datetime64[us, UTC]"))
    rows = rows.sort_values([*KEY, "late"], kind="stable", ignore_index=True)
    return rows.assign(rank=rows.groupby(KEY).cumcount())


if __name__ == "__main__":
    main(*(int(value) for value in [*sys.argv[1:], *("3", "20")[len(sys.argv) - 1 :]]))
