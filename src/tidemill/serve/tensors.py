"""Tensors of the Open Inference Protocol to NumPy and back, in JSON and as raw bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from tidemill.core.schema import NULL_BOOLEAN, NULL_TIMESTAMP, Column
from tidemill.serve.http import Refused

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": np.float32, "BYTES": np.object_,
}  # fmt: skip

_COLUMNS = {"boolean": "BOOL", "int64": "INT64", "float32": "FP32", "float64": "FP64", "string": "BYTES", "timestamp": "INT64"}


def datatype(values: np.ndarray | Column) -> str:
    """The protocol's name of an array's or a column's type."""
    if isinstance(values, Column):
        return _COLUMNS[values.type]
    kind = values.dtype
    if kind.kind in "OU":
        return "BYTES"
    return next(name for name, known in NUMPY.items() if known == kind)


def from_json(name: str, declared: str, shape: Sequence[int], data: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """A tensor given as numbers, booleans or texts, nested or flat; null stands for a missing value.

    Returns:
        The values in the declared shape, and which of whole numbers are given (None where all are).

    Raises:
        Refused: With 422, if the values are not of the declared type, or not as many as the shape says; names the input.
    """
    values = _flat(name, data)
    check_shape(name, declared, shape, len(values))
    kinds = set(map(type, values))
    has_null = type(None) in kinds
    kinds.discard(type(None))
    if declared == "BYTES":
        _expect(name, kinds <= {str}, "texts")
        return np.array(values, object).reshape(shape), None
    if declared == "BOOL":
        _expect(name, kinds <= {bool} or (kinds <= {int, bool} and {v for v in values if v is not None} <= {0, 1}), "true or false")
        return np.array([NULL_BOOLEAN if v is None else v for v in values], np.uint8).reshape(shape), None
    if declared.startswith(("FP", "BF")):
        _expect(name, kinds <= {int, float}, "numbers")
        try:
            with np.errstate(over="ignore"):
                return np.array([np.nan if v is None else v for v in values] if has_null else values, NUMPY[declared]).reshape(shape), None
        except OverflowError:
            raise Refused(422, "field", f"input {name!r} must hold {declared} values", field=name) from None
    _expect(name, kinds <= {int}, "whole numbers")
    limits = np.iinfo(NUMPY[declared])
    if any(v is not None and not limits.min <= v <= limits.max for v in values):
        raise Refused(422, "field", f"input {name!r} must hold {declared} values, {limits.min} to {limits.max}", field=name)
    valid = np.array([v is not None for v in values]).reshape(shape) if has_null else None
    return np.array([0 if v is None else v for v in values] if has_null else values, NUMPY[declared]).reshape(shape), valid


def null_times(column: Column, array: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Whole numbers of which some are not given, as `column` writes that; integers keep it in a tensor of their own.

    Raises:
        Refused: With 422, if the column has no null.
    """
    if column.type == "timestamp":
        return np.where(valid, array.astype(np.int64), NULL_TIMESTAMP)
    if column.type in ("float32", "float64"):
        return np.where(valid, array.astype(np.float64), np.nan)
    if not column.nullable:
        raise Refused(422, "field", f"input {column.name!r} must not be null", field=column.name)
    return array


def from_bytes(name: str, declared: str, shape: Sequence[int], raw: memoryview) -> np.ndarray:
    """A tensor given as raw little-endian bytes; texts each after a length of four bytes.

    Raises:
        Refused: With 400, if the bytes are not what type and shape say; names the input.
    """
    count = check_shape(name, declared, shape, None)
    if declared == "BYTES":
        return _texts(name, raw, count).reshape(shape)
    width = 2 if declared == "BF16" else np.dtype(NUMPY[declared]).itemsize
    if len(raw) != count * width:
        raise Refused(400, "malformed", f"input {name!r} must hold {count * width} bytes, got {len(raw)}", field=name)
    if declared == "BF16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(raw, NUMPY[declared]).reshape(shape)


def to_bytes(values: np.ndarray) -> bytes:
    """Raw little-endian bytes of a tensor."""
    if values.dtype.kind not in "OU":
        return np.ascontiguousarray(values).tobytes()
    texts = [str(value).encode() for value in values.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def check_shape(name: str, declared: str, shape: Sequence[int], given: int | None) -> int:
    """Number of values that the shape says.

    Raises:
        Refused: With 422, if type or shape are not the protocol's, or `given` is another number.
    """
    if declared not in NUMPY:
        raise Refused(422, "field", f"input {name!r} must have a datatype of {', '.join(NUMPY)}, got {declared!r}", field=name)
    if not 1 <= len(shape) <= 2 or any(not 0 <= size < 2**31 for size in shape):
        raise Refused(422, "field", f"input {name!r} must have shape [N] or [N, 1], got {list(shape)}", field=name)
    count = int(np.prod(shape, dtype=np.int64))
    if given is not None and given != count:
        raise Refused(422, "field", f"input {name!r} of shape {list(shape)} must hold {count} values, got {given}", field=name)
    return count


def _flat(name: str, data: Any) -> list[Any]:
    if type(data) is not list:
        raise Refused(422, "field", f"input {name!r} must hold its values in a list under 'data'", field=name)
    if data and type(data[0]) is list:
        if any(type(row) is not list for row in data):
            raise Refused(422, "field", f"input {name!r} must be nested evenly", field=name)
        return [value for row in data for value in row]
    return data


def _expect(name: str, holds: bool, what: str) -> None:
    if not holds:
        raise Refused(422, "field", f"input {name!r} must hold {what}", field=name)


def _texts(name: str, raw: memoryview, count: int) -> np.ndarray:
    texts, at = np.empty(min(count, len(raw) // 4 + 1), object), 0
    for i in range(count):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise Refused(400, "malformed", f"input {name!r} must hold {count} texts, each after its length", field=name)
        texts[i] = bytes(raw[at + 4 : end])
        at = end
    if at != len(raw):
        raise Refused(400, "malformed", f"input {name!r} must hold {count} texts and no more", field=name)
    return texts
