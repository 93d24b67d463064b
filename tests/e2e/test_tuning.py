"""Searches through the command line: kinds of model against each other, and what earlier searches bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def _stage(project: Any, told: dict[str, Any], name: str) -> Path:
    record = json.loads((Path(told["report"]).parent / "run.json").read_text())
    return Path(record["stages"][name]["path"])


def test_the_best_kind_is_trained_and_packaged(project: Any) -> None:
    space = '{ "model.kind" = { choice = ["xgboost", "linear"] }, "model.max_depth" = { int = [1, 2] }, "model.l2" = { log_float = [0.1, 10] } }'
    told = project.write(tune=f'trials = 6\nsampler = "random"\nspace = {space}').run()
    best = json.loads((_stage(project, told, "tune") / "best.json").read_text())
    report = json.loads((_stage(project, told, "train") / "train.json").read_text())
    assert report["kind"] == best["model.kind"]
    assert set(best) == {"model.kind", "model.max_depth" if best["model.kind"] == "xgboost" else "model.l2"}
    assert project.run()["identity"] == told["identity"]


def test_an_earlier_search_is_where_the_next_begins(project: Any) -> None:
    """The search on other data is kept beside the store, found by distance, tried first and part of what the stage depends on."""
    space = 'space = { "model.max_depth" = { int = [1, 6] }, "model.learning_rate" = { log_float = [0.05, 0.5] } }'
    first = project.write(tune=f"trials = 4\n{space}").run("--to", "tune")
    (kept,) = (project.home / "studies").glob("*.json")
    best = json.loads((_stage(project, first, "tune") / "best.json").read_text())
    assert json.loads(kept.read_text())["trials"][0]["params"] == best
    project.write(tune=f'trials = 6\nwarm_start = "history"\n{space}')
    second = project.run("--to", "tune", "--set", "seed=1")  # other rows are trained on
    search = json.loads((_stage(project, second, "tune") / "search.json").read_text())
    trials = json.loads((_stage(project, second, "tune") / "trials.json").read_text())
    assert search["starts"][0]["params"] == best
    assert search["starts"][0]["from"].startswith("small, distance ")
    assert trials[1]["params"] == best
    again = project.run("--to", "tune", "--set", "seed=1")
    assert _stage(project, again, "tune") == _stage(project, second, "tune")
    assert all(stage["cached"] for stage in json.loads((Path(again["report"]).parent / "run.json").read_text())["stages"].values())


def test_what_cannot_be_searched_is_said_before_anything_runs(project: Any) -> None:
    project.write(tune='storage = "postgresql://ann:secret@db/x"').call("run").said(
        2, "tune.storage: must not hold a password", "PGPASSWORD"
    )
    project.write(tune='sampler = "best"').call("run").said(2, "tune.sampler: must be one of tpe, gp, transfer, random, grid")
