"""Types told from every value of a text, never from a sample, and never at the cost of a digit.

DuckDB's own guess looks at a sample and rounds what comes after it: a column of whole numbers with a late 2.5 is read as 3. So the
types are told here, by the narrowest of these that holds for every value that is not null:

| type       | every value is                                                                                |
|------------|-----------------------------------------------------------------------------------------------|
| boolean    | true or false, in any case                                                                    |
| int64      | a whole number that fits 64 bits, without leading zeros                                       |
| float64    | a number; not a whole number beyond 64 bits, and no leading zeros, which are codes: those stay text |
| timestamp  | a date, or a date and time, in ISO 8601; UTC where no offset is given                         |
| string     | anything else                                                                                 |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb

from tidemill.core.engine import Source
from tidemill.core.errors import ConfigError, DataError, nearest
from tidemill.engines.local.rows import translated
from tidemill.engines.local.sql import quoted

SQL_TYPES = {
    "boolean": "BOOLEAN", "int64": "BIGINT", "float32": "FLOAT", "float64": "DOUBLE",
    "string": "VARCHAR", "timestamp": "TIMESTAMPTZ",
}  # fmt: skip
# In this order the narrowest type wins; {x} is the text.
_LEADING_ZERO = r"regexp_matches({x}, '^\s*[+-]?0\d')"
HOLDS = {
    "boolean": "lower({x}) IN ('true', 'false')",
    "int64": r"TRY_CAST({x} AS BIGINT) IS NOT NULL AND regexp_full_match({x}, '\s*[+-]?(0|[1-9]\d*)\s*')",
    "float64": f"TRY_CAST({{x}} AS DOUBLE) IS NOT NULL AND NOT {_LEADING_ZERO}"
    r" AND (length({x}) < 19 OR NOT regexp_full_match({x}, '\s*[+-]?\d+\s*') OR TRY_CAST({x} AS BIGINT) IS NOT NULL)",
    "timestamp": r"TRY_CAST({x} AS TIMESTAMPTZ) IS NOT NULL AND regexp_matches({x}, '^\s*\d{{4}}-\d\d?-\d\d?')",
}
SAMPLE_ROWS = 1_000


def told_types(connection: duckdb.DuckDBPyConnection, table: str, candidates: Mapping[str, list[str]], source: Source) -> dict[str, str]:
    """The type of every column.

    Args:
        table: SQL of the columns as text.
        candidates: Keys of `HOLDS` that each column may have, narrowest first.

    Raises:
        ConfigError: If a type is declared for a column that is not there.
        DataError: If a value is not of its declared type.
    """
    for name in source.types:
        if name not in candidates:
            close = nearest(name, candidates)
            raise ConfigError(f"types: {name!r} must be a column of {source.path}" + (f"; did you mean {close!r}?" if close else ""))
    types = dict(source.types)
    candidates = {name: kinds for name, kinds in candidates.items() if name not in types}
    # A few rows tell which types need not be tried on all of them.
    held = _held(connection, f"(SELECT * FROM {table} LIMIT {SAMPLE_ROWS})", candidates, source.types, source)
    untold = {name: [kind for kind in kinds if held[name, kind] is not False] for name, kinds in candidates.items()}
    declared = source.types
    # The first pass reads every column, and so every line is checked; a later one those whose first type did not hold.
    while untold or declared:
        held = _held(connection, table, {name: kinds[:1] for name, kinds in untold.items()}, declared, source)
        rest = {}
        for name, kinds in untold.items():
            holds = held[name, kinds[0]] if kinds else None
            if holds is False and kinds[1:]:
                rest[name] = kinds[1:]
            else:
                types[name] = kinds[0] if holds else "string"
        untold, declared = rest, {}
    return types


def _held(
    connection: duckdb.DuckDBPyConnection, table: str, candidates: Mapping[str, list[str]], declared: Mapping[str, str], source: Source
) -> dict[tuple[str, str], Any]:
    """Whether each candidate type of each column holds for every value; None where there is none but null."""
    tests: dict[tuple[str, str], str] = {}
    for name, types in candidates.items():
        tests |= {(name, kind): f"bool_and({_holds(kind, name)}) FILTER ({quoted(name)} IS NOT NULL)" for kind in types}
    for name, kind in declared.items():
        if kind != "string":
            tests[name, "wrong"] = f"min({quoted(name)}) FILTER (NOT ({_holds(kind, name)}))"
    # The count of every column makes DuckDB read, and so check, all of them.
    counts = [f"count({quoted(name)})" for name in {*candidates, *declared}]
    with translated():
        found = connection.execute(f"SELECT {', '.join([*tests.values(), *counts])} FROM {table}").fetchall()[0]
    held = dict(zip(tests, found, strict=False))
    for name, kind in declared.items():
        if held.get((name, "wrong")) is not None:
            raise DataError(
                f"column {name!r} of {source.path} must be {kind} as declared, got {held[name, 'wrong']!r}",
                field=name,
                hint="mend the value, add it to the source's `null` markers, or declare another type",
            )
    return held


def _holds(kind: str, name: str) -> str:
    return "(" + HOLDS["float64" if kind == "float32" else kind].format(x=quoted(name)) + ")"
