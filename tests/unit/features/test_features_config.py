"""The section [features]: what is taken, and what is refused with which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.errors import ConfigError, NotFound, TidemillError
from tidemill.core.project import build, from_tree, to_plain
from tidemill.features.clip import Clip
from tidemill.features.config import FeaturesConfig
from tidemill.features.impute import Impute


def parsed(tree: dict[str, Any]) -> FeaturesConfig:
    made: FeaturesConfig = build(FeaturesConfig, tree, path="features", where="tidemill.toml")
    return made


def test_steps_are_names_and_tables() -> None:
    config = parsed({"drop": ["a"], "distance": ["impute", {"op": "clip", "min": 0, "max": 10}]})
    assert config.drop == ("a",)
    assert [step.op for step in config.steps("distance")] == ["impute", "clip"]
    assert [step.operator for step in config.steps("distance")] == [Impute(), Clip(min=0.0, max=10.0)]


def test_plain_values_say_only_what_was_given_and_read_back_the_same() -> None:
    config = parsed({"distance": ["impute", {"op": "clip", "min": 0}], "when": [{"op": "date_parts", "parts": ["hour"]}]})
    plain = to_plain(config)
    assert plain == {
        "drop": [],
        "select": [],
        "folds": 5,
        "derived": {},
        "columns": {"distance": [{"op": "impute"}, {"op": "clip", "min": 0.0}], "when": [{"op": "date_parts", "parts": ["hour"]}]},
    }
    assert parsed(plain) == config


def test_selection_is_names_and_tables() -> None:
    config = parsed({"select": ["variance", {"op": "correlation", "max": 0.9}]})
    assert config.select == ({"op": "variance"}, {"op": "correlation", "max": 0.9})
    assert config.columns == {}
    assert parsed(to_plain(config)) == config


def test_a_column_called_columns_or_drop_has_its_place() -> None:
    assert parsed({"columns": ["impute"]}).steps("columns")[0].op == "impute"
    assert parsed({"columns": {"drop": ["impute"]}}).steps("drop")[0].op == "impute"


@pytest.mark.parametrize(
    ("tree", "kind", "message"),
    [
        ({"a": ["imput"]}, NotFound, "operator 'imput' is not known (did you mean 'impute'?"),
        ({"a": ["imput"]}, NotFound, "features.a[0] (tidemill.toml)"),
        (
            {"a": [{"op": "clip", "mn": 0}]},
            ConfigError,
            "features.a[0].mn: is not a known key (tidemill.toml); did you mean 'features.a[0].min'?",
        ),
        ({"a": ["impute", {"op": "clip", "min": "x"}]}, ConfigError, "features.a[1].min: must be a number, got 'x' (tidemill.toml)"),
        (
            {"a": [{"op": "clip"}]},
            ConfigError,
            "features.a[0]: clip: min, max, low_quantile or high_quantile must be given (tidemill.toml)",
        ),
        ({"a": [{"op": "clip", "min": 2, "max": 1}]}, ConfigError, "lower bound must not be above the upper, got 2.0 and 1.0"),
        ({"a": [{"op": "clip", "min": 2, "low_quantile": 0.1}]}, ConfigError, "a bound or a quantile, not both"),
        ({"a": [{"op": "clip", "low_quantile": 2}]}, ConfigError, "features.a[0].low_quantile: must be in 0.0..1.0, got 2"),
        ({"a": [{"op": "bin", "edges": [1, 1]}]}, ConfigError, "edges must be finite and rising, got [1.0, 1.0]"),
        ({"a": [{"op": "bin", "bins": 1}]}, ConfigError, "features.a[0].bins: must be in 2..256, got 1"),
        ({"a": [{"op": "impute", "value": 3}]}, ConfigError, "strategy constant and a value must be given together"),
        ({"a": [{"op": "impute", "strategy": "maen"}]}, ConfigError, "features.a[0].strategy"),
        (
            {"a": [{"op": "date_parts", "timezone": "Mars/Olympus"}]},
            ConfigError,
            "timezone must be one of the IANA database, got 'Mars/Olympus'",
        ),
        ({"a": [{"op": "date_parts", "parts": ["hours"]}]}, ConfigError, "features.a[0].parts[0]: must be one of year, quarter"),
        ({"a": [{"op": "date_parts", "parts": []}]}, ConfigError, "parts must be given, each once"),
        ({"a": "impute"}, ConfigError, "features.a: must be a list of steps"),
        ({"a": [3]}, ConfigError, "features.a[0]: must be an operator's name or a table with op, got 3"),
        ({"a": [{"min": 3}]}, ConfigError, "features.a[0]: must name its operator as op"),
        ({"a": ["pathlib:Path"]}, ConfigError, "features.a[0]: must be an operator, a frozen dataclass"),
        ({"a": ["no.such.module:Thing"]}, ConfigError, "must be importable"),
        ({"select": "variance"}, ConfigError, "features.select: must be a list of steps"),
        ({"select": [{"max": 1}]}, ConfigError, "features.select[0]: must be a name or a table with op, got {'max': 1}"),
        ({"drop": "a"}, ConfigError, "features.drop: must be a list of columns, got 'a'"),
        ({"drop": ["a"], "a": ["impute"]}, ConfigError, "features.a: must be dropped or have steps, not both"),
    ],
)
def test_what_is_wrong_is_named(tree: dict[str, Any], kind: type[TidemillError], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        parsed(tree)


def test_a_project_brings_its_own_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    import numpy as np
    import pyarrow as pa

    from tidemill.core.schema import Schema
    from tidemill.features.reference import features as reference
    from tidemill.features.stage import fit_table
    from tidemill.testing.operator import routes

    (tmp_path / "shop_operators.py").write_text(
        """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tidemill.features.builder import DOUBLE
from tidemill.features.operator import Made, numbers


@dataclass(frozen=True, kw_only=True)
class Scale:
    \"\"\"A number times a factor.\"\"\"

    factor: float = 2.0
    \"\"\"The factor.\"\"\"

    accepts: ClassVar = ("number",)

    def fit(self, kind):
        return {}

    def reference(self, name, values, fitted):
        return Made({name: numbers(values.data * self.factor)})

    def nodes(self, graph, block, fitted):
        made = graph.node("Mul", graph.numbers(block), graph.constant([[self.factor]], np.float64))
        return block.take(block.names, made, DOUBLE)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    tree = {"price": ["impute", {"op": "shop_operators:Scale", "factor": 10}]}
    project = from_tree({"name": "shop", "data": {"source": "x.parquet", "target": "y"}, "features": tree})
    table = pa.table({"price": [1.0, None, 3.0]})
    description, graph = fit_table(table, project.features)
    assert description["columns"]["price"][1] == {"op": "shop_operators:Scale", "params": {"factor": 10.0}, "fitted": {}}
    expected = np.array([[10, 0], [20, 1], [30, 0]], np.float32)[:, [1, 0]]
    assert description["names"] == ["price.missing", "price"]
    assert np.array_equal(reference(json.loads(json.dumps(description)), table), expected)
    for answer in routes(graph, Schema.from_json(description["inputs"]), table).values():
        assert np.array_equal(answer, expected)
