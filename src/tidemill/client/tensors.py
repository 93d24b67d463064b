"""NumPy arrays as tensors of the Open Inference Protocol, in its binary form, and its answers as arrays."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tidemill.client import calls
from tidemill.client.calls import Outgoing
from tidemill.client.frames import PART_BYTES, PART_ROWS, Rows
from tidemill.client.http1 import Reply
from tidemill.core.errors import DataError, TidemillError
from tidemill.core.schema import NULL_BOOLEAN, NULL_STRING, VALID_SUFFIX

HEAD_LENGTH = "inference-header-content-length"

_DATATYPES = {
    np.dtype(bool): "BOOL", np.dtype(np.float16): "FP16", np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64",
    **{np.dtype(f"{sign}int{bits}"): f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _DATATYPES.items()}


class TensorRows(Rows):
    """Arrays [N] by column, a structured array, [N, C] in the order of the model's columns, or texts [N]."""

    is_tensors = True

    def __init__(self, given: Any) -> None:
        self._given: np.ndarray | None = None
        self._columns: dict[str, np.ndarray] = {}
        if isinstance(given, Mapping):
            self._take({str(name): np.asarray(values) for name, values in given.items()})
            return
        array = np.asarray(given)
        if array.dtype.names is not None and array.ndim == 1:
            self._take({name: array[name] for name in array.dtype.names})
            return
        if array.ndim not in (1, 2):
            raise DataError(f"an array of rows must have shape [N, C], or [N] for one column, got {list(array.shape)}")
        self._given = array.reshape(len(array), -1) if len(array) else array.reshape(0, array.shape[-1] if array.ndim == 2 else 1)
        self.needs_names = True
        super().__init__(len(array), PART_ROWS)

    def name_columns(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Take the columns in the model's order.

        Raises:
            DataError: If there are more or fewer of them.
        """
        if self._given is None:
            return
        if self._given.shape[1] != len(inputs):
            names = ", ".join(str(column["name"]) for column in inputs[:12])
            raise DataError(f"an array of rows must have the model's {len(inputs)} columns ({names}), got {self._given.shape[1]}")
        self._take({str(column["name"]): self._given[:, i] for i, column in enumerate(inputs)})

    def request(self, at: str, start: int, stop: int) -> Outgoing:
        described: list[dict[str, Any]] = []
        raw: list[bytes] = []
        for name, values in self._columns.items():
            part = values[start:stop]
            datatype = _DATATYPES.get(part.dtype, "BYTES")
            content = _text_bytes(name, part) if datatype == "BYTES" else np.ascontiguousarray(part).tobytes()
            described.append(
                {"name": name, "shape": [len(part), 1], "datatype": datatype, "parameters": {"binary_data_size": len(content)}}
            )
            raw.append(content)
        head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
        headers = (("content-type", "application/octet-stream"), (HEAD_LENGTH, str(len(head))))
        return Outgoing("POST", f"{at}/infer", head + b"".join(raw), headers)

    def answer(self, reply: Reply) -> dict[str, np.ndarray]:
        calls.check(reply)
        stated = reply.headers.get(HEAD_LENGTH)
        size = int(stated) if stated is not None and stated.isdecimal() else len(reply.body)
        try:
            outputs, at, made = json.loads(reply.body[:size])["outputs"], size, {}
            for output in outputs:
                length = (output.get("parameters") or {}).get("binary_data_size")
                content = reply.body[at : at + length] if length is not None else None
                made[str(output["name"])] = _array(output, content)
                at += length or 0
        except (KeyError, ValueError, TypeError, struct.error) as error:
            raise TidemillError(f"the server must answer with tensors of the inference protocol: {error}") from error
        return made

    def joined(self, answers: Sequence[Any]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in answers]) for name in answers[0]}

    def _take(self, columns: Mapping[str, np.ndarray]) -> None:
        if not columns:
            raise DataError("rows must have at least one column, got none")
        for name, values in columns.items():
            if values.ndim != 1 and values.shape != (len(values), 1):
                raise DataError(f"column {name!r} must have shape [N] or [N, 1], got {list(values.shape)}", field=name)
            self._columns |= _typed(name, values.reshape(-1))
        lengths = {len(values) for values in self._columns.values()}
        if len(lengths) != 1:
            raise DataError(f"every column must have as many rows, got {sorted(lengths)}")
        num_rows, width = lengths.pop(), sum(max(values.dtype.itemsize, 8) for values in self._columns.values())
        super().__init__(num_rows, min(PART_ROWS, max(1, PART_BYTES // width)))
        self.needs_names = False


def _typed(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """A column as the protocol has it: times as microseconds, and of objects what they hold."""
    if values.dtype.kind == "M":
        return {name: values.astype("datetime64[us]").astype(np.int64)}  # NaT is the smallest number, which is null
    if values.dtype.kind in "US":
        return {name: values}
    if values.dtype.kind == "O":
        return _of_objects(name, values)
    if values.dtype not in _DATATYPES:
        raise DataError(f"column {name!r} must hold numbers, booleans, texts or times, got {values.dtype}", field=name)
    return {name: values.astype(values.dtype.newbyteorder("="), copy=False)}


def _of_objects(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """A column of Python objects: None is null in each of the protocol's types."""
    absent = np.array([_is_missing(value) for value in values], bool)
    given = values[~absent]
    if all(isinstance(value, (str, bytes)) for value in given):
        return {name: np.where(absent, NULL_STRING, values)}
    if all(isinstance(value, (bool, np.bool_)) for value in given):
        made = np.full(len(values), NULL_BOOLEAN, np.uint8)
        made[~absent] = given.astype(np.uint8)
        return {name: made}
    if all(isinstance(value, (int, np.integer)) for value in given):
        numbers = np.zeros(len(values), np.int64)
        numbers[~absent] = given.astype(np.int64)
        return {name: numbers, **({name + VALID_SUFFIX: ~absent} if absent.any() else {})}
    try:
        floats = np.full(len(values), np.nan)
        floats[~absent] = given.astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"column {name!r} must hold numbers, booleans or texts, got objects of other kinds", field=name) from None
    return {name: floats}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NaTType", "NAType")


def _text_bytes(name: str, values: np.ndarray) -> bytes:
    parts = []
    try:
        for value in values.tolist():
            text = value if isinstance(value, bytes) else str(value).encode()
            parts.append(struct.pack("<I", len(text)) + text)
    except UnicodeEncodeError as error:
        raise DataError(f"every text of column {name!r} must be valid Unicode: {error.reason}", field=name) from error
    return b"".join(parts)


def _array(output: Mapping[str, Any], content: bytes | None) -> np.ndarray:
    """One tensor of an answer; texts are objects."""
    shape, datatype = tuple(output["shape"]), output["datatype"]
    if content is None:
        return np.array(output["data"], _DTYPES.get(datatype, np.dtype(object))).reshape(shape)
    if datatype != "BYTES":
        return np.frombuffer(content, _DTYPES[datatype]).reshape(shape)
    texts, at = [], 0
    while at < len(content):
        (size,) = struct.unpack_from("<I", content, at)
        texts.append(content[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return np.array(texts, object).reshape(shape)
