"""A source as a DuckDB relation: the files' own errors found before anything is computed, only the needed columns read."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
from pyarrow.fs import LocalFileSystem

from tidemill.core.engine import Format, Source
from tidemill.core.errors import DataError, nearest
from tidemill.core.objects import StoredObject, answered, file_system
from tidemill.core.source import COMPRESSED, is_remote, source_files, source_objects
from tidemill.engines.local.database import query_relation
from tidemill.engines.local.datasets import arrow_dataset, checked_schema, is_hive
from tidemill.engines.local.delimited import csv_query
from tidemill.engines.local.jsonlines import json_query
from tidemill.engines.local.packed import unpacked
from tidemill.engines.local.rows import translated
from tidemill.engines.local.sql import literals, quoted

TEXT: tuple[Format, ...] = ("csv", "jsonl")
COPY_BYTES = 8 << 20


def scan_relation(
    connection: duckdb.DuckDBPyConnection, source: Source, columns: Sequence[str] | None, *, scratch: Path
) -> duckdb.DuckDBPyRelation:
    """The `columns` of `source`, all of them where None, nothing read yet but what tells their types.

    Raises:
        DataError: If a file is missing, empty, truncated, ragged or of another shape than its siblings, or a column is absent.
        Unavailable: If a database or an object store does not answer.
    """
    relation = _relation(connection, source, scratch)
    if columns is None:
        return relation
    known = relation.columns
    for column in columns:
        if column not in known:
            close = nearest(column, known)
            hint = f"did you mean {close!r}?" if close else f"it has {', '.join(known)}"
            raise DataError(f"source {source.shown} must have the column {column!r}", field=column, hint=hint)
    return relation.project(", ".join(quoted(column) for column in columns))


def _relation(connection: duckdb.DuckDBPyConnection, source: Source, scratch: Path) -> duckdb.DuckDBPyRelation:
    if source.query is not None:
        return query_relation(connection, source, scratch / f"query-{uuid.uuid4().hex[:8]}")
    folder = scratch / f"source-{uuid.uuid4().hex[:8]}"
    if not is_remote(source):
        files, form = source_files(source)
        return _local(connection, source, [_File(file, str(file), _below(source.path, file)) for file in files], form, folder)
    objects, form = source_objects(source)
    if form in TEXT or any(entry.path.lower().endswith(COMPRESSED) for entry in objects):
        # Text is read more than once, and whole, to tell its types: from a copy.
        copies = [_File(_copied(source, entry, folder), entry.path, entry.below) for entry in objects]
        return _local(connection, source, copies, form, folder)
    store, _ = file_system(source)
    with answered(source.path):
        schema = checked_schema({entry.key: entry.path for entry in objects}, form, store)
        return connection.from_arrow(arrow_dataset({entry.key: entry.below for entry in objects}, form, schema, store))


class _File(NamedTuple):
    path: Path
    shown: str
    below: str


def _local(
    connection: duckdb.DuckDBPyConnection, source: Source, files: list[_File], form: Format, folder: Path
) -> duckdb.DuckDBPyRelation:
    hive = is_hive([file.below for file in files])
    # What is unpacked keeps its folders, whose names may be columns.
    plain = [
        file._replace(path=unpacked(file.path, (folder / str(number) / file.below).parent, reads_gzip=form in TEXT))
        for number, file in enumerate(files)
    ]
    shown = {file.path: file.shown for file in plain}
    if form == "csv":
        query = csv_query(connection, shown, source, hive=hive)
    elif form == "jsonl":
        query = json_query(
            connection, shown, source, [folder / f"{at}-text" / f"{file.below}.parquet" for at, file in enumerate(plain)], hive=hive
        )
    else:
        disk = LocalFileSystem()
        schema = checked_schema({str(path): text for path, text in shown.items()}, form, disk)
        if form != "parquet":
            return connection.from_arrow(arrow_dataset({str(file.path): file.below for file in plain}, form, schema, disk))
        query = f"SELECT * FROM read_parquet({literals(shown)}, hive_partitioning = {str(hive).lower()})"
    with translated():
        return connection.sql(query)


def _below(source: str, file: Path) -> str:
    """The file's path below the folder, or below the fixed part of the glob."""
    fixed = Path(source)
    while any(mark in str(fixed) for mark in "*?[") or fixed == file:
        fixed = fixed.parent
    return str(file.relative_to(fixed))


def _copied(source: Source, entry: StoredObject, folder: Path) -> Path:
    """A copy of an object in the scratch folder."""
    copy = folder / "copied" / entry.below
    copy.parent.mkdir(parents=True, exist_ok=True)
    store, _ = file_system(source)
    with answered(entry.path):
        stream = store.open_input_stream(entry.key)
    with stream, copy.open("wb") as out:
        while True:
            with answered(entry.path):
                block = stream.read(COPY_BYTES)
            if not block:
                return copy
            out.write(block)
