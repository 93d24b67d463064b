"""The prepared table on disk: narrowed to six types, in an order of its own content, with the hashes that later steps need."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.engine import DataEngine, Partitioning, Rows, Source, Target, row_hash
from tidemill.core.errors import ConfigError, DataError, nearest
from tidemill.core.schema import VALID_SUFFIX, Schema
from tidemill.data.config import DataConfig

# Columns of the staged table beside the user's own.
ROW, KEY, ORDER, STRATUM = "__tidemill_row", "__tidemill_key", "__tidemill_order", "__tidemill_stratum"
INTERNAL = (ROW, KEY, ORDER, STRATUM)
SIGN = np.uint64(1 << 63)


class Sample(Protocol):
    """Which rows to keep, told by their hash and, where there are strata, their values."""

    def chosen(self, batch: pa.RecordBatch, hashes: np.ndarray) -> np.ndarray: ...


def staged(
    engine: DataEngine, table: Rows, schema: Schema, config: DataConfig, out: Path, *, seed: int, sample: Sample | None = None
) -> Rows:
    """The table written to `out`, sorted by all its columns, so that the same rows give the same bytes whatever came first.

    Beside the columns it holds `ROW`, a hash of the whole row; `KEY`, one of the keys, where there are any; `ORDER`, the number
    by which rows are split, null where the target is null; and `STRATUM`, where there are strata.

    Args:
        schema: What `checked_table` told.
        sample: Which rows to keep; all where None.

    Raises:
        DataError: If a column has values that cannot be narrowed.
    """
    lead = [config.split.column] if config.split.column else list(config.keys)
    order = tuple(dict.fromkeys([*lead, *schema.names]))
    extra = _staged_fields(config)
    full = pa.schema([*schema.to_arrow(), *extra])

    def narrowed_with_hashes(batch: pa.RecordBatch) -> pa.RecordBatch:
        narrow = narrowed(batch, schema)
        hashes = _hashes(narrow, config, seed)
        if sample is not None:
            chosen = sample.chosen(narrow, hashes[KEY] if config.keys else hashes[ROW])
            narrow = narrow.filter(pa.array(chosen))
            hashes = {name: values[chosen] for name, values in hashes.items()}
        missing = pc.is_null(narrow.column(config.target)).to_numpy(zero_copy_only=False)
        columns = [pa.array(signed(hashes[field.name]), mask=missing if field.name == ORDER else None) for field in extra]
        return pa.record_batch([*narrow.columns, *columns], schema=full)

    sort = Partitioning(keys=order, kind="sort")
    if sample is not None:
        rows = engine.exchange(engine.map_batches(table, narrowed_with_hashes, full), sort)
    else:
        rows = engine.map_batches(engine.exchange(table, sort), narrowed_with_hashes, full)
    engine.write(rows, Target(path=out))
    return engine.scan(Source(path=str(out), format="parquet"), None)


def checked_table(engine: DataEngine, table: Rows, config: DataConfig) -> tuple[Rows, Schema]:
    """The columns that are kept, and their narrowed types.

    Raises:
        ConfigError: If a way to split or sample does not fit a column's type.
        DataError: If a column that the configuration names is absent, or one has a type that cannot be narrowed.
    """
    schema = _checked_schema(table.schema, config)
    if config.columns is None:
        return table, schema
    return engine.rows(engine.frame(table).select(*config.columns)), schema.select(config.columns)


def narrowed(batch: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    """The batch in the schema's six types; NaN becomes null, since the two are one value from the model's input on.

    Raises:
        DataError: If a value does not fit its type: an integer beyond 64 bits, a time finer than a microsecond.
    """
    columns = []
    target = schema.to_arrow()
    for field in target:
        column = batch.column(batch.schema.get_field_index(field.name))
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        try:
            column = column.cast(field.type)
        except pa.ArrowInvalid as error:
            hint = "round it to microseconds in prepare" if pa.types.is_timestamp(field.type) else "cast it in prepare"
            raise DataError(f"column {field.name!r} must fit {schema[field.name].type}: {error}", field=field.name, hint=hint) from error
        if pa.types.is_floating(field.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), pc.add(column, pa.scalar(0.0, field.type)))
        columns.append(column)
    return pa.record_batch(columns, schema=target)


def mixed(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Another uniform hash of uint64 hashes, one per seed (the finalizer of SplitMix64; Steele and others, 2014)."""
    with np.errstate(over="ignore"):
        z = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def signed(hashes: np.ndarray) -> np.ndarray:
    """Hashes in the order of their size as whole numbers of 64 bits, which is how the staged table holds them."""
    return (hashes ^ SIGN).view(np.int64)


def unsigned(column: Any) -> np.ndarray:
    """The uint64 hashes of one of the staged table's own columns, which hold no null here."""
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.int64).view(np.uint64) ^ SIGN


def _checked_schema(arrow: pa.Schema, config: DataConfig) -> Schema:
    if not len(arrow):
        raise DataError("the table must have columns, has none")
    for name in arrow.names:
        if not name or name.endswith(VALID_SUFFIX) or name in INTERNAL:
            raise DataError(f"a column must not be named {name!r}, which has a meaning of its own", field=name, hint="rename it in prepare")
    if len(set(arrow.names)) < len(arrow.names):
        twice = next(name for name in arrow.names if arrow.names.count(name) > 1)
        raise DataError(f"column {twice!r} must occur once in the table", field=twice, hint="rename one in prepare")
    sampling = config.sampling()
    split = [("data.split.column", config.split.column)] if config.split.column else []
    split += [("data.sample.column", sampling.column)] if sampling.column else []
    weight = [("data.weight", config.weight)] if config.weight else []
    named = [("data.target", config.target), *(("data.keys", key) for key in config.keys), *weight, *split]
    for role, name in [
        *named,
        *(("data.checks", name) for name in config.checks),
        *(("data.columns", name) for name in config.columns or ()),
    ]:
        if name not in arrow.names:
            close = nearest(name, arrow.names)
            hint = f"did you mean {close!r}?" if close else f"it has {', '.join(arrow.names[:20])}"
            raise DataError(f"{role}: the table must have the column {name!r}", field=name, hint=hint)
    used = {config.target, config.weight, *config.keys}
    if used.issuperset(arrow.names if config.columns is None else config.columns):
        raise DataError(f"the table must have a column to learn from beside {', '.join(sorted(filter(None, used)))}, has none")
    wanted = arrow if config.columns is None else pa.schema([arrow.field(name) for name in config.columns])
    Schema.from_arrow(wanted)
    schema = Schema.from_arrow(pa.schema([field.with_nullable(True) for field in arrow if field.name in wanted.names]))
    if config.split.by == "time" and config.split.column and schema[config.split.column].type not in ("timestamp", "int64"):
        raise DataError(
            f"data.split.column: {config.split.column!r} must be a timestamp or whole number, is {schema[config.split.column].type}",
            field=config.split.column,
            hint="parse it in prepare, such as with str.to_datetime",
        )
    if config.split.by == "stratified" and config.split.column is None and schema[config.target].type in ("float32", "float64"):
        raise ConfigError(
            f"data.split: stratified needs classes, the target {config.target!r} is {schema[config.target].type}",
            hint='name a column of strata: split = { by = "stratified", column = "..." }',
        )
    strata = sampling.column or config.target
    if sampling.by == "stratified" and schema[strata].type in ("float32", "float64"):
        raise ConfigError(
            f"data.sample: stratified needs classes, {strata!r} is {schema[strata].type}",
            hint='name a column of strata: sample = { by = "stratified", column = "..." }',
        )
    return schema


def _staged_fields(config: DataConfig) -> list[pa.Field]:
    names = [ROW, *([KEY] if config.keys else []), ORDER, *([STRATUM] if config.split.by == "stratified" else [])]
    return [pa.field(name, pa.int64()) for name in names]


def _hashes(batch: pa.RecordBatch, config: DataConfig, seed: int) -> dict[str, np.ndarray]:
    hashes = {ROW: row_hash(batch, batch.schema.names)}
    if config.keys:
        hashes[KEY] = row_hash(batch, config.keys)
    by, column = config.split.by, config.split.column
    if by == "time":
        times = batch.column(batch.schema.get_field_index(column))
        _no_nulls(times, column, "time")
        # The newest first: the complement turns the order round.
        hashes[ORDER] = ~(times.cast(pa.int64()).to_numpy(zero_copy_only=False).view(np.uint64) ^ SIGN)
    elif by == "group":
        _no_nulls(batch.column(batch.schema.get_field_index(column)), column, "group")
        hashes[ORDER] = mixed(row_hash(batch, [str(column)]), seed)
    else:
        hashes[ORDER] = mixed(hashes[KEY] if config.keys else hashes[ROW], seed)
    if by == "stratified":
        hashes[STRATUM] = row_hash(batch, [column or config.target])
    return hashes


def _no_nulls(values: pa.Array, column: str | None, by: str) -> None:
    if values.null_count:
        raise DataError(f"data.split.column: {column!r} must not be null to split by {by}", field=column, hint="drop those rows in prepare")
