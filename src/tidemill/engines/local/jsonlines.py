"""JSON lines: one object a line, its types told from every value (see `told`).

Words in quotes stay words, those excepted that are all ISO times. A key that a line lacks is null there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from tidemill.core.engine import Source
from tidemill.core.errors import DataError
from tidemill.engines.local.datasets import check_names
from tidemill.engines.local.rows import QueryRows, translated
from tidemill.engines.local.sql import literal, literals, quoted
from tidemill.engines.local.told import SQL_TYPES, told_types

# What DuckDB says of all values of a key, and the types that they may have here. Anything else is of several kinds: text.
NUMBER = ("int64", "float64")
MAY_BE = {"BOOLEAN": ("boolean",), "BIGINT": NUMBER, "UBIGINT": NUMBER, "HUGEINT": NUMBER, "DOUBLE": NUMBER, "VARCHAR": ("timestamp",)}


def json_query(
    connection: duckdb.DuckDBPyConnection, files: Mapping[Path, str], source: Source, copies: Sequence[Path], *, hive: bool
) -> str:
    """The query of the files' rows with their types told, by way of a copy of each as Parquet of text.

    DuckDB's reader is slow, and takes 64 MiB for each file that it has open: here it reads every file once, one after the other.

    Args:
        files: What to read, each with the path to show for it.
        copies: Where to put the copy of each file.
        hive: Whether folders named `key=value` are columns, of the copies too.

    Raises:
        DataError: If a line is no JSON object, a value is a list or an object, or one is not of its declared type.
    """
    with _explained(files):
        kinds = _kinds(connection, files)
        for (file, shown), copy in zip(files.items(), copies, strict=True):
            _write_text(connection, file, shown, kinds, copy)
    table = f"read_parquet({literals(copies)}, hive_partitioning = {str(hive).lower()})"
    candidates = {name: list(MAY_BE.get(kind, ())) for name, kind in kinds.items()}
    types = told_types(connection, table, candidates, source)
    casts = [f"CAST({quoted(name)} AS {SQL_TYPES[types[name]]}) AS {quoted(name)}" for name in kinds]
    keys = [quoted(name) for name in connection.sql(f"FROM {table}").columns if name not in kinds]
    return f"SELECT {', '.join([*casts, *keys])} FROM {table}"


def _write_text(connection: duckdb.DuckDBPyConnection, file: Path, shown: str, kinds: Mapping[str, str], copy: Path) -> None:
    """Write a Parquet file of the same rows, every value as text."""

    def reader(types: Mapping[str, str]) -> str:
        columns = ", ".join(f"{literal(name)}: '{kind}'" for name, kind in types.items())
        return f"read_json({literal(str(file))}, format = 'newline_delimited', columns = {{{columns}}}, hive_partitioning = false)"

    mixed = [name for name, kind in kinds.items() if kind == "JSON"]
    if mixed:  # words and numbers; or an object among them
        nested = ", ".join(f"bool_or(json_type({quoted(name)}) IN ('OBJECT', 'ARRAY'))" for name in mixed)
        with translated():
            found = connection.execute(f"SELECT {nested} FROM {reader(dict.fromkeys(mixed, 'JSON'))}").fetchall()[0]
        for name, is_nested in zip(mixed, found, strict=True):
            if is_nested:
                raise _nested(name, shown)
    copy.parent.mkdir(parents=True, exist_ok=True)
    rows = QueryRows(connection.sql(f"FROM {reader(dict.fromkeys(kinds, 'VARCHAR'))}"), connection)
    with pq.ParquetWriter(copy, rows.schema, compression="zstd", compression_level=1) as writer:
        for chunk in rows.chunks():
            writer.write_batch(chunk, row_group_size=chunk.num_rows)


def _kinds(connection: duckdb.DuckDBPyConnection, files: Mapping[Path, str]) -> dict[str, str]:
    """What the values of each key are, in the order of first sight."""
    kinds: dict[str, str] = {}
    for file, shown in files.items():
        objects = f"read_ndjson_objects({literal(str(file))}, hive_partitioning = false)"
        wrong = "count(*) FILTER (json_type(json) <> 'OBJECT')"
        with translated():
            found, others, rows = connection.execute(f"SELECT json_group_structure(json), {wrong}, count(*) FROM {objects}").fetchall()[0]
        if others:
            raise DataError(
                f"source {shown} must hold one JSON object a line, {others:,} of {rows:,} lines are something else",
                hint="a list of objects is turned into lines by: jq -c '.[]'",
            )
        structure = json.loads(found) if rows else {}
        for name, kind in structure.items() if isinstance(structure, dict) else ():
            if not isinstance(kind, str):
                raise _nested(name, shown)
            kinds[name] = _both(kinds.get(name, "NULL"), kind)
    if not kinds:
        raise DataError(f"source {', '.join(files.values())} must hold JSON objects with keys, holds none")
    check_names(list(kinds), next(iter(files.values())))
    return kinds


def _both(one: str, other: str) -> str:
    if one == "NULL" or one == other:
        return other
    if other == "NULL":
        return one
    return "DOUBLE" if MAY_BE.get(one) == NUMBER == MAY_BE.get(other) else "JSON"


def _nested(name: str, shown: str) -> DataError:
    return DataError(
        f"column {name!r} of {shown} must hold words, numbers, true or false, holds a list or an object",
        field=name,
        hint="flatten it first, such as with DuckDB's unnest, and save as Parquet",
    )


class _explained:  # noqa: N801 - reads as a statement
    """Turns DuckDB's JSON errors into one line that names the file and the line."""

    def __init__(self, files: Mapping[Path, str]) -> None:
        self._files = {str(file): shown for file, shown in files.items()}

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, DataError) or not isinstance(error.__cause__, duckdb.Error):
            return
        text = str(error.__cause__)
        path = re.search(r'in file "([^"]*)"', text)
        shown = self._files.get(path[1] if path else "", next(iter(self._files.values())))
        where = re.search(r"in line (\d+)\s*: (.*)", text)
        if where:  # DuckDB counts one more than there are
            raise DataError(
                f"source {shown} must hold one JSON object a line, line {int(where[1]) - 1}: {where[2].strip()}"
            ) from error.__cause__
        raise DataError(f"source {shown} must be readable JSON lines: {text.splitlines()[0]}") from error.__cause__
