"""CSV whose types are told from every value, never from a sample, and never at the cost of a digit.

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

import csv
import gzip
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import duckdb

from tidemill.core.engine import Source
from tidemill.core.errors import ConfigError, DataError, nearest
from tidemill.engines.local.rows import translated
from tidemill.engines.local.sql import literal, literals, quoted

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


def csv_query(connection: duckdb.DuckDBPyConnection, files: Mapping[Path, Path], source: Source, *, hive: bool) -> str:
    """The query that reads the CSV files with their types told.

    Args:
        files: What to read, each with the path to show for it.
        hive: Whether folders named `key=value` are columns.

    Raises:
        DataError: If a row has more or fewer values than the header, a file is not UTF-8, or a value is not of its declared type.
    """
    delimiter = source.delimiter or ("\t" if any(suffix == ".tsv" for suffix in next(iter(files)).suffixes) else ",")
    names = _names(files, source, delimiter)
    for name in source.types:
        if name not in names:
            close = nearest(name, names)
            raise ConfigError(f"types: {name!r} must be a column of {source.path}" + (f"; did you mean {close!r}?" if close else ""))

    def reader(types: Mapping[str, str]) -> str:
        columns = ", ".join(f"{literal(name)}: '{SQL_TYPES[types[name]]}'" for name in names)
        return (
            f"read_csv({literals(files)}, auto_detect = false, strict_mode = true,"
            f" delim = {literal(delimiter)}, quote = '\"', escape = '\"', header = {str(source.header).lower()},"
            f" nullstr = {literals(source.null)}, columns = {{{columns}}},"
            f" hive_partitioning = {str(hive).lower()})"
        )

    with _explained(files, names):
        types = _told_types(connection, reader(dict.fromkeys(names, "string")), names, source)
    return f"SELECT * FROM {reader(types)}"


def _told_types(connection: duckdb.DuckDBPyConnection, table: str, names: list[str], source: Source) -> dict[str, str]:
    types = dict(source.types)
    candidates = {name: list(HOLDS) for name in names if name not in types}
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


def _names(files: Mapping[Path, Path], source: Source, delimiter: str) -> list[str]:
    """The columns' names, the same in every file."""
    first: tuple[Path, list[str]] | None = None
    for file, shown in files.items():
        row = _first_row(file, shown, delimiter)
        if not row or row == [""]:
            raise DataError(f"source {shown} must begin with the columns' names, its first line is empty")
        other = next((mark for mark in (";", "\t", "|", ",") if mark != delimiter and mark in row[0]), None)
        if len(row) == 1 and other and source.header:
            hint = f"source = {{ path = ..., delimiter = {other!r} }}"
            raise DataError(f"source {shown} must have values between {delimiter!r}, its first line has {other!r}", hint=hint)
        if first and (row != first[1] if source.header else len(row) != len(first[1])):
            raise DataError(f"source files must have the same columns, {shown} and {first[0]} differ")
        first = first or (shown, row)
    row_of_first = first[1] if first else []
    if source.names is not None:
        if len(source.names) != len(row_of_first):
            raise DataError(f"source {source.path} must have the {len(source.names)} columns named, has {len(row_of_first)}")
        names = list(source.names)
    elif source.header:
        names = [name.strip() or f"column{position}" for position, name in enumerate(row_of_first)]
    else:
        names = [f"column{position}" for position in range(len(row_of_first))]
    for position, name in enumerate(names):
        if name.lower() in [other.lower() for other in names[:position]]:
            raise DataError(f"source {source.path}: names of columns must differ by more than case, got {name!r} twice", field=name)
    return names


def _first_row(file: Path, shown: Path, delimiter: str) -> list[str]:
    try:
        opened = gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb")  # noqa: SIM115 - closed by the next line
        with opened, io.TextIOWrapper(cast(BinaryIO, opened), encoding="utf-8-sig", newline="") as text:
            return next(csv.reader(text, delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise DataError(f"source {shown} must be UTF-8 text: {error.reason}", hint="convert it, such as with iconv") from error
    except (OSError, EOFError, csv.Error) as error:
        raise DataError(f"source {shown} must be readable CSV: {error}") from error


class _explained:  # noqa: N801 - reads as a statement
    """Turns DuckDB's CSV errors into one line that names the file, the line and what is wrong there."""

    def __init__(self, files: Mapping[Path, Path], names: list[str]) -> None:
        self._files = {str(file): shown for file, shown in files.items()}
        self._names = names

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, DataError) or not isinstance(error.__cause__, duckdb.Error):
            return
        text = str(error.__cause__)
        path = re.search(r"file = (.*)", text)
        shown = self._files.get(path[1].strip() if path else "", next(iter(self._files.values())))
        line = re.search(r"on Line: (\d+)", text)
        where = f"line {line[1]}" if line else "a line"
        counts = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", text)
        if counts:
            message = f"source {shown}: every line must have {counts[1]} values, {where} has {counts[2]}"
            raise DataError(message, hint="mend the line; a value that contains the delimiter must be in quotes") from error.__cause__
        if "unicode" in text.lower():
            raise DataError(
                f"source {shown} must be UTF-8 text, {where} is not", hint="convert it, such as with iconv"
            ) from error.__cause__
        if "unterminated quote" in text:
            raise DataError(f"source {shown}: a quote must be closed, {where} has one that is not") from error.__cause__
        raise DataError(f"source {shown} must be readable CSV: {text.splitlines()[0]}") from error.__cause__
