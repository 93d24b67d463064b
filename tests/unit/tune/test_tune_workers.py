from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.artifact import Artifact
from tidemill.core.contract import ContractConfig
from tidemill.core.engine import EngineConfig
from tidemill.core.errors import DataError
from tidemill.core.events import Event, Events
from tidemill.core.project import Project, build
from tidemill.data.config import DataConfig
from tidemill.models.config import ModelConfig
from tidemill.train.config import TrainConfig
from tidemill.tune.config import TuneConfig
from tidemill.tune.stage import run

Stages = Callable[..., tuple[Artifact, Artifact]]

SPACE = {"model.max_depth": {"int": [2, 6]}, "model.subsample": {"float": [0.5, 1.0]}}
SLOW = {"num_rounds": 150, "early_stopping": 0, "max_bin": 64}

# A whole search in a process of its own.
SCRIPT = """
import json, sys
from pathlib import Path
from tidemill.core.artifact import Artifact
from tidemill.core.contract import ContractConfig
from tidemill.core.engine import EngineConfig
from tidemill.core.events import Events
from tidemill.core.project import Project, build
from tidemill.data.config import DataConfig
from tidemill.models.config import ModelConfig
from tidemill.train.config import TrainConfig
from tidemill.tune.config import TuneConfig
from tidemill.tune.stage import run

data, features, out, work, tune, model = sys.argv[1:]
project = Project(
    name="flights", seed=5, model=build(ModelConfig, json.loads(model), path="model"), tune=build(TuneConfig, json.loads(tune), path="tune"),
    contract=ContractConfig(), engine=EngineConfig(threads=2), train=TrainConfig(),
    **dict.fromkeys(("data", "features", "serve", "monitor", "rollout"), {}),
)
for folder in (out, work):
    Path(folder).mkdir(exist_ok=True)
stages = Artifact.open(Path(data)), Artifact.open(Path(features))
run(project, *stages, Path(out), work=Path(work), events=Events(lambda event: print(event.kind, flush=True)))
"""


def project(tune: dict[str, Any], model: dict[str, Any] | None = None) -> Project:
    unread: dict[str, Any] = {section: {} for section in ("data", "features", "serve", "monitor", "rollout")}
    return Project(
        name="flights",
        seed=5,
        model=build(ModelConfig, {"num_rounds": 15, "early_stopping": 5} if model is None else model, path="model"),
        tune=build(TuneConfig, tune, path="tune"),
        contract=ContractConfig(),
        engine=EngineConfig(threads=2),
        train=TrainConfig(),
        **unread,
    )


def search(stages: tuple[Artifact, Artifact], folder: Path, made: Project, events: Events | None = None) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    (folder / "out").mkdir()
    run(made, *stages, folder / "out", work=folder / "work", events=events or Events())
    return trials_of(folder / "out")


def trials_of(out: Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((out / "trials.json").read_text())
    return trials


def start(stages: tuple[Artifact, Artifact], folder: Path, name: str, tune: dict[str, Any], work: str = "work") -> subprocess.Popen[str]:
    paths = [str(path) for path in (stages[0].path, stages[1].path, folder / name, folder / work)]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *paths, json.dumps(tune), json.dumps(SLOW)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def children() -> list[int]:
    """Processes that this one started and that work on a search."""
    found = []
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return [pid for pid in found if b"tidemill.tune.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_random_trials_are_the_same_however_many_try_them(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    settings = {"trials": 8, "space": SPACE, "sampler": "random", "pruner": "none"}
    one = search(stages, tmp_path / "one", project(settings))
    told: list[Event] = []
    two = search(stages, tmp_path / "two", project({**settings, "workers": 2}), Events(told.append))
    assert [(trial["number"], trial["params"]) for trial in two] == [(trial["number"], trial["params"]) for trial in one]
    assert sorted(event.fields["number"] for event in told if event.kind == "tune.trial") == list(range(8))
    assert (tmp_path / "two" / "out" / "best.json").read_bytes() == (tmp_path / "one" / "out" / "best.json").read_bytes()
    assert children() == []


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost(finished_stages: Stages, tmp_path: Path) -> None:
    killed: list[int] = []
    told: list[Event] = []

    def kill(event: Event) -> None:
        told.append(event)
        if event.kind == "tune.trial" and len(killed) < 2 and (at_work := [pid for pid in children() if pid not in killed]):
            os.kill(at_work[0], signal.SIGKILL)
            killed.append(at_work[0])

    made = project({"trials": 10, "space": SPACE, "workers": 2}, SLOW)
    trials = search(finished_stages(), tmp_path, made, Events(kill))
    assert len(killed) == 2
    assert [event.kind for event in told].count("tune.worker_lost") == 2
    assert [trial["number"] for trial in trials] == list(range(10))
    seen = {event.fields["number"]: event.fields["value"] for event in told if event.kind == "tune.trial"}
    assert seen.items() <= {trial["number"]: trial["value"] for trial in trials}.items()


def test_what_a_worker_cannot_do_is_raised_here(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    (tmp_path / "pillaged.py").write_text(
        "def build():\n    from tidemill.core.errors import DataError\n    raise DataError('no such luck', hint='try again')\n"
    )
    with pytest.raises(DataError, match="no such luck; try again"):
        made = project({"trials": 3, "space": {"model.x": {"int": [1, 2]}}, "workers": 2}, {"kind": "pillaged:build"})
        search(stages, tmp_path / "x", replace(made, folder=tmp_path))


@pytest.mark.slow
def test_workers_end_with_the_one_that_started_them(finished_stages: Stages, tmp_path: Path) -> None:
    """The whole search is killed; its workers go too, and the next run goes on from what was finished."""
    stages = finished_stages()
    settings = {"trials": 10, "space": SPACE, "workers": 2, "sampler": "random", "pruner": "none"}
    with start(stages, tmp_path, "killed", settings) as killed:
        assert killed.stdout is not None
        done = 0
        while done < 3:
            done += killed.stdout.readline().strip() == "tune.trial"
        workers = [int(pid) for pid in Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()]
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while (
        any(Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text() for pid in workers)
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    with start(stages, tmp_path, "resumed", settings) as resumed:
        lines = resumed.communicate()[0].split()
    assert resumed.returncode == 0
    assert "tune.resumed" in lines
    assert lines.count("tune.trial") <= 10 - done
    assert [trial["number"] for trial in trials_of(tmp_path / "resumed")] == list(range(10))


@pytest.mark.server
@pytest.mark.slow
def test_two_machines_share_one_search(finished_stages: Stages, tmp_path: Path, postgresql: str) -> None:
    """Each has a folder of its own; they meet in the database, and both end with the same best."""
    psycopg = pytest.importorskip("psycopg")
    database = f"tune_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    storage = f"{postgresql.rpartition('/')[0]}/{database}"
    settings = {"trials": 12, "space": SPACE, "storage": storage}
    stages = finished_stages()
    machines = [start(stages, tmp_path, f"out{n}", settings, f"work{n}") for n in range(3)]
    assert machines[2].stdout is not None
    machines[2].stdout.readline()
    machines[2].send_signal(signal.SIGKILL)  # one machine goes
    machines[2].communicate()
    lines = [machine.communicate()[0].split() for machine in machines[:2]]
    assert [machine.returncode for machine in machines[:2]] == [0, 0]
    assert all(each.count("tune.trial") for each in lines)
    for name in ("best.json", "trials.json", "search.json"):
        assert (tmp_path / "out0" / name).read_bytes() == (tmp_path / "out1" / name).read_bytes()
    assert [trial["number"] for trial in trials_of(tmp_path / "out0")] == list(range(12))


def test_workers_search_on_the_first_sample_too(finished_stages: Stages, tmp_path: Path) -> None:
    """Where samples are to grow, one process and several fit the same rows."""
    stages = finished_stages(rows=6000)
    settings = {"trials": 3, "space": SPACE, "sampler": "random", "pruner": "none"}
    sampling = build(DataConfig, {"source": "x.parquet", "target": "outcome", "sample": {"by": "progressive", "share": 0.2}}, path="data")
    one = search(stages, tmp_path / "one", replace(project(settings), data=sampling))
    two = search(stages, tmp_path / "two", replace(project({**settings, "workers": 2}), data=sampling))
    whole = search(stages, tmp_path / "whole", project(settings))
    assert [trial["params"] for trial in two] == [trial["params"] for trial in one]
    assert [trial["value"] for trial in two] == pytest.approx([trial["value"] for trial in one], abs=1e-3)
    assert [trial["value"] for trial in whole] != pytest.approx([trial["value"] for trial in one], abs=1e-3)
