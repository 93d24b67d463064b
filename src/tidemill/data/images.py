"""Columns of bytes, such as files of images, as base64 text: what a request brings too, and what every engine can hold."""

from __future__ import annotations

import base64

import pyarrow as pa
import pyarrow.types as t

from tidemill.core.engine import DataEngine, Rows


def encoded(engine: DataEngine, rows: Rows) -> Rows:
    """The rows with each column of bytes in base64."""
    names = {field.name for field in rows.schema if _is_bytes(field.type)}
    if not names:
        return rows
    schema = pa.schema([pa.field(field.name, pa.string()) if field.name in names else field for field in rows.schema])

    def convert(batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = [_texts(column) if name in names else column for name, column in zip(batch.schema.names, batch.columns, strict=True)]
        return pa.record_batch(columns, schema=schema)

    return engine.map_batches(rows, convert, schema)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind) or t.is_binary_view(kind))


def _texts(column: pa.Array) -> pa.Array:
    return pa.array([None if value is None else base64.b64encode(value).decode() for value in column.to_pylist()], pa.string())
