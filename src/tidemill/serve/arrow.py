"""Arrow IPC bodies. pyarrow is imported when the first one comes."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import MissingDependency
from tidemill.core.load import need
from tidemill.serve.http import ARROW_FILE, JSON, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

_MARK = b"ARROW1"
_BATCHES = ("record batch", "dictionary")


def library() -> Any:
    """pyarrow.

    Raises:
        Refused: With 415, if it is not installed here.
    """
    try:
        return need("pyarrow", "Arrow")
    except MissingDependency as error:
        raise Refused(
            415, "media_type", "this server has no pyarrow and takes no Arrow", hint=f"send {JSON}, or install pyarrow beside the server"
        ) from error


def read(body: bytes, kind: str, *, max_bytes: int) -> pa.Table:
    """The table in an IPC stream or file, in one chunk, every offset checked.

    Args:
        max_bytes: Most bytes that its buffers may hold once they are unpacked.

    Raises:
        Refused: With 400, if it is none; with 413, if more would come out.
    """
    pa = library()
    if kind == ARROW_FILE:  # a stream between two marks and an index, which is not needed to read all of it
        if body[:6] != _MARK or body[-6:] != _MARK:
            raise Refused(400, "malformed", "the body must be an Arrow file, from ARROW1 to ARROW1")
        body = body[8:]
    try:
        _check_unpacked(pa, body, max_bytes)
        table = pa.ipc.open_stream(body).read_all()
        table.validate(full=True)
        for field in table.schema:
            getattr(field.type, "tz", field.name)  # both are decoded when they are looked at, and may be no text
        table = table.combine_chunks()
        _check_spread(pa, table, max_bytes)
        return table
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise Refused(400, "malformed", f"the body must be Arrow IPC: {error}") from error


def _check_unpacked(pa: Any, body: bytes, max_bytes: int) -> None:
    """Refuse compressed buffers that say of themselves, each in its first eight bytes, that they hold more than `max_bytes` together."""
    total = 0
    for message in pa.ipc.MessageReader.open_stream(body):
        if message.type not in _BATCHES or message.body is None:
            continue
        data = memoryview(message.body)
        for offset, length in _packed_buffers(bytes(message.metadata), message.type):
            total += max(0, *struct.unpack_from("<q", data, offset)) if length >= 8 else 0
        if total > max_bytes:
            reason = f"the buffers must hold at most {max_bytes} bytes when they are unpacked, they say {total}"
            raise Refused(413, "too_large", reason, hint="send the rows in parts")


def _check_spread(pa: Any, table: pa.Table, max_bytes: int) -> None:
    """Refuse texts that many rows point to, where each row's own copy would make them more than `max_bytes`."""
    import pyarrow.compute as pc

    total = 0
    for column in table.columns:
        for chunk in column.chunks:
            if pa.types.is_dictionary(chunk.type) and _has_length(pa, chunk.type.value_type):
                total += pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
            elif pa.types.is_string_view(chunk.type) or pa.types.is_binary_view(chunk.type):
                lengths = np.frombuffer(chunk.buffers()[1], np.int32)[::4][chunk.offset : chunk.offset + len(chunk)]  # of 16 bytes each
                total += int(lengths.sum(dtype=np.int64, where=chunk.is_valid().to_numpy(zero_copy_only=False)))
    if total > max_bytes:
        reason = f"the texts of all rows must be at most {max_bytes} bytes together, are {total}"
        raise Refused(413, "too_large", reason, hint="send the rows in parts")


def _has_length(pa: Any, kind: pa.DataType) -> bool:
    t = pa.types
    return any(
        is_kind(kind) for is_kind in (t.is_string, t.is_large_string, t.is_string_view, t.is_binary, t.is_large_binary, t.is_binary_view)
    )


def _packed_buffers(metadata: bytes, kind: str) -> list[tuple[int, int]]:
    """Offset and length of a batch's buffers where they are compressed; none where not.

    Source: the Arrow columnar format's Message.fbs. A table of a flatbuffer begins with the distance back to its list of fields.
    """

    def field(table: int, number: int) -> int:
        """Where a table's field is; 0 where it is left out."""
        fields = table - struct.unpack_from("<i", metadata, table)[0]
        at = 4 + 2 * number
        size = struct.unpack_from("<H", metadata, fields)[0]
        offset = struct.unpack_from("<H", metadata, fields + at)[0] if at < size else 0
        return table + offset if offset else 0

    def follow(at: int) -> int:
        return int(at + struct.unpack_from("<I", metadata, at)[0])

    batch = follow(field(follow(0), 2))
    if kind == "dictionary":
        batch = follow(field(batch, 1))
    if not field(batch, 3) or not field(batch, 2):
        return []
    buffers = follow(field(batch, 2))
    count = struct.unpack_from("<I", metadata, buffers)[0]
    return [struct.unpack_from("<qq", metadata, buffers + 4 + 16 * i) for i in range(count)]


def write(columns: Mapping[str, np.ndarray], kind: str) -> bytes:
    """Columns as an IPC stream or file; a matrix becomes a column of fixed-size lists."""
    pa = library()
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]) if values.ndim == 2 else pa.array(values)
        for name, values in columns.items()
    }
    table = pa.table(arrays)
    sink = io.BytesIO()
    with (pa.ipc.new_file if kind == ARROW_FILE else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
