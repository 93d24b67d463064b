"""Measures other defaults on rows that the benchmark does not test on: what a change of a default rests on.

The test rows of each table are laid aside. The others become a table of their own, which is split anew; on it the
default project, the variants below and the table's script are fitted and compared.

Usage: choose.py [--rows N] [--seeds N] [--variants a,b] [--out FILE] [table ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from ours import answers
from run import targets
from scripts import SCRIPTS
from tables import Table, table

from tidemill.core.metrics import default_metric, evaluate, paired_difference
from tidemill.core.project import from_tree
from tidemill.pipeline import run

FAST = {"max_depth": 6, "learning_rate": 0.1, "num_rounds": 500, "early_stopping": 30, "subsample": 1.0, "colsample": 1.0}

# Sections laid over the default project, by the variant's name.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {"model": FAST},
    "fast-blind": {"model": {**FAST, "subsample": 0.8, "colsample": 0.8}},
    "deep": {"model": {"max_depth": 6}},
    "shallow": {"model": {"max_depth": 4}},
    "wide-leaves": {"model": {"min_child_weight": 10}},
    "squared": {"model": {"loss": "squared"}},
    "poisson": {"model": {"loss": "poisson"}},
    "linear": {"model": {"kind": "linear"}},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", nargs="*", metavar="table")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", default="default,fast,deep,shallow")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    for name in given.tables or SCRIPTS:
        whole = table(name)
        chosen = whole if whole.rows <= given.rows else table(name, rows=given.rows)
        with tempfile.TemporaryDirectory() as folder:
            for found in measured(chosen, given.variants.split(","), given.seeds, Path(folder)):
                print(json.dumps(found), flush=True)
                if given.out:
                    with given.out.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(found) + "\n")


def measured(chosen: Table, variants: list[str], seeds: int, folder: Path) -> Any:
    """For each seed of the inner split: every variant's quality, and its gain over the script."""
    rest = laid_aside(chosen, folder)
    for seed in range(seeds):
        script = None
        for variant in variants:
            tree = chosen.project(**{**VARIANTS[variant], "data": {"source": str(rest)}}) | {"seed": seed + 1}
            made = run(from_tree(tree), home=folder / "home", register=False)
            data, task = made.stages["data"].path, made.stages["data"].facts["task"]
            metric, y_N = default_metric(task), targets(data / "test", chosen.target, task)
            if script is None:
                script = SCRIPTS[chosen.name](*(pd.read_parquet(data / part) for part in ("train", "valid", "test")))
                yield {
                    "table": chosen.name,
                    "seed": seed,
                    "variant": "script",
                    metric: evaluate(task, y_N, script, metrics=[metric])[metric],
                }
            found = {
                "table": chosen.name,
                "seed": seed,
                "variant": variant,
                "seconds": round(sum(t["seconds"] for t in made.timings.values()), 2),
            }
            if made.package is None:
                yield {**found, "refused": str(made.refused)}
                continue
            ours = answers(made.package, data / "test")
            gain = paired_difference(metric, y_N, script, ours, seed=0, task=task, resamples=200)
            bounds = [round(value, 5) for value in (gain.lower, gain.estimate, gain.upper)]
            yield {**found, metric: evaluate(task, y_N, ours, metrics=[metric])[metric], "over_script": bounds}


def laid_aside(chosen: Table, folder: Path) -> Path:
    """The table without the rows that the benchmark tests on."""
    data = run(from_tree(chosen.project()), home=folder / "outer", to_stage="data", register=False).stages["data"].path
    kept = pa.concat_tables([ds.dataset(data / part).to_table() for part in ("train", "valid")])
    pq.write_table(kept, folder / f"{chosen.name}.parquet")
    return folder / f"{chosen.name}.parquet"


if __name__ == "__main__":
    main()
