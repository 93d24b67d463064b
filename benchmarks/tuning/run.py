"""How many trials a search needs that knows searches on other tables, beside plain TPE.

    python benchmarks/tuning/run.py                # everything; what was done before is taken from .cache
    python benchmarks/tuning/run.py plain 0        # one arm with one seed
    python benchmarks/tuning/run.py report         # only the figures

For each table in turn the earlier searches are those on the other tables (one plain search of 50 trials each), so that
nothing of a table helps itself. The score is the project's metric on the validation rows; the target is what plain TPE
reaches in 50 trials, the median over the seeds, once with the median pruner and once without any.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tables"))

from tables import TABLES, table

from tidemill import pipeline
from tidemill.core.artifact import Artifact
from tidemill.core.events import Events
from tidemill.core.metrics import default_metric, metric_of
from tidemill.core.project import from_tree
from tidemill.tune import history, stage

CACHE = Path(__file__).parents[2] / ".cache" / "benchmarks" / "tuning"
RESULTS = Path(__file__).parent / "results"
NAMES = (
    "oj", "wage", "bikeshare", "default", "caravan", "college", "housing", "german_credit", "fifa", "affairs",
    "doctor_visits", "diamonds", "traffic", "digits", "flights", "employment",
)  # fmt: skip
ROWS = 4000
SEEDS = (0, 1)
PLAIN, WARM = 50, 25
# Each target with the arms that are held against it: those under the same pruner.
GROUPS = {"plain_unpruned": ("plain_unpruned", "transfer"), "plain": ("plain", "transfer_pruned", "starts_pruned")}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"trials": PLAIN},
    "transfer": {"trials": WARM, "sampler": "transfer", "warm_start": "history", "pruner": "none"},
    "plain_unpruned": {"trials": PLAIN, "pruner": "none"},
    "transfer_pruned": {"trials": WARM, "sampler": "transfer", "warm_start": "history"},
    "starts_pruned": {"trials": WARM, "warm_start": "history"},
}


def search(name: str, arm: str, seed: int) -> None:
    """One search, its trials in the cache: clear it where the code between two arms has changed."""
    done = CACHE / arm / f"{name}-{seed}.json"
    if done.exists():
        return
    made = table(name, rows=ROWS)
    tree = made.project(engine={"threads": 1}, tune={**ARMS[arm], "seed": seed})
    tree["data"]["split"] = {**made.split, "valid": 0.2, "test": 0.2}
    project = from_tree(tree)
    stages = pipeline.run(project, home=CACHE / "home" / f"{arm}-{seed}" / name, to_stage="features", register=False).stages
    data, features = Artifact.open(stages["data"].path), Artifact.open(stages["features"].path)
    studies = CACHE / "studies"
    out = CACHE / "work" / f"{arm}-{name}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    history.portfolio = lambda _kinds: []  # what ships was chosen on these tables
    start = time.perf_counter()
    warm = stage.warm_start(project, data, features, studies=studies)
    keep = studies if arm == "plain" and seed == SEEDS[0] else None
    stage.run(project, data, features, out, work=out / "work", events=Events(), warm=warm, studies=keep)
    seconds = time.perf_counter() - start
    done.parent.mkdir(parents=True, exist_ok=True)
    trials = [{key: trial[key] for key in ("params", "value", "state")} for trial in json.loads((out / "trials.json").read_text())]
    done.write_text(json.dumps({"seconds": round(seconds, 2), "trials": trials}))
    shutil.rmtree(out)
    print(f"{arm:9} {name:14} seed {seed}  {seconds:6.1f} s", flush=True)


def curves(name: str, arm: str) -> list[list[float]]:
    """The best score so far after each trial, more is better, one list a seed."""
    sign = 1.0 if metric_of(metric_name(name)).greater_is_better else -1.0
    found = []
    for seed in SEEDS:
        path = CACHE / arm / f"{name}-{seed}.json"
        if path.exists():
            values = [sign * t["value"] if t["value"] is not None else -float("inf") for t in json.loads(path.read_text())["trials"]]
            found.append([max(values[: place + 1]) for place in range(len(values))])
    return found


def seconds(name: str, arm: str) -> list[float]:
    """Seconds that each search took, draws and all."""
    paths = [CACHE / arm / f"{name}-{seed}.json" for seed in SEEDS]
    return [float(json.loads(path.read_text())["seconds"]) for path in paths if path.exists()]


def report() -> None:
    """Print the tables and write the dated result."""
    found = {target: against(target) for target in GROUPS}
    RESULTS.mkdir(exist_ok=True)
    day = dt.datetime.now(dt.UTC).date().isoformat()
    result = {"date": day, "rows": ROWS, "seeds": list(SEEDS), "environment": pipeline.environment(), "against": found}
    (RESULTS / f"{day}.json").write_text(json.dumps(result, indent=1) + "\n")


def against(target_arm: str) -> dict[str, Any]:
    """The figures of every arm, where the target is what `target_arm` reaches in 50 trials."""
    rows = [row_of(name, target_arm) for name in NAMES if all(curves(name, arm) for arm in GROUPS[target_arm])]
    summary = {}
    for arm in GROUPS[target_arm]:
        each = [row["arms"][arm] for row in rows]
        summary[arm] = {
            "tables_that_reach_it_in_25": sum(
                entry["trials_to_target"] is not None and entry["trials_to_target"] <= WARM for entry in each
            ),
            "runs_that_reach_it_in_25": sum(entry["runs_that_reach_it_in_25"] for entry in each),
            "runs": sum(entry["runs"] for entry in each),
            "median_gain_at_15": round(statistics.median(entry["gain_at_15"] for entry in each), 3),
            "median_gain_at_25": round(statistics.median(entry["gain_at_25"] for entry in each), 3),
            "mean_gain_at_25": round(statistics.mean(entry["gain_at_25"] for entry in each), 3),
            "seconds": round(sum(entry["seconds"] for entry in each), 1),
        }
    print(f"\nTarget: {target_arm}, {PLAIN} trials. Trials to target (median of the seeds), gain at 25.\n")
    print("| table | " + " | ".join(summary) + " |\n|---|" + "---|" * len(summary))
    for row in rows:
        cells = [f"{entry['trials_to_target'] or 'not'}, {entry['gain_at_25']:.2f}" for entry in row["arms"].values()]
        print(f"| {row['table']} | " + " | ".join(cells) + " |")
    for key in next(iter(summary.values())):
        print(f"| {key.replace('_', ' ')} | " + " | ".join(str(summary[arm][key]) for arm in summary) + " |")
    return {"summary": summary, "tables": rows}


def row_of(name: str, target_arm: str) -> dict[str, Any]:
    plain = curves(name, target_arm)
    target, first = statistics.median(curve[-1] for curve in plain), plain[0][0]
    arms = {}
    for arm in GROUPS[target_arm]:
        found = curves(name, arm)
        at = [statistics.median(curve[place] for curve in found) for place in range(WARM)]
        reached = [next((place + 1 for place, value in enumerate(curve) if value >= target), None) for curve in found]
        arms[arm] = {
            "trials_to_target": _middle(reached),
            "runs_that_reach_it_in_25": sum(place is not None and place <= WARM for place in reached),
            "runs": len(found),
            "gain_at_15": _share(at[14], first, target),
            "gain_at_25": _share(at[24], first, target),
            "seconds": round(statistics.mean(seconds(name, arm)), 2),
        }
    return {"table": name, "metric": metric_name(name), "first": first, "target": target, "arms": arms}


def metric_name(name: str) -> str:
    return default_metric(TABLES[name].task)  # type: ignore[arg-type]


def _share(value: float, first: float, target: float) -> float:
    """How much of the way from the project's own parameters to the target was gone."""
    return round((value - first) / (target - first), 3) if target > first else 1.0


def _middle(places: list[int | None]) -> int | None:
    """The upper median, None (never reached) counting as beyond every number."""
    return sorted(places, key=lambda place: (place is None, place or 0))[len(places) // 2]


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["report"]:
        report()
        return
    arms = arguments[:1] or list(ARMS)
    seeds = [int(seed) for seed in arguments[1:]] or list(SEEDS)
    for seed in seeds:
        for arm in arms:
            for name in NAMES:
                search(name, arm, seed)
    if not arguments:
        report()


if __name__ == "__main__":
    main(sys.argv[1:])
