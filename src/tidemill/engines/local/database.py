"""A database's query as rows: read once through ADBC, in batches, into a Parquet file in the scratch folder.

SQLite has no types of columns, only of values: they are told from every value, as a CSV's are, and dates in ISO 8601 become times.
PostgreSQL's types are its own; `numeric` is a float here, as decimals are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.core.engine import Source
from tidemill.core.errors import ConfigError, DataError, TidemillError, Unavailable, Unsupported
from tidemill.core.load import need
from tidemill.core.schema import column_type
from tidemill.engines.local.datasets import check_names
from tidemill.engines.local.rows import rechunked
from tidemill.engines.local.sql import literal, quoted
from tidemill.engines.local.told import HOLDS

PURPOSE = "reading a database"
GROUP_ROWS = 65_536
GROUP_BYTES = 8 << 20
CAST_HINT = "cast it in the query, such as CAST(x AS text), or leave it out"
CONNECT_TIMEOUT_S = 10
SQLITE_COLUMNS = 1_000  # SQLite's limit of a result's columns is 2,000
# SQLite's driver tells a column's type from the first rows; a first row of our own says it.
FIRST = {"integer": "0", "real": "0.5", "text": "'x'"}


def query_relation(connection: duckdb.DuckDBPyConnection, source: Source, folder: Path) -> duckdb.DuckDBPyRelation:
    """The rows of `source.query`, read into a file in `folder`.

    Raises:
        ConfigError: If the address names a variable that is not set.
        DataError: If the query fails, or a column's type has no counterpart here.
        Unavailable: If the database does not answer.
        Unsupported: If no driver knows the address.
    """
    url, query = _with_secrets(source.url or ""), (source.query or "").strip().rstrip(";")
    scheme = url.partition(":")[0]
    folder.mkdir(parents=True)
    path = folder / "rows.parquet"
    with _explained(source, url):
        if scheme == "sqlite":
            _read_sqlite(url, query, path, source)
            casts = {}
        elif scheme in ("postgresql", "postgres"):
            driver = need("adbc_driver_postgresql.dbapi", PURPOSE)
            casts = dict.fromkeys(_read(driver.connect, _with_timeout(url), query, path, before="SET TRANSACTION READ ONLY"), "DOUBLE")
        else:
            raise Unsupported(f"data.source.url: must begin with sqlite:/// or postgresql://, got {scheme!r}")
    relation = connection.sql(f"FROM read_parquet({literal(str(path))})")
    for name in relation.columns if scheme == "sqlite" else ():
        if str(relation.select(quoted(name)).types[0]) == "VARCHAR" and _all_times(connection, path, name):
            casts[name] = "TIMESTAMPTZ"
    if not casts:
        return relation
    parts = [f"CAST({quoted(name)} AS {casts[name]}) AS {quoted(name)}" if name in casts else quoted(name) for name in relation.columns]
    return relation.project(", ".join(parts))


def _read(connect: Callable[..., Any], url: str, query: str, path: Path, *, first: str = "", before: str = "") -> list[str]:
    """Write the rows of a query to `path`, batch by batch; returns the columns whose text is a number of many digits.

    Args:
        first: A query of one row, with the same columns, that comes before it and is left out.
        before: A statement that is executed first.
    """
    with connect(url) as opened, opened.cursor() as cursor:
        if before:
            cursor.execute(before)
        cursor.execute(f"{first} UNION ALL SELECT * FROM ({query})" if first else query)
        reader = cursor.fetch_record_batch()
        schema, numerics = _stored(reader.schema)
        batches: Iterator[pa.RecordBatch] = (_plain(batch, schema) for batch in reader)
        if first:
            batches = _without_first(batches)
        with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) as writer:
            for batch in rechunked(batches, GROUP_ROWS, GROUP_BYTES):
                writer.write_batch(batch, row_group_size=batch.num_rows)
    return numerics


def _read_sqlite(url: str, query: str, path: Path, source: Source) -> None:
    """Write the rows with the types that hold for every value."""
    driver = need("adbc_driver_sqlite.dbapi", PURPOSE)
    file = url.removeprefix("sqlite:///")
    if not Path(file).is_file():
        raise DataError(f"data.source.url: the database must exist, got nothing at {file}")
    address = f"file:{quote(file)}?mode=ro"
    with driver.connect(address) as opened, opened.cursor() as cursor:
        cursor.execute(query)
        names = cursor.fetch_record_batch().schema.names
        check_names(names, source.shown)
        tests = [f"max(typeof({quoted(name)}) = '{kind}') AS c{at}_{kind}" for at, name in enumerate(names) for kind in (*FIRST, "blob")]
        found: dict[str, int | None] = {}
        for start in range(0, len(tests), SQLITE_COLUMNS):
            cursor.execute(f"SELECT {', '.join(tests[start : start + SQLITE_COLUMNS])} FROM ({query})")
            found |= cursor.fetch_arrow_table().to_pylist()[0]
    kinds = {name: {kind for kind in (*FIRST, "blob") if found[f"c{at}_{kind}"]} for at, name in enumerate(names)}
    casts = []
    for name, held in kinds.items():
        if "blob" in held:
            raise DataError(f"column {name!r} of {source.shown} must hold words or numbers, holds a blob", field=name, hint=CAST_HINT)
        kind = "text" if "text" in held or not held else "real" if "real" in held else "integer"
        casts.append((name, kind))
    first = "SELECT " + ", ".join(f"{FIRST[kind]} AS {quoted(name)}" for name, kind in casts)
    typed = ", ".join(f"CAST({quoted(name)} AS {kind.upper()}) AS {quoted(name)}" for name, kind in casts)
    _read(driver.connect, address, f"SELECT {typed} FROM ({query})", path, first=first)


def _stored(schema: pa.Schema) -> tuple[pa.Schema, list[str]]:
    """The columns as they are written, and those whose text is PostgreSQL's `numeric`."""
    check_names(schema.names, "query")
    fields, numerics = [], []
    for field in schema:
        kind = field.type
        if isinstance(kind, pa.OpaqueType) and kind.type_name == "numeric":
            numerics.append(field.name)
            kind = kind.storage_type
        try:
            column_type(pa.field(field.name, kind))
        except DataError as error:
            raise DataError(error.message, field=field.name, hint=CAST_HINT) from error
        fields.append(pa.field(field.name, kind))
    if not fields:
        raise DataError("a query must give columns, gives none", hint="it must be a SELECT")
    return pa.schema(fields), numerics


def _plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [column.storage if isinstance(column, pa.ExtensionArray) else column for column in batch.columns]
    return pa.record_batch(columns, schema=schema)


def _without_first(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield next(batches).slice(1)
    yield from batches


def _all_times(connection: duckdb.DuckDBPyConnection, path: Path, name: str) -> bool:
    holds = HOLDS["timestamp"].format(x=quoted(name))
    found = connection.execute(f"SELECT bool_and({holds}) FROM read_parquet({literal(str(path))}) WHERE {quoted(name)} IS NOT NULL")
    return found.fetchall()[0][0] is True


def _with_timeout(url: str) -> str:
    if "connect_timeout=" in url or "PGCONNECT_TIMEOUT" in os.environ:
        return url
    return f"{url}{'&' if '?' in url else '?'}connect_timeout={CONNECT_TIMEOUT_S}"


def _with_secrets(url: str) -> str:
    """The address with `${NAME}` read from the environment."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"data.source.url: the environment must have {match[1]}, which ${{{match[1]}}} stands for")
        return quote(os.environ[match[1]], safe="")

    return re.sub(r"\$\{(\w+)\}", value, url)


@contextmanager
def _explained(source: Source, url: str) -> Iterator[None]:
    """A driver's errors become Tidemill's, without the password."""
    try:
        yield
    except TidemillError:
        raise
    except (OSError, pa.ArrowException, *_driver_errors()) as error:
        text = " ".join(str(error).split())
        for secret in {found for found in re.findall(r"://[^:/@]*:([^@]*)@|password=([^&]*)", url) for found in found if found}:
            text = text.replace(unquote(secret), "***").replace(secret, "***")
        if re.search(r"Failed to connect|unable to open|failed to open", text):
            raise Unavailable(f"the database must answer, {shown_address(source.url or '')}: {text}") from error
        raise DataError(f"{source.shown} must be answered by {shown_address(source.url or '')}: {text}") from error


def _driver_errors() -> tuple[type[Exception], ...]:
    return (need("adbc_driver_manager.dbapi", PURPOSE).Error,)


def shown_address(url: str) -> str:
    """The address without who asks."""
    return re.sub(r"://[^@/]*@", "://", url).partition("?")[0]
