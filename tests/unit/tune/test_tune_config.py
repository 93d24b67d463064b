from __future__ import annotations

from typing import Any

import pytest

from tidemill.core.errors import ConfigError, NotFound, TidemillError, Unsupported
from tidemill.core.project import build
from tidemill.models.config import ModelConfig
from tidemill.tune.config import TuneConfig
from tidemill.tune.space import Dimension, flat, space_of


def read(space: dict[str, Any], kind: str = "xgboost") -> list[Dimension]:
    config = build(TuneConfig, {"space": space}, path="tune")
    return list(space_of(config.space, build(ModelConfig, {"kind": kind}, path="model")).dimensions)


def test_every_kind_of_range_is_read() -> None:
    space = {
        "model.max_depth": {"int": [3, 9]},
        "model.subsample": {"float": [0.5, 1]},
        "model.reg_lambda": {"log_float": [0.1, 10]},
        "model.max_bin": {"choice": [64, 256]},
    }
    found = {dimension.path: dimension for dimension in read(space)}
    assert list(found) == sorted(space)
    assert found["model.max_depth"] == Dimension(path="model.max_depth", kind="int", low=3, high=9)
    assert found["model.max_bin"].choices == (64, 256)
    assert found["model.max_depth"].holds(9)
    assert not found["model.max_depth"].holds(10)
    assert not found["model.max_bin"].holds(128)


def test_nested_tables_are_the_same_as_dotted_names() -> None:
    assert flat({"model": {"max_depth": {"int": [3, 9]}}}) == {"model.max_depth": {"int": [3, 9]}}


def test_an_empty_space_is_the_kinds_own() -> None:
    assert {dimension.name for dimension in read({})} >= {"max_depth", "learning_rate"}


@pytest.mark.parametrize(
    ("space", "kind", "error", "said"),
    [
        ({"model.max_dept": {"int": [3, 9]}}, "xgboost", ConfigError, "tune.space.model.max_dept: is not a known key.*max_depth"),
        ({"max_depth": {"int": [3, 9]}}, "xgboost", ConfigError, 'must be "model.<name>"; did you mean "model.max_depth"'),
        ({"features.age": {"int": [3, 9]}}, "xgboost", Unsupported, r"only model parameters are searched, not \[features\]"),
        ({"model.interval": {"float": [0.5, 0.9]}}, "xgboost", Unsupported, "tune.space.model.interval: is not searched"),
        ({"model.kind": {"int": [1, 2]}}, "xgboost", ConfigError, "tune.space.model.kind: must be a choice of kinds"),
        ({"model.calibrate": {"choice": ["plat"]}}, "xgboost", ConfigError, "tune.space.model.calibrate: must be a choice of none, platt"),
        ({"model.max_depth": {"int": [3, 9], "points": 0}}, "xgboost", ConfigError, "points: must be in 1..1000, got 0"),
        ({"model.max_depth": {"int": [0, 9]}}, "xgboost", ConfigError, "tune.space.model.max_depth: must be in 1..30, got 0"),
        ({"model.max_depth": {"int": [9, 3]}}, "xgboost", ConfigError, "must be two whole numbers, the lower first"),
        ({"model.max_depth": {"int": [3]}}, "xgboost", ConfigError, "must be two whole numbers"),
        ({"model.max_depth": {"int": [3, 9.5]}}, "xgboost", ConfigError, "must be two whole numbers"),
        ({"model.max_depth": {"int": 3}}, "xgboost", ConfigError, "must be a list"),
        ({"model.max_depth": {"float": [3, 9]}}, "xgboost", ConfigError, "max_depth: must be a whole number or auto, got 3.0"),
        ({"model.max_depth": {"itn": [3, 9]}}, "xgboost", ConfigError, "did you mean 'int'"),
        ({"model.max_depth": {"int": [3, 9], "float": [3, 9]}}, "xgboost", ConfigError, "must be a table of one of"),
        ({"model.max_depth": [3, 9]}, "xgboost", ConfigError, "must be a table of one of"),
        ({"model.max_depth": {"choice": []}}, "xgboost", ConfigError, "must be a list"),
        ({"model.max_depth": {"choice": [3, "deep"]}}, "xgboost", ConfigError, "must be a whole number or auto, got 'deep'"),
        ({"model.reg_lambda": {"log_float": [0, 9]}}, "xgboost", ConfigError, "must be above 0"),
        ({"model.reg_lambda": {"float": [0, float("nan")]}}, "xgboost", ConfigError, "must be two numbers"),
        ({"model.max_depth": {"int": [3, 9]}}, "linear", ConfigError, "is not a known key"),
    ],
)
def test_a_wrong_space_is_named(space: dict[str, Any], kind: str, error: type[TidemillError], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        read(space, kind)
    assert "tune.space" in caught.value.message


@pytest.mark.parametrize(
    ("section", "error", "said"),
    [
        ({"trial": 3}, ConfigError, "tune.trial: is not a known key.*tune.trials"),
        ({"trials": 0}, ConfigError, r"tune.trials: must be in 1\.\."),
        ({"sampler": "cma"}, ConfigError, "tune.sampler: must be one of tpe, gp, transfer, random, grid"),
        ({"workers": 0}, ConfigError, r"tune.workers: must be in 1\.\."),
        ({"storage": "mysql://x/y"}, ConfigError, "tune.storage: must be postgresql://user@host/database, got 'mysql'"),
        ({"storage": "postgresql://ann:secret@db/x"}, ConfigError, "tune.storage: must not hold a password; put it into PGPASSWORD"),
        ({"storage": "postgresql://db/x?user=ann&password=secret"}, ConfigError, "must not hold a password"),
        ({"narrow_after": 10}, ConfigError, "tune.narrow_after: has no effect without narrow"),
        ({"sampler": "transfer"}, ConfigError, 'tune.sampler: transfer learns from earlier searches; add warm_start = "history"'),
        ({"narrow": True, "sampler": "grid"}, ConfigError, "tune.narrow: a grid is tried whole"),
        ({"metric": "roc_auk"}, NotFound, "did you mean 'roc_auc'"),
        ({"space": {"model.max_depth": {"int": []}}}, ConfigError, "must be a list"),
    ],
)
def test_a_wrong_section_is_named(section: dict[str, Any], error: type[TidemillError], said: str) -> None:
    with pytest.raises(error, match=said):
        build(TuneConfig, section, path="tune")
