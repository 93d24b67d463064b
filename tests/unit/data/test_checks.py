"""Declared checks: what breaks them, how often, and how it is said."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import narwhals as nw
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.core.engine import EngineConfig, Source
from tidemill.core.errors import ConfigError, DataError
from tidemill.core.events import Event, Events
from tidemill.core.project import build, from_tree
from tidemill.core.schema import Schema
from tidemill.data import stage
from tidemill.data.checks import checked, refused
from tidemill.data.config import CheckConfig
from tidemill.engines.local.engine import LocalEngine

AT = [dt.datetime(2024, 1, day, tzinfo=dt.UTC) for day in (1, 2, 3, 4)]
TABLE = pa.table(
    {
        "n": pa.array([1, 5, None, -3]),
        "x": [0.5, 1.5, float("inf"), None],
        "s": ["ab", "b", "", None],
        "b": [True, None, True, False],
        "at": pa.array(AT, pa.timestamp("us", tz="UTC")),
        "id": ["p", "q", "p", "r"],
    }
)

CASES: dict[str, tuple[str, dict[str, Any], int, list[Any]]] = {
    "min": ("n", {"min": 0}, 1, [-3]),
    "min, inclusive": ("n", {"min": -3}, 0, []),
    "max": ("x", {"max": 1}, 2, [1.5, float("inf")]),
    "in numbers": ("n", {"in": [1, 5]}, 1, [-3]),
    "in text": ("s", {"in": ["ab", "b"]}, 1, [""]),
    "in booleans": ("b", {"in": [True]}, 1, [False]),
    "regex, whole": ("s", {"regex": "b|c"}, 2, ["ab", ""]),
    "not null": ("b", {"not_null": True}, 1, [None]),
    "unique": ("id", {"unique": True}, 2, ["p"]),
    "unique, nulls aside": ("n", {"unique": True}, 0, []),
    "null share": ("s", {"max_null_share": 0.2}, 1, [None]),
    "null share, enough": ("s", {"max_null_share": 0.25}, 1, []),
    "time from": ("at", {"min": "2024-01-02T00:00:00Z"}, 1, ["2024-01-01T00:00:00+00:00"]),
    "day until": ("at", {"max": dt.date(2024, 1, 3)}, 1, ["2024-01-04T00:00:00+00:00"]),
}


def results(tmp_path: Path, checks: dict[str, Any], table: pa.Table = TABLE) -> list[dict[str, Any]]:
    pq.write_table(table, tmp_path / "t.parquet")
    made = {name: build(CheckConfig, check, path=f"data.checks.{name}") for name, check in checks.items()}
    with LocalEngine(EngineConfig(threads=2), scratch=tmp_path / "scratch") as engine:
        frame = engine.frame(engine.scan(Source(path=str(tmp_path / "t.parquet"))))
        assert isinstance(frame, nw.LazyFrame)
        return checked(frame, made, Schema.from_arrow(table.schema), keys=())


@pytest.mark.parametrize(("column", "check", "failed", "values"), CASES.values(), ids=CASES)
def test_each_rule_counts_and_shows_the_rows_that_break_it(
    tmp_path: Path, column: str, check: dict[str, Any], failed: int, values: list[Any]
) -> None:
    [result] = results(tmp_path, {column: check})
    assert result["failed"] == failed
    assert result["passed"] is (not values)
    assert [row[column] for row in result["samples"]] == values
    assert result["rows"] == 4


def test_no_more_than_five_rows_are_shown(tmp_path: Path) -> None:
    [result] = results(tmp_path, {"n": {"min": 0}}, pa.table({"n": [-1] * 100}))
    assert result["failed"] == 100
    assert len(result["samples"]) == 5


def test_all_failures_are_listed_and_warnings_pass(tmp_path: Path) -> None:
    found = results(tmp_path, {"n": {"min": 0, "max": 4}, "s": {"not_null": True, "severity": "warn"}, "x": {"min": -9}})
    error = refused(found)
    assert error is not None
    assert str(error).startswith(
        "2 of 4 checks failed: n must be at least 0, 1 of 4 rows break it (such as n=-3); n must be at most 4, 1 of 4"
    )
    assert error.field == "n"
    assert refused([result for result in found if result["severity"] == "warn"]) is None


@pytest.mark.parametrize(
    ("column", "check", "message"),
    [
        ("s", {"min": 1}, r"data\.checks\.s\.min: must be comparable with the column, which is string, got 1"),
        ("n", {"max": "9"}, "which is int64, got '9'"),
        ("at", {"min": "soon"}, "must be a time in ISO 8601, got 'soon'"),
        ("n", {"regex": "a"}, r"data\.checks\.n\.regex: needs text, the column is int64"),
        ("b", {"in": [1]}, "which is boolean, got 1"),
        ("n", {"in": []}, "must list the values allowed"),
        ("n", {"minimum": 1}, r"data\.checks\.n\.minimum: is not a known key"),
        ("n", {"severity": "loud"}, "must be one of error, warn"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(tmp_path: Path, column: str, check: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        results(tmp_path, {column: check})


def test_in_the_stage_a_breach_stops_and_a_warning_is_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": range(200), "y": [i % 2 == 0 for i in range(200)]}), tmp_path / "t.parquet")
    events: list[Event] = []

    def run(checks: dict[str, Any], out: str) -> dict[str, Any]:
        project = from_tree({"name": "t", "data": {"source": "t.parquet", "target": "y", "checks": checks}}, folder=tmp_path)
        (tmp_path / out).mkdir()
        return stage.run(project, tmp_path / out, events=Events(events.append))

    with pytest.raises(DataError, match=r"1 of 1 checks failed: n must be at least 3, 3 of 200 rows break it \(such as n=0, n=1, n=2\)"):
        run({"n": {"min": 3}}, "error")
    assert [event.level for event in events if event.kind == "data.check"] == ["error"]
    assert run({"n": {"min": 3, "severity": "warn"}}, "warn")["checks_failed"] == 1
    assert [event.level for event in events if event.kind == "data.check"] == ["error", "warning"]
    with pytest.raises(DataError, match=r"data\.checks: the table must have the column 'm'"):
        run({"m": {"min": 3}}, "absent")
