"""Columns made of several: crosses and principal components."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from tidemill.core.errors import ConfigError, TidemillError
from tidemill.core.project import build, to_plain
from tidemill.core.schema import Schema
from tidemill.features.config import FeaturesConfig
from tidemill.features.cross import joined, parted
from tidemill.features.graph import build_graph, leave_out
from tidemill.features.reference import features as reference
from tidemill.features.stage import fit_table
from tidemill.testing.operator import routes

ROWS = 60
TABLE = pa.table(
    {
        "origin": pa.array(["EWR", "JFK", None] * (ROWS // 3)),
        "dest": pa.array(["IAH", "IAH × JFK", "LAX", None] * (ROWS // 4)),
        "hour": pa.array([i % 5 for i in range(ROWS)]),
        "a": pa.array([i / 7 for i in range(ROWS)]),
        "b": pa.array([None if i % 9 == 0 else float(i % 11) for i in range(ROWS)]),
    }
)
CROSS = {"of": ["origin", "dest"], "steps": ["cross", {"op": "vocabulary", "min_count": 1}]}


@given(st.lists(st.one_of(st.none(), st.text(alphabet=" ×\\Na", max_size=5), st.text(max_size=3)), min_size=2, max_size=4))
def test_a_combination_says_its_parts_and_no_other_ones(parts: list[str | None]) -> None:
    text = joined(parts)
    assert (text is None) == all(part is None for part in parts)
    if text is not None:
        assert parted(text) == parts


def test_a_cross_is_one_category_for_each_combination() -> None:
    description, _ = fit_table(TABLE, {"route": CROSS, "drop": ["a", "b", "hour"]}, batch_rows=7)
    steps = description["derived"]["route"]["steps"]
    pairs = list(zip(TABLE["origin"].to_pylist(), TABLE["dest"].to_pylist(), strict=True))
    categories = steps[1]["fitted"]["categories"]
    assert {tuple(parted(text)) for text in categories} == set(pairs) - {(None, None)}
    assert "JFK × IAH \\× JFK" in categories
    made = reference(description, TABLE)[:, description["names"].index("route")]
    codes = {tuple(parted(text)): i + 1 for i, text in enumerate(categories)} | {(None, None): len(categories) + 1}
    assert made.tolist() == [codes[pair] for pair in pairs]


def test_a_combination_that_was_not_seen_is_none_of_the_others() -> None:
    table = pa.table({"p": ["a", "b", "a"], "q": ["x", "y", "y"], "n": [1.0, 2.0, 3.0]})
    description, graph = fit_table(
        table, {"pq": {"of": ["p", "q"], "steps": ["cross", {"op": "vocabulary", "min_count": 1}]}, "drop": ["p", "q"]}
    )
    new = pa.table({"p": ["b", "zz", "a", None, None], "q": ["x", "x", None, None, "y"], "n": [1.0] * 5})
    expected = [0, 0, 0, 4, 0]
    place = description["names"].index("pq")
    for answer in routes(graph, Schema.from_json(description["inputs"]), new).values():
        assert answer[:, place].tolist() == expected


def test_no_text_is_joined_in_the_graph() -> None:
    features = {"route": CROSS, "other": {"of": ["dest", "hour"], "steps": ["cross", {"op": "vocabulary", "min_count": 1}]}}
    _, graph = fit_table(TABLE, {**features, "drop": ["origin", "dest", "hour", "a", "b"]})
    kinds = [node.op_type for node in onnx.load_from_string(graph).graph.node]
    assert kinds.count("LabelEncoder") == 6
    # A cross: two lookups, side by side, as whole numbers, combined, looked up; a null hour besides, and the features side by side.
    assert len(kinds) == 6 + 7 + 1


def test_raw_columns_of_a_derived_one_have_their_own_features_unless_they_are_dropped() -> None:
    kept, _ = fit_table(TABLE, {"route": CROSS})
    assert "origin=EWR" in kept["names"]
    less, _ = fit_table(TABLE, {"route": CROSS, "drop": ["origin", "dest"]})
    assert less["names"] == ["hour", "a", "b", "route"]
    assert [column["name"] for column in less["inputs"]] == TABLE.column_names
    assert less["dropped"] == {}
    assert list(less["columns"]) == ["hour", "a", "b"]
    assert leave_out(less, {"route": "weak"})["inputs"] == [column for column in less["inputs"] if column["name"] in ("hour", "a", "b")]


def test_steps_before_the_joining_one_go_over_each_column() -> None:
    features = {
        "wide": {"of": ["a", "b"], "steps": ["impute", "standardize", {"op": "pca", "components": 1}]},
        "mixed": {"of": {"origin": [], "a": [{"op": "bin", "bins": 3}]}, "steps": ["cross", "one_hot"]},
    }
    description, _ = fit_table(TABLE, features)
    of = description["derived"]["wide"]["of"]
    assert [step["op"] for step in of["b"]] == ["impute", "standardize"]
    assert of["b"][0]["fitted"]["indicator"]
    assert {"wide.1", "wide.b.missing", "mixed=EWR × 0", "mixed=\\N × 2"} <= set(description["names"])


def test_principal_components_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(8)
    x = random.normal(size=(500, 5)) @ random.normal(size=(5, 5)) + [1e6, 0, -3, 50, 1e3]
    null = random.random(x.shape) < 0.1
    names = [f"x{i}" for i in range(5)]
    table = pa.table({name: pa.array(x[:, i], mask=null[:, i]) for i, name in enumerate(names)})
    description, _ = fit_table(table, {"p": {"of": names, "steps": [{"op": "pca", "components": 3}]}, "drop": names}, batch_rows=90)
    filled = np.where(null, np.nanmean(np.where(null, np.nan, x), axis=0), x)
    theirs = PCA(3, svd_solver="full").fit(filled)
    fitted = description["derived"]["p"]["steps"][0]["fitted"]
    ours = np.array(fitted["components"])
    np.testing.assert_allclose(np.abs((ours * theirs.components_).sum(axis=1)), 1, atol=1e-9)
    assert all(row[np.abs(row).argmax()] > 0 for row in ours)
    np.testing.assert_allclose(fitted["explained"], theirs.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(np.abs(reference(description, table)), np.abs(theirs.transform(filled)), rtol=1e-5, atol=1e-5)


def test_the_config_reads_back_the_same() -> None:
    config: Any = build(FeaturesConfig, {"route": CROSS, "derived": {"drop": {"of": {"a": ["impute"]}, "steps": ["pca"]}}}, path="features")
    assert list(config.derived) == ["route", "drop"]
    assert build(FeaturesConfig, to_plain(config), path="features") == config


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"route": {"of": ["origin", "dst"], "steps": ["cross", "one_hot"]}}, "features.route.of: column 'dst' must be one"),
        (
            {"hour": {"of": ["origin", "dest"], "steps": ["cross", "one_hot"]}},
            "features.hour: a derived column must have a name of its own",
        ),
        ({"route": {"of": ["origin", "dest"], "steps": ["one_hot"]}}, "features.route.steps: exactly one step must join the columns"),
        (
            {"route": {"of": ["origin", "dest"], "steps": ["cross", "cross"]}},
            "exactly one step must join the columns, such as cross or pca, got 2",
        ),
        ({"route": {"of": ["origin"], "steps": ["cross", "one_hot"]}}, "features.route: cross must get at least 2 columns, gets 1"),
        (
            {"route": {"of": ["origin", "a"], "steps": ["cross", "one_hot"]}},
            "features.route.a: cross must get string or integer, gets number; bin",
        ),
        ({"route": {"of": ["origin", "dest"], "steps": ["cross"]}}, "features.route: must end in numbers, ends in string"),
        (
            {"route": {"of": ["origin", "dest"], "steps": ["cross", "impute", "one_hot"]}},
            "features.route: cross must be followed by an operator",
        ),
        (
            {"wide": {"of": ["a", "b"], "steps": [{"op": "pca", "components": 3}]}},
            "components must be at most the 2 columns that it gets, got 3",
        ),
        ({"wide": {"of": "a", "steps": ["pca"]}}, "features.wide.of: must be raw columns"),
        ({"wide": {"of": ["a", "a"], "steps": ["pca"]}}, "must name each column once"),
        ({"wide": {"of": ["a", "b"], "steps": ["pca"], "keep": True}}, "features.wide.keep: is not a known key of a derived column"),
        ({"a": ["pca"]}, "features.a: pca must get several columns, gets one"),
        ({"folds": 1}, "features.folds: must be a whole number in 2..100, got 1"),
    ],
)
def test_what_does_not_fit_is_named(features: dict[str, Any], message: str) -> None:
    with pytest.raises(TidemillError, match=re.escape(message)) as caught:
        fit_table(TABLE, features)
    assert isinstance(caught.value, ConfigError)


def test_the_same_description_gives_the_same_bytes() -> None:
    features = {"route": CROSS, "wide": {"of": ["a", "b"], "steps": ["pca"]}}
    first, second = (fit_table(TABLE, features, batch_rows=rows) for rows in (60, 60))
    assert first == second
    assert build_graph(first[0])[0] == first[1]
