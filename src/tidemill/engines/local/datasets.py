"""What Arrow reads for DuckDB: ORC and Arrow files anywhere, Parquet in an object store. Columns and partitions stay pruned.

DuckDB hands an Arrow dataset the columns and conditions of a query, and Arrow reads no other columns, stripes or folders.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.orc as orc
import pyarrow.parquet as pq

from tidemill.core.engine import Format
from tidemill.core.errors import DataError

NAMES = {"parquet": "Parquet", "orc": "ORC", "arrow": "Arrow"}
HINTS = {"arrow": "of Arrow's formats, files are read; streams (.arrows) and the first Feather are not: save them as files again"}
IN_NO_FOLDER = "__HIVE_DEFAULT_PARTITION__"


def arrow_dataset(files: Mapping[str, str], form: Format, schema: pa.Schema, file_system: Any) -> ds.Dataset:
    """A dataset of the files in their order, folders named `key=value` as columns.

    Args:
        files: What to read, each with its path below the source's folder.
        schema: The common columns of the files.
    """
    keys = _hive_types(list(files.values()))
    partitioning = ds.HivePartitioning(pa.schema(list(keys.items())), null_fallback=IN_NO_FOLDER) if keys else None
    names = {"parquet": "parquet", "orc": "orc", "arrow": "ipc"}
    known = pa.schema([field for field in schema if field.name not in keys])
    full = pa.schema([*known, *(pa.field(name, kind) for name, kind in keys.items())])
    return ds.dataset(list(files), schema=full, format=names[form], filesystem=file_system, partitioning=partitioning)


def checked_schema(files: Mapping[str, str], form: Format, file_system: Any) -> pa.Schema:
    """The columns, when all files are whole and have the same.

    Args:
        files: What to read, each with the path to show for it.

    Raises:
        DataError: If a file is torn, of another format, or of another shape than the first.
    """
    first: tuple[str, pa.Schema] | None = None
    for file, shown in files.items():
        schema = _schema(file, shown, form, file_system).remove_metadata()
        if not len(schema):
            raise DataError(f"source {shown} must have columns, has none")
        check_names(schema.names, shown)
        if first is None:
            first = (shown, schema)
        elif first[1].names != schema.names or first[1].types != schema.types:
            shapes = [{f"{field.name} {field.type}" for field in other} for other in (first[1], schema)]
            odd = sorted(shapes[0] ^ shapes[1]) or ["their order"]
            raise DataError(f"source files must have the same columns, {shown} and {first[0]} differ: {', '.join(odd[:6])}")
    return first[1] if first else pa.schema([])


def is_hive(below: Sequence[str]) -> bool:
    """Whether the folders of the paths are named `key=value`."""
    return any("=" in part for part in PurePath(below[0]).parts[:-1])


def check_names(names: Sequence[str], shown: str) -> None:
    """Raises DataError where two names are the same, case aside."""
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            raise DataError(
                f"source {shown}: names of columns must differ by more than case, got {seen[name.lower()]!r} and {name!r}", field=name
            )
        seen[name.lower()] = name


def _schema(file: str, shown: str, form: Format, file_system: Any) -> pa.Schema:
    try:
        with file_system.open_input_file(file) as opened:
            if form == "parquet":
                return pq.read_schema(opened)
            if form == "orc":
                return orc.ORCFile(opened).schema
            with pa.ipc.open_file(opened) as reader:
                return reader.schema
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        raise DataError(
            f"source {shown} must be a whole {NAMES[form]} file, it is truncated or of another format: {text}", hint=HINTS.get(form)
        ) from error


def _hive_types(below: list[str]) -> dict[str, pa.DataType]:
    """The columns that the folders' names give: whole numbers, dates, else text."""
    values: dict[str, list[str]] = {}
    for path in below:
        for part in PurePath(path).parts[:-1]:
            key, equals, value = part.partition("=")
            if equals and value != IN_NO_FOLDER:
                values.setdefault(key, []).append(unquote(value))
    return {key: _type_of(texts) for key, texts in values.items()}


def _type_of(texts: list[str]) -> pa.DataType:
    if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", text) for text in texts):
        return pa.int64()
    try:
        for text in texts:
            if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
                return pa.string()
            dt.date.fromisoformat(text)
    except ValueError:
        return pa.string()
    return pa.date32()
