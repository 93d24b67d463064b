"""Rows as callers have them, cut into requests, and the answers in kind.

| given | travels as | answered as |
|---|---|---|
| a list of records, texts or images (bytes) | JSON | a list of records |
| an Arrow table, or what exports an Arrow stream | Arrow | an Arrow table |
| a pandas frame | Arrow where pyarrow is installed, else JSON | a pandas frame with the same index |
| a Polars frame | Arrow | a Polars frame |
| NumPy: arrays by column, [N, C], or a structured array | tensors of the inference protocol | arrays by name |

A server without pyarrow takes no Arrow: the rows of a frame then go as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from tidemill.client.frames import ArrowRows, PandasRows, PolarsRows, RecordRows, Rows, pandas_records
from tidemill.core.errors import DataError


def read(given: Any) -> Rows:
    """The rows that a caller gave.

    Raises:
        DataError: If they are of no kind that is known.
    """
    library = type(given).__module__.partition(".")[0]
    if library == "numpy" or isinstance(given, Mapping):
        from tidemill.client.tensors import TensorRows

        return TensorRows(given)
    if library == "pandas" and hasattr(given, "columns"):
        return PandasRows(given) if find_spec("pyarrow") is not None else pandas_records(given)
    if library == "polars" and hasattr(given, "write_ipc_stream"):
        return PolarsRows(given)
    if hasattr(given, "__arrow_c_stream__") or hasattr(given, "__arrow_c_array__"):
        return ArrowRows(given)
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        return RecordRows(given if isinstance(given, Sequence) else list(given))
    raise DataError(
        f"rows must be a list of records, texts or images, an Arrow table, a pandas or Polars frame, or NumPy arrays, got {type(given).__name__}"
    )
