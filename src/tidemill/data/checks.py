"""Declared checks: how many rows break each, and some of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

import narwhals as nw

from tidemill.core.errors import ConfigError, DataError
from tidemill.core.schema import Column, Schema
from tidemill.data.config import CheckConfig

SAMPLES = 5


def checked(frame: nw.LazyFrame[Any], checks: Mapping[str, CheckConfig], schema: Schema, *, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """One result for every rule of every column: `column`, `rule`, `limit`, `severity`, `rows`, `failed`, `passed`, `samples`.

    Raises:
        ConfigError: If a rule does not fit the column's type.
    """
    rules = [(name, *rule) for name, check in checks.items() for rule in _rules(schema[name], check)]
    if not rules:
        return []
    counted = frame.select(nw.len().alias("rows"), *[_count(broken).alias(f"rule{i}") for i, (*_, broken) in enumerate(rules)])
    [counts] = _plain_rows(counted)
    results = []
    for i, (name, rule, limit, broken) in enumerate(rules):
        rows, failed = int(counts["rows"]), int(counts[f"rule{i}"] or 0)
        samples: list[dict[str, Any]] = []
        if rule == "unique":
            failed, samples = _repeated(frame, name)
        elif failed:
            samples = _plain_rows(frame.filter(broken).select(*dict.fromkeys([*keys, name])).head(SAMPLES))
        passed = failed <= limit * rows if rule == "max_null_share" else failed == 0
        results.append(
            {"column": name, "rule": rule, "limit": limit, "severity": checks[name].severity, "rows": rows, "failed": failed}
            | {"passed": passed, "samples": [] if passed else samples}
        )
    return results


def refused(results: list[dict[str, Any]]) -> DataError | None:
    """The error that lists every failed check that is no warning; None where there is none."""
    failed = [result for result in results if not result["passed"] and result["severity"] == "error"]
    if not failed:
        return None
    first = failed[0]["column"] if len({result["column"] for result in failed}) == 1 else None
    listed = "; ".join(said(result) for result in failed)
    hint = 'mend the data, the check, or drop those rows in prepare; severity = "warn" lets them pass'
    return DataError(f"{len(failed)} of {len(results)} checks failed: {listed}", field=first, hint=hint)


def said(result: Mapping[str, Any]) -> str:
    """A failed check in words, with rows that break it."""
    words = {
        "min": "must be at least {limit}", "max": "must be at most {limit}", "in": "must be one of {limit}",
        "regex": "must match {limit}", "not_null": "must not be null", "unique": "must not repeat",
        "max_null_share": "must be null in at most {limit:.2%}",
    }  # fmt: skip
    samples = ", ".join(_row_text(row) for row in result["samples"])
    rule = words[result["rule"]].format(limit=result["limit"])
    return f"{result['column']} {rule}, {result['failed']:,} of {result['rows']:,} rows break it (such as {samples})"


def _rules(column: Column, check: CheckConfig) -> Iterator[tuple[str, Any, nw.Expr]]:
    """Name, limit and the expression that is true where a row breaks it, of each rule that is set."""
    value = nw.col(column.name)
    where = f"data.checks.{column.name}"
    if check.min is not None:
        yield "min", check.min, value < _bound(column, check.min, f"{where}.min")
    if check.max is not None:
        yield "max", check.max, value > _bound(column, check.max, f"{where}.max")
    if check.allowed is not None:
        allowed = [_bound(column, item, f"{where}.in") for item in check.allowed]
        if not allowed:
            raise ConfigError(f"{where}.in: must list the values allowed, is empty")
        yield "in", list(check.allowed), ~value.is_in(allowed) & ~value.is_null()
    if check.regex is not None:
        if column.type != "string":
            raise ConfigError(f"{where}.regex: needs text, the column is {column.type}")
        yield "regex", check.regex, ~value.str.contains(f"^(?:{check.regex})$")
    if check.not_null:
        yield "not_null", True, value.is_null()
    if check.max_null_share is not None:
        yield "max_null_share", check.max_null_share, value.is_null()
    if check.unique:
        yield "unique", True, value.is_null()


def _bound(column: Column, value: Any, where: str) -> Any:
    """The value to compare with, as the column's type."""
    if column.type == "timestamp" and isinstance(value, str):
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError as error:
            raise ConfigError(f"{where}: must be a time in ISO 8601, got {value!r}") from error
        return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    fits = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "timestamp": False,
    }.get(column.type, isinstance(value, (int, float)) and not isinstance(value, bool))
    if not fits:
        raise ConfigError(f"{where}: must be comparable with the column, which is {column.type}, got {value!r}")
    return value


def _count(broken: nw.Expr) -> nw.Expr:
    return nw.when(broken).then(nw.lit(1)).otherwise(nw.lit(0)).sum()


def _repeated(frame: nw.LazyFrame[Any], name: str) -> tuple[int, list[dict[str, Any]]]:
    """How many rows hold a value that others hold too, and the most frequent such values."""
    times = frame.filter(~nw.col(name).is_null()).group_by(name).agg(nw.len().alias("times")).filter(nw.col("times") > 1)
    [total] = _plain_rows(times.select(nw.col("times").sum()))
    if not total["times"]:
        return 0, []
    return int(total["times"]), _plain_rows(times.sort("times", name, descending=[True, False], nulls_last=True).head(SAMPLES))


def _plain_rows(frame: nw.LazyFrame[Any]) -> list[dict[str, Any]]:
    """A small result as JSON values."""
    rows = frame.collect("pyarrow").to_arrow().to_pylist()
    return [{name: value.isoformat() if isinstance(value, dt.datetime) else value for name, value in row.items()} for row in rows]


def _row_text(row: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value!r}" for name, value in row.items())
