"""Arrow IPC bodies. pyarrow is imported when the first one comes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from tidemill.core.errors import MissingDependency
from tidemill.core.load import need
from tidemill.serve.http import ARROW_FILE, JSON, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pyarrow as pa


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


def read(body: bytes, kind: str) -> pa.Table:
    """The table in an IPC stream or file, in one chunk, every offset checked.

    Raises:
        Refused: With 400, if it is none.
    """
    pa = library()
    try:
        opened = pa.ipc.open_file(io.BytesIO(body)) if kind == ARROW_FILE else pa.ipc.open_stream(body)
        table = opened.read_all()
        table.validate(full=True)
        for field in table.schema:
            getattr(field.type, "tz", field.name)  # both are decoded when they are looked at, and may be no text
        return table.combine_chunks()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Refused(400, "malformed", f"the body must be Arrow IPC: {error}") from error


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
