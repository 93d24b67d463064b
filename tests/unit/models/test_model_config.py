from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidemill.core.errors import ConfigError, NotFound, TidemillError, Unsupported
from tidemill.core.project import build, to_plain
from tidemill.models.config import UNBUILT, ModelConfig
from tidemill.models.linear import LinearParams
from tidemill.models.xgboost import XGBoostParams


def read(**tree: Any) -> ModelConfig:
    made: ModelConfig = build(ModelConfig, tree, path="model")
    return made


def test_parameters_stand_beside_the_kind() -> None:
    assert read(kind="xgboost", max_depth=4, reg_lambda=2).parameters() == XGBoostParams(max_depth=4, reg_lambda=2.0)
    assert read(kind="linear").parameters() == LinearParams()
    assert read().parameters() == XGBoostParams()
    assert read(max_depth=4).parameters({"max_depth": 5}) == XGBoostParams(max_depth=5)


def test_the_section_survives_being_written_out() -> None:
    config = read(kind="xgboost", calibrate="platt", class_weight={"true": 2.0}, max_depth=4)
    assert read(**to_plain(config)) == config


@pytest.mark.parametrize(
    ("tree", "error", "said"),
    [
        ({"max_dept": 4}, ConfigError, "model.max_dept: is not a known key.*did you mean 'model.max_depth'"),
        ({"kind": "linear", "max_depth": 4}, ConfigError, "model.max_depth: is not a known key"),
        ({"calibrat": "platt"}, ConfigError, "did you mean 'model.calibrate'"),
        ({"max_depth": 0}, ConfigError, r"model.max_depth: must be in 1\.\.30, got 0"),
        ({"max_depth": "deep"}, ConfigError, "model.max_depth: must be a whole number"),
        ({"subsample": 1.5}, ConfigError, "model.subsample: must be in"),
        ({"watch": "f1"}, ConfigError, "model.watch: must be one of"),
        ({"calibrate": "plat"}, ConfigError, "model.calibrate: must be platt, isotonic or absent"),
        ({"kind": 3}, ConfigError, "model.kind: must be text"),
        ({"kind": "xgbost"}, NotFound, "did you mean 'xgboost'"),
        ({"params": 3}, ConfigError, "model.params: must be a table"),
        ({"class_weight": "even"}, ConfigError, "model.class_weight: must be balanced or a table"),
        ({"class_weight": {}}, ConfigError, "model.class_weight: must be balanced or a table"),
        ({"class_weight": {"true": -1}}, ConfigError, "model.class_weight.true: must be a number of at least 0"),
        ({"class_weight": {"true": float("inf")}}, ConfigError, "model.class_weight.true: must be a number"),
    ],
)
def test_a_wrong_section_is_named(tree: dict[str, Any], error: type[TidemillError], said: str) -> None:
    with pytest.raises(error, match=said):
        read(**tree)


@pytest.mark.parametrize("kind", UNBUILT)
def test_a_kind_that_is_not_built_names_those_that_are(kind: str) -> None:
    with pytest.raises(
        Unsupported, match=f"{kind}.*built: dcn, decoder, ensemble, image, linear, mlp, random_forest, sklearn, text, xgboost"
    ):
        read(kind=kind, hidden=[64])


def test_a_kind_of_ones_own_is_looked_up_only_when_it_is_used() -> None:
    config = read(kind="nowhere_to_be_found:build", depth=3)
    with pytest.raises(ConfigError, match="must be importable"):
        config.parameters()


def test_a_kind_may_be_a_function_that_gives_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kinds_of_mine.py").write_text("def build():\n    from tidemill.models.linear import Linear\n    return Linear()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert read(kind="kinds_of_mine:build", l2=2.0).parameters() == LinearParams(l2=2.0)


def test_a_kind_that_gives_no_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.kind.*must give a model"):
        read(kind="collections:OrderedDict").model()


def test_a_kind_that_cannot_be_called_is_refused() -> None:
    config = build(ModelConfig, {"kind": "json:dumps"}, path="model")
    with pytest.raises(ConfigError, match="'json:dumps' must give a model when called without arguments"):
        config.model()
