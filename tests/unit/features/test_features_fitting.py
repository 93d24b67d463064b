"""Fitting: defaults by type, what is kept out, how often the rows are read, and who may not take what."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tidemill.core.errors import ConfigError, DataError
from tidemill.core.project import build
from tidemill.core.schema import Schema
from tidemill.features.config import FeaturesConfig
from tidemill.features.fitting import Level, fit
from tidemill.features.reference import features as reference
from tidemill.features.stage import fit_table

ROWS = 40
TABLE = pa.table(
    {
        "f": pa.array([i / 3 for i in range(ROWS)], pa.float32()),
        "i": pa.array([None, *range(1, ROWS)]),
        "b": pa.array([i % 2 == 0 for i in range(ROWS)]),
        "few": pa.array(["x", "y", None, "x"] * (ROWS // 4)),
        "many": pa.array([f"v{i % 20}" for i in range(ROWS)]),
        "t": pa.array([i * 3_600_000_000 for i in range(ROWS)]).cast(pa.timestamp("us", "UTC")),
    }
)


def passes(features: dict[str, Any], table: pa.Table = TABLE) -> int:
    """How often fitting reads the rows."""
    count = 0

    def reduce(level: Level) -> Any:
        nonlocal count
        count += 1
        # States and tasks travel between processes.
        level = pickle.loads(pickle.dumps(level))
        states = [level.update(level.init(), batch) for batch in table.to_batches(max_chunksize=7)]
        state = level.init()
        for other in states:
            state = level.merge(state, pickle.loads(pickle.dumps(other)))
        return state

    fit(Schema.from_arrow(table.schema), build(FeaturesConfig, features, path="features"), reduce)
    return count


def test_every_type_has_a_default() -> None:
    description, _ = fit_table(TABLE)
    operators = {name: [step["op"] for step in steps] for name, steps in description["columns"].items()}
    assert operators == {"f": [], "i": [], "b": [], "few": ["one_hot"], "many": ["vocabulary"], "t": ["date_parts"]}
    assert description["names"] == [
        "f", "i", "b", "few=x", "few=y", "few=(null)", "many", "t.day_of_year", "t.weekday", "t.hour", "t.minute",
    ]  # fmt: skip
    made = reference(description, TABLE)
    assert np.isnan(made[0, 1])
    assert made[5].tolist() == [np.float32(5 / 3), 5, 0, 0, 1, 0, 16, 1, 3, 5, 0]


def test_one_pass_for_defaults_one_more_for_each_later_step_that_needs_the_rows() -> None:
    assert passes({}) == 1
    assert passes({"i": [{"op": "clip", "high_quantile": 0.9}, "standardize"], "f": ["standardize"]}) == 2
    assert passes({"i": [{"op": "clip", "min": 0}, "log", "standardize"]}) == 1


def test_a_step_after_one_that_fills_nulls_needs_no_pass_of_its_own() -> None:
    assert passes({"i": ["impute", "standardize"], "f": ["standardize"]}) == 1
    assert passes({"i": ["impute", {"op": "clip", "high_quantile": 0.9}, "standardize"]}) == 2
    assert passes({"few": ["impute", "one_hot"]}) == 2


@pytest.mark.parametrize(
    "later",
    ["standardize", "min_max", "robust", {"op": "clip", "low_quantile": 0.1, "high_quantile": 0.8}, {"op": "bin", "bins": 3}],
    ids=str,
)
@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent"])
def test_and_is_fitted_on_what_was_filled(strategy: str, later: Any) -> None:
    table = pa.table({"x": pa.array([None if i % 3 else float(i % 7) for i in range(ROWS)])})
    table = table.append_column("y", table["x"])
    fill = {"op": "impute", "strategy": strategy}
    description, _ = fit_table(table, {"x": [fill, later], "y": [fill]}, batch_rows=9)
    number = description["columns"]["y"][0]["fitted"]["fill"]
    filled, _ = fit_table(pa.table({"x": table["x"].fill_null(number)}), {"x": [later]}, batch_rows=9)
    expected = filled["columns"]["x"][0]["fitted"]
    assert description["columns"]["x"][1]["fitted"] == {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()}


def test_a_later_step_is_fitted_on_what_the_earlier_ones_make() -> None:
    description, _ = fit_table(TABLE, {"i": [{"op": "impute", "strategy": "constant", "value": 100}, "standardize"]}, batch_rows=9)
    filled = np.array([100, *range(1, ROWS)])
    fitted = description["columns"]["i"][1]["fitted"]
    assert fitted["mean"] == pytest.approx(filled.mean())
    assert fitted["std"] == pytest.approx(filled.std())


def test_statistics_of_a_step_that_takes_several_columns_are_by_column() -> None:
    description, _ = fit_table(TABLE, {"t": [{"op": "date_parts", "parts": ["hour", "day"]}, "standardize"]})
    step = description["columns"]["t"][1]
    assert step["fitted"] == {}
    assert list(step["by_column"]) == ["t.hour", "t.day"]
    assert step["by_column"]["t.hour"]["mean"] == pytest.approx(np.mean([i % 24 for i in range(ROWS)]))


def test_columns_that_say_nothing_are_kept_out_with_a_reason() -> None:
    table = pa.table(
        {
            "x": [1.0, 2.0, 2.0],
            "same": ["a", "a", "a"],
            "zero": pa.array([0.0, -0.0, 0.0]),
            "null": pa.nulls(3, pa.int64()),
            "nan": [float("nan")] * 3,
            "a or null": ["a", None, "a"],
            "when": pa.array([1_700_000_000_000_000] * 3).cast(pa.timestamp("us", "UTC")),
            "yes": [True] * 3,
            "gone": [1, 2, 3],
        }
    )
    description, _ = fit_table(table, {"drop": ["gone"], "same": ["vocabulary"]}, batch_rows=1)
    assert description["dropped"] == {
        "gone": "dropped by features.drop",
        "same": "every value is a",
        "zero": "every value is 0.0",
        "null": "every value is null",
        "nan": "every value is null",
        "when": "every value is 2023-11-14T22:13:20.000000 UTC",
        "yes": "every value is True",
    }
    assert [column["name"] for column in description["inputs"]] == ["x", "a or null"]


def test_no_column_left_is_an_error_with_the_reasons() -> None:
    with pytest.raises(DataError, match=r"at least one column must be left as a feature, got none \(a: every value is 1\)"):
        fit_table(pa.table({"a": [1, 1]}))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"feww": ["one_hot"]}, "features: column 'feww' must be one that can be a feature.*did you mean 'few'"),
        ({"drop": ["feww"]}, "features.drop: column 'feww'.*did you mean 'few'"),
        ({"few": ["standardize"]}, "features.few: standardize must get number, gets string; one_hot or vocabulary makes numbers of text"),
        ({"f": ["one_hot"]}, "features.f: one_hot must get string or integer, gets number; bin makes categories"),
        ({"t": ["impute"]}, "features.t: impute must get number or string, gets time; date_parts makes numbers of times"),
        ({"few": ["impute"]}, "features.few: must end in numbers, ends in string; add one_hot or vocabulary"),
        ({"few": [{"op": "impute", "strategy": "mean"}, "one_hot"]}, "features.few: impute: strategy mean needs numbers"),
        (
            {"f": [{"op": "impute", "strategy": "constant", "value": "x"}]},
            "features.f: impute: value must be a number like the column, got 'x'",
        ),
    ],
)
def test_what_does_not_fit_is_named(features: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_table(TABLE, features)


def test_two_features_of_one_name_are_refused() -> None:
    table = pa.table({"a": [1.0, None, 2.0], "a.missing": [1.0, 2.0, 3.0]})
    with pytest.raises(ConfigError, match=r"columns a and a\.missing make 'a.missing'; rename one in prepare"):
        fit_table(table, {"a": ["impute"]})


def test_labels_of_rare_and_null_give_way_to_categories_of_that_name() -> None:
    table = pa.table({"s": ["(null)", "(null)", None, "(rare)", "(rare)", "z"]})
    description, _ = fit_table(table, {"s": [{"op": "one_hot", "min_count": 2}]})
    assert description["names"] == ["s=(null)", "s=(rare)", "s=((rare))", "s=((null))"]
