from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemill.core.artifact import Artifact
from tidemill.core.engine import EngineConfig
from tidemill.core.project import Project
from tidemill.models.config import ModelConfig
from tidemill.train.config import TrainConfig
from tidemill.train.workload import Workload
from tidemill.tune import history
from tidemill.tune.space import Space, space_of
from tidemill.tune.transfer import Prior, propose
from tidemill.tune.trial import Trial

Stages = Callable[..., tuple[Artifact, Artifact]]
SPACE = {"model.subsample": {"float": [0.1, 1.0]}, "model.colsample": {"float": [0.1, 1.0]}, "model.max_depth": {"int": [2, 12]}}


@pytest.fixture
def space() -> Space:
    return space_of(SPACE, ModelConfig())


def study(name: str, trials: list[tuple[dict[str, Any], float]], *, greater_is_better: bool = True, **meta: float) -> dict[str, Any]:
    found = [{"params": params, "value": value} for params, value in trials]
    return {"format": 1, "name": name, "data": name, "meta": meta, "greater_is_better": greater_is_better, "trials": found}


def settings(rng: np.random.Generator) -> dict[str, Any]:
    return {"model.subsample": rng.uniform(0.1, 1), "model.colsample": rng.uniform(0.1, 1), "model.max_depth": int(rng.integers(2, 13))}


def quality(params: dict[str, Any], centre: float = 0.7) -> float:
    return float(
        -((params["model.subsample"] - centre) ** 2) - (params["model.colsample"] - 0.3) ** 2 - 0.01 * (params["model.max_depth"] - 8) ** 2
    )


def searched(centre: float, *, sign: float = 1.0, seed: int = 0) -> list[tuple[dict[str, Any], float]]:
    rng = np.random.default_rng(seed)
    return [(params, sign * quality(params, centre)) for params in (settings(rng) for _ in range(40))]


def test_tables_are_described_alike_whatever_they_are(finished_stages: Stages) -> None:
    unread: dict[str, Any] = {section: {} for section in ("data", "features", "train", "contract", "serve", "monitor", "rollout")}
    described = {}
    for task in ("binary", "multiclass", "regression"):
        data, features = finished_stages(task)
        project = Project(name="x", model=ModelConfig(), engine=EngineConfig(threads=1), **{**unread, "train": TrainConfig()})
        described[task] = history.describe(Workload.of(project, data, features), data)
        assert history.describe(Workload.of(project, data, features), data) == described[task]
    assert described["binary"].keys() == described["multiclass"].keys() == described["regression"].keys()
    assert all(np.isfinite(list(meta.values())).all() for meta in described.values())
    assert described["regression"]["is_regression"] == 1.0
    assert described["binary"]["log_rows"] == pytest.approx(np.log10(2000))
    assert 0.3 < described["binary"]["linear"] < 1.0
    assert described["binary"]["trees"] > 0.5


def test_the_nearest_table_comes_first_in_standard_deviations() -> None:
    known = [study("far", [], rows=2.0, linear=0.1), study("near", [], rows=6.0, linear=0.5), study("middle", [], rows=2.5, linear=0.5)]
    found = history.nearest({"rows": 5.5, "linear": 0.5}, known)
    assert [each["name"] for _, each in found] == ["near", "middle", "far"]
    assert found[0][0] < found[1][0] < found[2][0]
    assert history.nearest({"rows": 1.0}, []) == []


def test_starts_are_the_winners_of_near_tables_then_the_portfolio(space: Space) -> None:
    first = {"model.subsample": 0.5, "model.colsample": 0.5, "model.max_depth": 3}
    second = {**first, "model.max_depth": 40, "model.gamma": 1.0}
    near = [(0.5, study("a", [(first, 0.9), (second, 0.8)])), (1.5, study("b", [(first, 0.7)]))]
    found = history.starts(near, space, portfolio=[{"model.subsample": 0.2}])
    assert [start["params"] for start in found] == [first, {**first, "model.max_depth": 12}, {"model.subsample": 0.2}]
    assert [start["from"] for start in found] == ["a, distance 0.50", "a, distance 0.50", "portfolio"]


def test_only_other_tables_are_read_and_what_is_no_search_is_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(study(name, [])))
    (tmp_path / "c.json").write_text("{")
    (tmp_path / "d.json").write_text("[]")
    assert [each["name"] for each in history.studies(tmp_path, without="a")] == ["b"]
    assert history.studies(tmp_path / "none") == []


def test_the_portfolio_lies_in_the_kinds_own_space() -> None:
    own = space_of({}, ModelConfig())
    for params in history.portfolio(["xgboost"]):
        assert own.within(params).keys() == {dimension.path for dimension in own.dimensions}
        ModelConfig().tuned(params).parameters()
    assert history.portfolio(["linear"]) == []


def run(space: Space, studies: list[dict[str, Any]], trials: int, *, centre: float = 0.7, sign: float = 1.0) -> list[Trial]:
    prior = Prior.of(space, studies)
    done: list[Trial] = []
    for number in range(trials):
        params = propose(prior, space, done, number=number, seed=3, greater_is_better=sign > 0)
        assert space.holds(params)
        done.append(Trial(number=number, params=params, state="complete", value=sign * quality(params, centre)))
    return done


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_held_on_other_tables_is_tried_first(space: Space, sign: float) -> None:
    """The first draws are better than most of an earlier search, whichever way the metric goes there and here."""
    there = study("a", searched(0.7, sign=-sign), greater_is_better=sign < 0)
    first = run(space, [there], 3, sign=sign)
    blind = sorted(value for _, value in searched(0.7, seed=5))
    assert quality(first[0].params) > blind[-8]
    assert len({str(trial.params) for trial in first}) == 3


def test_tables_that_mislead_are_seen_through(space: Space) -> None:
    """Most earlier tables say the opposite; the ranks of a few trials give the word to the one that is right."""
    wrong = [study(f"w{n}", [(params, -value) for params, value in searched(0.7, seed=n)]) for n in range(4)]
    right = study("r", searched(0.7, seed=9))
    best = max(quality(trial.params) for trial in run(space, [*wrong, right], 12)[4:])
    assert best > sorted(value for _, value in searched(0.7, seed=5))[-3]


def test_without_earlier_searches_it_learns_from_its_own(space: Space) -> None:
    done = [quality(trial.params) for trial in run(space, [], 20)]
    assert np.mean(done[14:]) > np.mean(done[:5])
    assert run(space, [], 6) == run(space, [], 6)


def test_running_and_stopped_trials_are_kept_away_from(space: Space) -> None:
    prior = Prior.of(space, [study("a", searched(0.7))])
    first = propose(prior, space, [], number=0, seed=1, greater_is_better=True)
    for state in ("running", "pruned"):
        assert propose(prior, space, [Trial(number=0, params=first, state=state)], number=1, seed=1, greater_is_better=True) != first
