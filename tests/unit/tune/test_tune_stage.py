from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.artifact import Artifact
from tidemill.core.contract import ContractConfig, Quality
from tidemill.core.engine import EngineConfig
from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.events import Event, Events
from tidemill.core.project import Project, build
from tidemill.models.config import ModelConfig
from tidemill.train.config import TrainConfig
from tidemill.tune.config import TuneConfig
from tidemill.tune.stage import metric_name, run

Stages = Callable[..., tuple[Artifact, Artifact]]

SPACE = {"model.max_depth": {"int": [2, 6]}, "model.learning_rate": {"log_float": [0.05, 0.5]}, "model.subsample": {"float": [0.5, 1.0]}}
MODEL = {"num_rounds": 15, "early_stopping": 5}
UNREAD: dict[str, Any] = {section: {} for section in ("data", "features", "serve", "monitor", "rollout")}

# Runs a study in a process of its own, so that it can be killed at any moment.
SCRIPT = """
import json, sys
from pathlib import Path
from tidemill.core.artifact import Artifact
from tidemill.core.contract import ContractConfig
from tidemill.core.engine import EngineConfig
from tidemill.core.events import Events
from tidemill.core.project import Project, build
from tidemill.models.config import ModelConfig
from tidemill.train.config import TrainConfig
from tidemill.tune.config import TuneConfig
from tidemill.tune.stage import run

data, features, out, work, tune, model = sys.argv[1:]
project = Project(
    name="flights", seed=5, model=build(ModelConfig, json.loads(model), path="model"), tune=build(TuneConfig, json.loads(tune), path="tune"),
    contract=ContractConfig(), engine=EngineConfig(threads=1), train=TrainConfig(),
    **dict.fromkeys(("data", "features", "serve", "monitor", "rollout"), {}),
)
Path(out).mkdir(exist_ok=True)
stages = Artifact.open(Path(data)), Artifact.open(Path(features))
run(project, *stages, Path(out), work=Path(work), events=Events(lambda event: print(event.kind, flush=True)))
"""


def project(tune: dict[str, Any], model: dict[str, Any] | None = None, **sections: Any) -> Project:
    return Project(
        name="flights",
        seed=5,
        model=build(ModelConfig, MODEL if model is None else model, path="model"),
        tune=build(TuneConfig, tune, path="tune"),
        **{**UNREAD, "contract": ContractConfig(), "engine": EngineConfig(threads=1), "train": TrainConfig(), **sections},
    )


def tune(stages: tuple[Artifact, Artifact], folder: Path, made: Project, work: Path | None = None, events: Events | None = None) -> Any:
    out, work = folder / "out", work or folder / "work"
    out.mkdir(parents=True)
    work.mkdir(parents=True, exist_ok=True)
    facts = run(made, *stages, out, work=work, events=events or Events())
    return facts, json.loads((out / "best.json").read_text()), trials_of(out)


def trials_of(out: Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((out / "trials.json").read_text())
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_best_trial_wins(finished_stages: Stages, tmp_path: Path, task: str) -> None:
    facts, best, trials = tune(finished_stages(task), tmp_path, project({"trials": 6, "space": SPACE, "pruner": "none"}))
    assert [trial["number"] for trial in trials] == list(range(6))
    assert {trial["state"] for trial in trials} == {"complete"}
    pick = max if task == "binary" else min
    assert facts["best"] == pick(trial["value"] for trial in trials)
    assert best == trials[facts["best_trial"]]["params"]
    assert set(best) == set(SPACE)
    for trial in trials:
        assert 2 <= trial["params"]["model.max_depth"] <= 6
        assert len(trial["curve"]) <= 15


def test_the_first_trial_is_the_project_as_it_stands(finished_stages: Stages, tmp_path: Path) -> None:
    made = project({"trials": 1, "space": SPACE}, {**MODEL, "max_depth": 5, "learning_rate": 0.9})
    _, _, (trial,) = tune(finished_stages(), tmp_path, made)
    assert trial["params"]["model.max_depth"] == 5
    assert trial["params"]["model.subsample"] == made.model.parameters().subsample
    assert 0.05 <= trial["params"]["model.learning_rate"] <= 0.5  # 0.9 is outside the space, so it is drawn


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_search_gives_the_same_trials(finished_stages: Stages, tmp_path: Path, sampler: str) -> None:
    stages = finished_stages()
    found = [tune(stages, tmp_path / name, project({"trials": 11, "space": SPACE, "sampler": sampler}))[1:] for name in ("a", "b")]
    assert found[0] == found[1]
    other = tune(stages, tmp_path / "c", project({"trials": 11, "space": SPACE, "sampler": sampler, "seed": 6}))[2]
    assert [trial["params"] for trial in other[1:]] != [trial["params"] for trial in found[0][1][1:]]


def test_more_trials_go_on_where_fewer_ended(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    told: list[Event] = []
    tune(stages, tmp_path / "few", project({"trials": 3, "space": SPACE}), tmp_path / "work")
    _, _, on = tune(stages, tmp_path / "on", project({"trials": 10, "space": SPACE}), tmp_path / "work", Events(told.append))
    _, _, whole = tune(stages, tmp_path / "whole", project({"trials": 10, "space": SPACE}))
    assert on == whole
    assert [event.kind for event in told].count("tune.trial") == 7


def test_another_question_starts_anew(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    tune(stages, tmp_path / "a", project({"trials": 2, "space": SPACE}), tmp_path / "work")
    told: list[Event] = []
    wider = {**SPACE, "model.max_depth": {"int": [2, 7]}}
    tune(stages, tmp_path / "b", project({"trials": 2, "space": wider}), tmp_path / "work", Events(told.append))
    assert [event.kind for event in told].count("tune.trial") == 2


@pytest.mark.parametrize("after", [1, pytest.param(4, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)])
def test_killed_and_resumed_is_as_uninterrupted(finished_stages: Stages, tmp_path: Path, after: int) -> None:
    stages = finished_stages()
    settings = {"trials": 12, "space": SPACE}
    slow = {"num_rounds": 150, "early_stopping": 0, "max_bin": 64}

    def start(out: str, work: str) -> subprocess.Popen[str]:
        (tmp_path / work).mkdir(exist_ok=True)
        paths = [str(path) for path in (stages[0].path, stages[1].path, tmp_path / out, tmp_path / work)]
        command = [sys.executable, "-c", SCRIPT, *paths, json.dumps(settings), json.dumps(slow)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start("killed", "work") as killed:
        assert killed.stdout is not None
        done = 0
        while done < after:
            done += killed.stdout.readline().strip() == "tune.trial"
        time.sleep(0.02)  # into the next trial
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        done += killed.stdout.read().split().count("tune.trial")  # that ended before the signal came
    assert not (tmp_path / "killed" / "best.json").exists()
    with start("resumed", "work") as resumed, start("whole", "other") as whole:
        lines = resumed.communicate()[0].split()
        whole.communicate()
    assert resumed.returncode == whole.returncode == 0
    assert lines.count("tune.resumed") == 1
    assert lines.count("tune.trial") in (12 - done, 11 - done)  # one may have been entered and not told
    assert trials_of(tmp_path / "resumed") == trials_of(tmp_path / "whole")
    assert (tmp_path / "resumed" / "best.json").read_bytes() == (tmp_path / "whole" / "best.json").read_bytes()


def test_trials_that_lag_are_pruned(finished_stages: Stages, tmp_path: Path) -> None:
    space = {"model.max_depth": {"int": [1, 8]}, "model.min_child_weight": {"log_float": [1, 1000]}}
    model = {"num_rounds": 60, "learning_rate": 0.2, "early_stopping": 0, "watch": "roc_auc"}
    made = project({"trials": 16, "space": space, "sampler": "random"}, model)
    facts, _, trials = tune(finished_stages(), tmp_path, made)
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert facts["pruned"] == len(pruned) > 0
    whole = [trial["curve"] for trial in trials if trial["state"] == "complete"]
    for trial in pruned:
        assert trial["value"] is None
        assert trial["number"] >= 5
        rounds = len(trial["curve"])
        assert 15 <= rounds < 60  # progress 3 at 0.2 a round
        assert max(trial["curve"][4::5]) < max(curve[rounds - 1] for curve in whole)


def test_slow_learners_are_compared_at_the_same_progress(finished_stages: Stages, tmp_path: Path) -> None:
    """A rate ten times lower is behind at any round and as good at the tenfold round."""
    space = {"model.learning_rate": {"choice": [0.5, 0.05]}}
    model = {
        "num_rounds": 120,
        "learning_rate": 0.5,
        "early_stopping": 0,
        "max_depth": 2,
        "watch": "roc_auc",
        "subsample": 1.0,
        "colsample": 1.0,
    }
    _, _, trials = tune(finished_stages(), tmp_path, project({"trials": 10, "space": space, "sampler": "random"}, model))
    slow = [trial for trial in trials if trial["params"]["model.learning_rate"] == 0.05]
    fast = [trial for trial in trials if trial["params"]["model.learning_rate"] == 0.5]
    assert slow[0]["curve"][9] < fast[0]["curve"][9]
    assert {trial["state"] for trial in slow if trial["number"] >= 5} == {"complete"}


def test_the_kind_offers_a_space_of_its_own(finished_stages: Stages, tmp_path: Path) -> None:
    _, best, _ = tune(finished_stages(), tmp_path / "trees", project({"trials": 2}))
    assert {"model.max_depth", "model.learning_rate"} < set(best)
    _, best, _ = tune(finished_stages(), tmp_path / "linear", project({"trials": 2}, {"kind": "linear"}))
    assert set(best) == {"model.l2"}


def test_time_ends_a_search(finished_stages: Stages, tmp_path: Path) -> None:
    facts, _, trials = tune(finished_stages(), tmp_path, project({"trials": 50, "space": SPACE, "timeout_s": 0.0}))
    assert facts["trials"] == len(trials) == 1


def test_the_time_that_is_left_stops_a_long_trial(finished_stages: Stages, tmp_path: Path) -> None:
    """The first trial may take what it takes; a later one ends when the time is up, and counts as stopped."""
    model = {"num_rounds": 20_000, "early_stopping": 0, "max_bin": 16}
    space = {"model.num_rounds": {"choice": [5, 20_000]}}
    made = project({"trials": 50, "space": space, "timeout_s": 0.3, "pruner": "none", "warm_start": "none"}, {**model, "num_rounds": 5})
    facts, best, trials = tune(finished_stages(), tmp_path, made)
    assert best == {"model.num_rounds": 5}
    assert [trial["state"] for trial in trials[:-1]] == ["complete"] * (len(trials) - 1)
    assert len(trials) < 50
    assert trials[-1].get("why") in ("timeout", None)
    stopped = [trial for trial in trials if trial["state"] != "complete"]
    assert all(trial in stopped for trial in trials if trial["params"]["model.num_rounds"] == 20_000)
    assert all(trial["why"] == "timeout" and trial["value"] is None and len(trial["curve"]) < 20_000 for trial in stopped)
    assert facts["pruned"] == len(stopped)


def test_the_time_of_earlier_runs_counts(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    tune(stages, tmp_path / "first", project({"trials": 3, "space": SPACE}), tmp_path / "work")
    facts, _, _ = tune(stages, tmp_path / "second", project({"trials": 9, "space": SPACE, "timeout_s": 0.001}), tmp_path / "work")
    assert facts["trials"] == 3


@pytest.mark.parametrize("pruner", ["successive_halving", "hyperband"])
def test_rungs_stop_most_trials_and_not_the_best(finished_stages: Stages, tmp_path: Path, pruner: str) -> None:
    space = {"model.max_depth": {"int": [1, 8]}, "model.min_child_weight": {"log_float": [1, 1000]}}
    model = {"num_rounds": 60, "learning_rate": 0.2, "early_stopping": 0, "watch": "roc_auc"}
    stages = finished_stages()
    made = project({"trials": 18, "space": space, "sampler": "random", "pruner": pruner}, model)
    facts, _, trials = tune(stages, tmp_path / "a", made)
    whole, _, _ = tune(stages, tmp_path / "b", project({"trials": 18, "space": space, "sampler": "random", "pruner": "none"}, model))
    stopped = [trial for trial in trials if trial["state"] == "pruned"]
    assert facts["pruned"] == len(stopped) >= 3
    assert {trial["why"] for trial in stopped} == {pruner}
    assert {len(trial["curve"]) for trial in stopped} <= {15, 45}  # progress 3 and 9 at 0.2 a round
    assert facts["best"] >= whole["best"] - 0.01


def test_a_grid_is_tried_once_and_whole(finished_stages: Stages, tmp_path: Path) -> None:
    space = {"model.max_depth": {"int": [2, 4]}, "model.max_bin": {"choice": [16, 64]}}
    facts, _, trials = tune(finished_stages(), tmp_path, project({"trials": 50, "space": space, "sampler": "grid"}))
    assert facts["trials"] == 6
    assert len({str(trial["params"]) for trial in trials}) == 6


def test_kinds_calibration_and_weights_are_searched(finished_stages: Stages, tmp_path: Path) -> None:
    space = {
        "model.kind": {"choice": ["xgboost", "linear"]},
        "model.max_depth": {"int": [2, 5]},
        "model.l2": {"log_float": [0.1, 10]},
        "model.class_weight": {"choice": ["none", "balanced"]},
        "model.calibrate": {"choice": ["none", "platt"]},
    }
    made = project({"trials": 12, "space": space, "metric": "log_loss", "sampler": "random"})
    _, best, trials = tune(finished_stages(), tmp_path, made)
    assert {trial["params"]["model.kind"] for trial in trials} == {"xgboost", "linear"}
    own = {"model.kind": "xgboost", "model.class_weight": "none", "model.calibrate": "none"}
    assert own.items() <= trials[0]["params"].items()
    assert all(("model.l2" in trial["params"]) == (trial["params"]["model.kind"] == "linear") for trial in trials)
    values = {str(sorted(trial["params"].items())): trial["value"] for trial in trials if trial["value"] is not None}
    assert len(set(values.values())) == len(values)
    chosen = made.model.tuned(best)
    assert chosen.kind == best["model.kind"]
    assert (chosen.calibrate is None) == (best["model.calibrate"] == "none")
    chosen.check()


def test_narrowing_is_told_and_kept(finished_stages: Stages, tmp_path: Path) -> None:
    told: list[Event] = []
    made = project(
        {"trials": 24, "space": {**SPACE, "model.gamma": {"float": [0, 1e-6]}}, "narrow": True, "narrow_after": 12, "pruner": "none"}
    )
    stages = finished_stages()
    facts, _, trials = tune(stages, tmp_path / "a", made, events=Events(told.append))
    note = json.loads((tmp_path / "a" / "out" / "search.json").read_text())["narrowed"]
    assert note["after"] == 12
    assert facts["narrowed"] == note["said"]
    assert facts["narrowed"].startswith("space was narrowed after 12 trials: ")
    assert [event.kind for event in told].count("tune.narrowed") == 1
    for path, value in note["fixed"].items():
        assert {trial["params"][path] for trial in trials[12:]} == {value}
    for path, (low, high) in note["ranges"].items():
        assert all(low <= trial["params"][path] <= high for trial in trials[12:])
    assert note["fixed"] or note["ranges"]
    assert tune(stages, tmp_path / "b", made)[2] == trials


def test_each_trial_is_told(finished_stages: Stages, tmp_path: Path) -> None:
    told: list[Event] = []
    tune(finished_stages(), tmp_path, project({"trials": 2, "space": SPACE}), events=Events(told.append))
    trials = [event for event in told if event.kind == "tune.trial"]
    assert trials[-1].message.startswith("trial 2 of 2: roc_auc 0.")
    assert trials[-1].fields["best"] >= trials[-1].fields["value"]


def test_tuning_needs_validation_rows(finished_stages: Stages, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="needs validation rows"):
        tune(finished_stages(valid=0), tmp_path, project({"trials": 2}))


def test_the_metric_is_the_sections_then_the_contracts_then_the_tasks() -> None:
    promised = ContractConfig(quality=Quality(metric="log_loss", max=1.0))
    assert metric_name(project({"metric": "brier"}, contract=promised), "binary") == "brier"
    assert metric_name(project({}, contract=promised), "binary") == "log_loss"
    assert metric_name(project({}), "binary") == "roc_auc"
    assert metric_name(project({}), "regression") == "rmse"
    with pytest.raises(ConfigError, match="must judge a regression task"):
        metric_name(project({"metric": "roc_auc"}), "regression")
