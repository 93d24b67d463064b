from __future__ import annotations

from typing import Any

import pytest

from tidemill.core.errors import ConfigError, TidemillError
from tidemill.core.project import build
from tidemill.models.config import ModelConfig
from tidemill.tune.draw import draw, grid
from tidemill.tune.narrow import narrowed, with_narrowing
from tidemill.tune.space import Condition, Space, space_of
from tidemill.tune.trial import Trial

KINDS = {"model.kind": {"choice": ["xgboost", "linear"]}}


def space(given: dict[str, Any], **model: Any) -> Space:
    return space_of(given, build(ModelConfig, model, path="model"))


def drawn(found: Space, number: int, trials: list[Trial] | None = None, **options: Any) -> dict[str, Any]:
    settings = {"sampler": "tpe", "seed": 3, "start": {}, "greater_is_better": True, **options}
    return draw(found, trials or [], number=number, **settings)


def test_a_parameter_of_some_kinds_is_searched_for_those() -> None:
    found = space({**KINDS, "model.max_depth": {"int": [2, 5]}, "model.l2": {"log_float": [0.1, 10]}})
    kinds = set()
    for number in range(30):
        params = drawn(found, number)
        kinds.add(params["model.kind"])
        assert set(params) == {"model.kind", "model.max_depth" if params["model.kind"] == "xgboost" else "model.l2"}
    assert kinds == {"xgboost", "linear"}


def test_kinds_alone_bring_their_own_spaces() -> None:
    found = space(KINDS)
    assert {d.path for d in found.dimensions if d.applies({"model.kind": "linear"})} == {"model.l2"}
    assert {"model.max_depth", "model.learning_rate"} <= {d.path for d in found.dimensions if d.applies({"model.kind": "xgboost"})}


def test_conditions_on_choices_and_ranges() -> None:
    found = space(
        {
            "model.max_bin": {"choice": [64, 256]},
            "model.max_depth": [{"int": [2, 3], "when": {"model.max_bin": 64}}, {"int": [8, 9], "when": {"model.max_bin": [256]}}],
            "model.gamma": {"float": [0, 1], "when": {"model": {"max_depth": {"min": 8}}}},
        }
    )
    for number in range(20):
        params = drawn(found, number)
        assert params["model.max_depth"] in ((2, 3) if params["model.max_bin"] == 64 else (8, 9))
        assert ("model.gamma" in params) == (params["model.max_depth"] >= 8)
        assert found.holds(params)
    assert [d.path for d in found.dimensions] == ["model.max_bin", "model.max_depth", "model.max_depth", "model.gamma"]
    assert not found.holds({"model.max_bin": 64, "model.max_depth": 8})


def test_kinds_may_have_ranges_of_their_own() -> None:
    found = space({**KINDS, "model.max_depth": {"int": [2, 5], "when": {"model.kind": "xgboost"}}})
    assert found.dimensions[-1].when == (Condition(path="model.kind", values=("xgboost",)),)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"model.max_depth": {"int": [2, 5], "when": {"model.max_bin": 64}}},
            "tune.space.model.max_depth.when.model.max_bin: must be a parameter of the space",
        ),
        (
            {**KINDS, "model.l2": {"float": [1, 2], "when": {"model.knd": "linear"}}},
            "when.model.knd: must be a parameter of the space; did you mean 'model.kind'",
        ),
        (
            {**KINDS, "model.l2": {"float": [1, 2], "when": {"model.kind": "lienar"}}},
            "must be a value that the space holds, one of xgboost, linear, got 'lienar'",
        ),
        (
            {**KINDS, "model.l2": {"float": [1, 2], "when": {"model.kind": "xgboost"}}},
            "tune.space.model.l2: is not a known key",
        ),
        (
            {
                "model.max_depth": {"int": [2, 5], "when": {"model.max_bin": {"max": 64}}},
                "model.max_bin": {"int": [16, 64], "when": {"model.max_depth": 3}},
            },
            "conditions must not go round: model.max_bin needs model.max_depth needs model.max_bin",
        ),
        ({"model.max_depth": {"int": [2, 5], "when": "linear"}}, "when: must be a table such as"),
        ({**KINDS, "model.max_depth": {"int": [2, 5], "when": {"model.kind": {"min": 1}}}}, "min and max need a range"),
        ({"model.max_depth": {"int": [2, 5], "when": {"model.gamma": {"min": 2, "max": 1}}}}, "must be numbers min <= max"),
        ({"model.kind": {"choice": ["xgboost", "liner"]}}, "model 'liner' is not known"),
    ],
)
def test_a_wrong_condition_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(TidemillError, match=said):
        space(given)


def test_the_grid_is_every_combination_once() -> None:
    found = space(
        {
            **KINDS,
            "model.max_depth": {"int": [2, 4]},
            "model.l2": {"log_float": [1, 100], "points": 3},
            "model.gamma": {"choice": [0.0, 1.0]},
        }
    )
    combinations = grid(found, 0)
    assert len(combinations) == 3 * 2 + 3
    assert len({str(sorted(params.items())) for params in combinations}) == 9
    assert sorted(params["model.l2"] for params in combinations if "model.l2" in params) == pytest.approx([1, 10, 100])
    assert grid(found, 0) == combinations
    assert grid(found, 1) != combinations
    with pytest.raises(ConfigError, match="a grid must have at most 100,000 combinations"):
        grid(space({f"model.{name}": {"float": [0.5, 1], "points": 400} for name in ("subsample", "colsample")}), 0)


def test_random_trials_depend_on_their_number_alone() -> None:
    found = space({"model.max_depth": {"int": [2, 30]}, "model.subsample": {"float": [0.1, 1.0]}})
    seen = [Trial(number=0, params=drawn(found, 0, sampler="random"), state="complete", value=1.0)]
    assert drawn(found, 7, seen, sampler="random") == drawn(found, 7, sampler="random")
    assert drawn(found, 7, sampler="random") != drawn(found, 8, sampler="random")
    assert drawn(found, 7, sampler="random") != drawn(found, 7, sampler="random", seed=4)


def test_what_is_running_is_kept_away_from() -> None:
    found = space({"model.subsample": {"float": [0.1, 1.0]}})
    done = [Trial(number=n, params={"model.subsample": 0.1 + 0.09 * n}, state="complete", value=-abs(n - 5.0)) for n in range(10)]
    alone = drawn(found, 10, done)
    beside = drawn(found, 10, [*done, Trial(number=10, params=alone)])
    assert beside != alone


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_learns(sampler: str) -> None:
    if sampler == "gp":
        pytest.importorskip("torch")
    found = space({"model.subsample": {"float": [0.1, 1.0]}, "model.colsample": {"float": [0.1, 1.0]}})
    done: list[Trial] = []
    for number in range(24):
        params = drawn(found, number, done, sampler=sampler)
        value = -((params["model.subsample"] - 0.8) ** 2) - (params["model.colsample"] - 0.3) ** 2
        done.append(Trial(number=number, params=params, state="complete", value=value))
    assert sorted(trial.value or 0.0 for trial in done[12:])[6] > sorted(trial.value or 0.0 for trial in done[:8])[4]
    assert drawn(found, 24, done, sampler=sampler) == drawn(found, 24, done, sampler=sampler)


def test_starts_are_brought_into_the_space() -> None:
    found = space({**KINDS, "model.max_depth": {"int": [2, 5]}, "model.l2": {"log_float": [0.1, 10]}})
    assert found.within({"model.kind": "xgboost", "model.max_depth": 9, "model.gamma": 3.0}) == {
        "model.kind": "xgboost",
        "model.max_depth": 5,
    }
    assert found.within({"model.kind": "forest", "model.l2": 1.0}) == {}
    assert drawn(found, 1, start={"model.kind": "linear", "model.l2": 2.0}) == {"model.kind": "linear", "model.l2": 2.0}


def test_narrowing_fixes_what_does_not_matter_and_shrinks_what_does() -> None:
    found = space(
        {
            "model.subsample": {"float": [0.1, 1.0]},
            "model.colsample": {"float": [0.1, 1.0]},
            "model.max_depth": {"int": [2, 20]},
            "model.max_bin": {"choice": [64, 256]},
        }
    )
    done = []
    for number in range(24):
        params = drawn(found, number, sampler="random")
        value = -abs(params["model.subsample"] - 0.7) - 0.04 * abs(params["model.max_depth"] - 6)
        done.append(Trial(number=number, params=params, state="complete", value=value))
    note = narrowed(found, done, seed=1, greater_is_better=True)
    assert note is not None
    assert note == narrowed(found, done, seed=1, greater_is_better=True)
    best = max(done, key=lambda trial: trial.value or 0.0)
    assert note["fixed"].items() <= best.params.items()
    assert {"model.colsample", "model.max_bin"} <= set(note["fixed"])
    low, high = note["ranges"]["model.subsample"]
    assert 0.1 < low < 0.7 < high <= 1.0
    assert sum(note["importance"].values()) == pytest.approx(1.0)
    smaller = with_narrowing(found, note)
    for number in range(24, 40):
        params = drawn(smaller, number, done)
        assert params["model.max_bin"] == best.params["model.max_bin"]
        assert low <= params["model.subsample"] <= high
        assert found.holds(params)


def test_nothing_is_narrowed_on_a_few_trials() -> None:
    found = space({"model.subsample": {"float": [0.1, 1.0]}})
    done = [Trial(number=n, params={"model.subsample": 0.1 * n + 0.1}, state="complete", value=float(n)) for n in range(4)]
    assert narrowed(found, done, seed=0, greater_is_better=True) is None
