"""Rows of an image package: one column that holds files of images, as bytes; JSON brings them in base64."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.graph import Arrays, RowSignature

if TYPE_CHECKING:
    import pyarrow as pa


class ImageSignature(RowSignature):
    """Images in any form as an object array [N, 1] of bytes. Immutable, safe from several threads.

    In JSON an image is base64, plain, as a `data:` URL or as `{"b64": "..."}`; in tensors and Arrow it is bytes, or base64 as text.
    """

    @property
    def column(self) -> str:
        return self.schema.names[0]

    def from_bytes(self, images: Sequence[bytes]) -> Arrays:
        """Inputs of images as they lie in their files."""
        return self._made(images)

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> Arrays:
        values = []
        for record in records:
            if not isinstance(record, Mapping):
                raise DataError("every record must be an object of fields")
            if self.column not in record:
                raise self._missing(self.column, record)
            values.append(record[self.column])
        return self._made(values)

    def from_record(self, record: Mapping[str, Any]) -> Arrays:
        return self.from_records((record,))

    def from_tensors(self, tensors: Mapping[str, np.ndarray]) -> Arrays:
        if self.column not in tensors:
            raise self._missing(self.column, tensors)
        array = np.asarray(tensors[self.column])
        if array.dtype.kind not in "OSU" or array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1):
            raise DataError(f"input {self.column!r} must be images [N] or [N, 1] as bytes, got {array.dtype}", field=self.column)
        return self._made(array.ravel().tolist())

    def from_arrow(self, batch: pa.RecordBatch | pa.Table) -> Arrays:
        import pyarrow.types as t

        index = batch.schema.get_field_index(self.column)
        if index < 0:
            raise self._missing(self.column, batch.schema.names)
        kind = batch.schema.field(index).type
        kind = kind.value_type if t.is_dictionary(kind) else kind
        if not (t.is_binary(kind) or t.is_large_binary(kind) or t.is_string(kind) or t.is_large_string(kind) or t.is_null(kind)):
            raise DataError(f"column {self.column!r} must hold images as binary, or base64 as text, is {kind}", field=self.column)
        return self._made(batch.column(index).to_pylist())

    def _made(self, values: Sequence[Any]) -> Arrays:
        made = np.empty((len(values), 1), object)
        for row, value in enumerate(values):
            try:
                made[row, 0] = image_bytes(value)
            except DataError as error:
                where = f" in row {row}" if len(values) > 1 else ""
                raise DataError(f"field {self.column!r} {error.message}{where}", field=self.column, hint=error.hint) from error
        return {self.column: made}


def image_bytes(value: Any) -> bytes:
    """The bytes of an image given as bytes or in base64.

    Raises:
        DataError: If it is neither; says what it must be.
    """
    if isinstance(value, Mapping) and len(value) == 1 and "b64" in value:
        value = value["b64"]
    if isinstance(value, str):
        text = value.partition(",")[2] if value.startswith("data:") else value
        try:
            value = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise DataError("must be base64 of an image", hint="or its bytes, with the content type of the image") from None
    if not isinstance(value, bytes):
        raise DataError(f"must be an image in base64, got {'null' if value is None else type(value).__name__}")
    if not value:
        raise DataError("must be an image, got no byte")
    return value


def read_files(table: pa.Table | pa.RecordBatch, column: str, folder: Path) -> pa.Array:
    """A column of images as binary; texts are paths of files, relative to `folder`. For tables of one's own, never for requests.

    Raises:
        DataError: If a file cannot be read; names it and the row.
    """
    import pyarrow as pa

    index = table.schema.get_field_index(column)
    if index < 0:
        raise DataError(f"column {column!r} must be given", field=column)
    values = table.column(index)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise DataError(f"column {column!r} must hold images as binary, or paths of files, is {kind}", field=column)
    read = []
    for row, path in enumerate(values.to_pylist()):
        try:
            read.append((folder / path).read_bytes() if path is not None else None)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"column {column!r} must hold paths of images, {path!r} in row {row} cannot be read: {reason}", field=column
            ) from error
    return pa.array(read, pa.binary())
