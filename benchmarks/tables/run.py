"""Claim: a project of `source` and `target` alone is not below a careful script by hand on real tables, and above on most.

Runs the default project and the table's script (`scripts.py`) in turn, each as a whole process; the script is given the
rows that the project made its train, valid and test of. Compares both on the test rows by a paired bootstrap, and
enters the table into today's result beside this file and into README.md.

Usage: run.py [--rows N] [--repeats N] [table ...]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from scripts import SCRIPTS
from tables import Table, table

from tidemill.core.metrics import METRICS, default_metric, evaluate, paired_difference
from tidemill.pipeline import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results"
# Tables of more rows are cut to these, unless --rows says otherwise.
ROWS = 300_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", nargs="*", metavar="table")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    for name in given.tables or SCRIPTS:
        whole = table(name)
        chosen = whole if whole.rows <= given.rows else table(name, rows=given.rows)
        with tempfile.TemporaryDirectory() as folder:
            result = measure(chosen, Path(folder), repeats=given.repeats)
        enter(name, {**result, "of_rows": whole.rows})
        print(line(name, {**result, "of_rows": whole.rows}), flush=True)


def measure(chosen: Table, folder: Path, *, repeats: int = 1, project: dict[str, Any] | None = None) -> dict[str, Any]:
    """Both answers' quality on the test rows, the bounds of their paired difference, and the seconds that each took."""
    tree = project or chosen.project()
    (folder / "project.json").write_text(json.dumps(tree), encoding="utf-8")
    seconds: dict[str, list[float]] = {"tidemill": [], "script": []}
    for repeat in range(repeats):
        seconds["tidemill"].append(timed("ours.py", str(folder / "project.json"), str(folder / f"home-{repeat}"), str(folder)))
        said = json.loads((folder / "ours.json").read_text(encoding="utf-8"))
        seconds["script"].append(timed("scripts.py", chosen.name, said["data"], str(folder / "script.npy")))
    task, metric = said["task"], default_metric(said["task"])
    y_N = targets(Path(said["data"]) / "test", chosen.target, task)
    theirs = np.load(folder / "script.npy")
    result: dict[str, Any] = {"rows": chosen.rows, "test_rows": len(y_N), "metric": metric, "refused": said["refused"]}
    result["script"] = evaluate(task, y_N, theirs, metrics=[metric])[metric]
    if not said["refused"]:
        ours = np.load(folder / "ours.npy")
        result["tidemill"] = evaluate(task, y_N, ours, metrics=[metric])[metric]
        found = paired_difference(metric, y_N, theirs, ours, seed=0, task=task)
        result["gain"] = {"estimate": found.estimate, "lower_95": found.lower, "upper_95": found.upper}
    result["seconds"] = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    return result


def targets(rows: Path, target: str, task: str) -> np.ndarray:
    """Numbers, or the places of classes in their order."""
    known = ds.dataset(rows).to_table([target]).column(0).to_pylist()
    places = {value: place for place, value in enumerate(sorted(set(known)))}
    return np.array(known, float) if task == "regression" else np.array([places[value] for value in known])


def timed(script: str, *arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, str(HERE / script), *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def enter(name: str, result: dict[str, Any]) -> None:
    """Into today's result and the page's table, beside the tables that are there."""
    RESULTS.mkdir(exist_ok=True)
    now = dt.datetime.now(dt.UTC)
    path = RESULTS / f"{now:%Y-%m-%d}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"tables": {}}
    known["tables"][name] = {**result, "at": now.isoformat(timespec="seconds")}
    known["environment"] = environment()
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    page = HERE / "README.md"
    if page.exists():
        before, _, after = page.read_text(encoding="utf-8").partition("<!-- results -->\n")
        _, _, after = after.partition("<!-- /results -->")
        page.write_text(f"{before}<!-- results -->\n{as_table(known['tables'])}<!-- /results -->{after}", encoding="utf-8")


def as_table(results: dict[str, dict[str, Any]]) -> str:
    head = "| table | rows | metric | script | Tidemill | gain, 90 % interval | | seconds: script, Tidemill |\n|---|--:|---|--:|--:|--:|---|--:|\n"
    return head + "".join(line(name, results[name]) + "\n" for name in SCRIPTS if name in results)


def line(name: str, result: dict[str, Any]) -> str:
    rows = f"{result['rows']:,}" + (f" of {result['of_rows']:,}" if result["of_rows"] > result["rows"] else "")
    title = METRICS[result["metric"]].title
    seconds = f"{result['seconds']['script']:.1f}, {result['seconds']['tidemill']:.1f}"
    if result["refused"]:
        return f"| {name} | {rows} | {title} | {result['script']:.4g} | refused | | below | {seconds} |"
    gain = result["gain"]
    bounds = f"{gain['estimate']:+.2g} ({gain['lower_95']:+.2g} to {gain['upper_95']:+.2g})"
    return f"| {name} | {rows} | {title} | {result['script']:.4f} | {result['tidemill']:.4f} | {bounds} | {verdict(gain)} | {seconds} |"


def verdict(gain: dict[str, float]) -> str:
    if gain["upper_95"] < 0:
        return "below"
    return "above" if gain["lower_95"] > 0 else "level"


if __name__ == "__main__":
    main()
