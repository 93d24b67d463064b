"""A source as a DuckDB query: the files' own errors found before anything is computed, only the needed columns read."""

from __future__ import annotations

import bz2
import shutil
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.core.engine import Source
from tidemill.core.errors import DataError, nearest
from tidemill.core.source import source_files, zipped_name
from tidemill.engines.local.delimited import csv_query
from tidemill.engines.local.sql import literals, quoted


def scan_query(connection: duckdb.DuckDBPyConnection, source: Source, columns: Sequence[str] | None, *, scratch: Path) -> str:
    """The query that reads `columns` of `source`, all of them where None.

    Raises:
        DataError: If a file is missing, empty, truncated, ragged or of another shape than its siblings, or a column is absent.
    """
    files, form = source_files(source)
    hive = any("=" in part for part in _below(source.path, files[0]).parts[:-1])
    plain = {_uncompressed(file, scratch): file for file in files}
    if form == "csv":
        query = csv_query(connection, plain, source, hive=hive)
    else:
        _check_parquet(plain)
        query = f"SELECT * FROM read_parquet({literals(plain)}, hive_partitioning = {str(hive).lower()})"
    if columns is None:
        return query
    known = connection.sql(query).columns
    for column in columns:
        if column not in known:
            close = nearest(column, known)
            hint = f"did you mean {close!r}?" if close else f"it has {', '.join(known)}"
            raise DataError(f"source {source.path} must have the column {column!r}", field=column, hint=hint)
    return f"SELECT {', '.join(quoted(column) for column in columns)} FROM ({query})"


def _below(source: str, file: Path) -> Path:
    """The file's path below the folder, or below the fixed part of the glob."""
    fixed = Path(source)
    while any(mark in str(fixed) for mark in "*?[") or fixed == file:
        fixed = fixed.parent
    return file.relative_to(fixed)


def _check_parquet(files: Mapping[Path, Path]) -> None:
    """All footers are whole and say the same columns."""
    first: tuple[Path, pa.Schema] | None = None
    for file, shown in files.items():
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"source {shown} must be a whole Parquet file, it is truncated or of another format: {error}") from error
        if not len(schema):
            raise DataError(f"source {shown} must have columns, has none")
        _check_names(schema.names, shown)
        if first is None:
            first = (shown, schema)
        elif first[1].names != schema.names or first[1].types != schema.types:
            shapes = [{f"{field.name} {field.type}" for field in other} for other in (first[1], schema)]
            odd = sorted(shapes[0] ^ shapes[1]) or ["their order"]
            raise DataError(f"source files must have the same columns, {shown} and {first[0]} differ: {', '.join(odd[:6])}")


def _check_names(names: Sequence[str], shown: Path) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            raise DataError(
                f"source {shown}: names of columns must differ by more than case, got {seen[name.lower()]!r} and {name!r}", field=name
            )
        seen[name.lower()] = name


def _uncompressed(file: Path, scratch: Path) -> Path:
    """A file that DuckDB reads: itself, or what is in the archive, unpacked into the scratch folder."""
    suffix = file.suffix.lower()
    if suffix not in (".zip", ".bz2"):
        return file
    name = zipped_name(file) if suffix == ".zip" else file.stem
    target = scratch / f"{uuid.uuid4().hex[:8]}-{Path(name).name}"
    try:
        with zipfile.ZipFile(file).open(name) if suffix == ".zip" else bz2.open(file) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"source {file} must be a whole {suffix[1:]} archive: {error}") from error
    return target
