"""CSV whose types are told from every value (see `told`), and whose errors name the line."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

import duckdb

from tidemill.core.engine import Source
from tidemill.core.errors import DataError
from tidemill.engines.local.sql import literal, literals
from tidemill.engines.local.told import HOLDS, SQL_TYPES, told_types


def csv_query(connection: duckdb.DuckDBPyConnection, files: Mapping[Path, str], source: Source, *, hive: bool) -> str:
    """The query that reads the CSV files with their types told.

    Args:
        files: What to read, each with the path to show for it.
        hive: Whether folders named `key=value` are columns.

    Raises:
        DataError: If a row has more or fewer values than the header, a file is not UTF-8, or a value is not of its declared type.
    """
    delimiter = source.delimiter or ("\t" if any(suffix == ".tsv" for suffix in next(iter(files)).suffixes) else ",")
    names = _names(files, source, delimiter)

    def reader(types: Mapping[str, str]) -> str:
        columns = ", ".join(f"{literal(name)}: '{SQL_TYPES[types[name]]}'" for name in names)
        return (
            f"read_csv({literals(files)}, auto_detect = false, strict_mode = true,"
            f" delim = {literal(delimiter)}, quote = '\"', escape = '\"', header = {str(source.header).lower()},"
            f" nullstr = {literals(source.null)}, columns = {{{columns}}},"
            f" hive_partitioning = {str(hive).lower()})"
        )

    with _explained(files, names):
        candidates = {name: list(HOLDS) for name in names}
        types = told_types(connection, reader(dict.fromkeys(names, "string")), candidates, source)
    return f"SELECT * FROM {reader(types)}"


def _names(files: Mapping[Path, str], source: Source, delimiter: str) -> list[str]:
    """The columns' names, the same in every file."""
    first: tuple[str, list[str]] | None = None
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


def _first_row(file: Path, shown: str, delimiter: str) -> list[str]:
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

    def __init__(self, files: Mapping[Path, str], names: list[str]) -> None:
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
