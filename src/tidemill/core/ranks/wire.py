"""Arrays between a process and the ranks that answer for it, over a stream socket.

A message is its length in eight bytes, then a line of JSON (names, types and shapes) and the arrays as they lie in memory. Nothing
in a message executes.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping

import numpy as np

from tidemill.core.errors import DataError

_LENGTH = struct.Struct("<Q")


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays of numbers as one message."""
    given = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    head = json.dumps([[name, array.dtype.str, array.shape] for name, array in given.items()]).encode()
    return b"".join([head, b"\n", *(array.tobytes() for array in given.values())])


def unpacked(message: bytes | bytearray | memoryview) -> dict[str, np.ndarray]:
    """The arrays of a message, which may be written to."""
    content = bytes(message)
    end = content.index(b"\n") + 1
    made, place = {}, end
    for name, kind, shape in json.loads(content[:end]):
        dtype = np.dtype(kind)
        if dtype.hasobject:
            raise DataError(f"array {name!r} must hold numbers, got {dtype}")
        count = int(np.prod(shape, dtype=np.int64))
        made[name] = np.frombuffer(content, dtype, count, place).reshape(shape).copy()
        place += count * dtype.itemsize
    return made


def send(to: socket.socket, message: bytes) -> None:
    """Send a whole message."""
    to.sendall(_LENGTH.pack(len(message)) + message)


def receive(source: socket.socket) -> bytes | None:
    """The next whole message; None where the other side has closed."""
    head = _exactly(source, _LENGTH.size)
    return None if head is None else _exactly(source, _LENGTH.unpack(head)[0])


def _exactly(source: socket.socket, count: int) -> bytes | None:
    buffer = bytearray(count)
    view, got = memoryview(buffer), 0
    while got < count:
        read = source.recv_into(view[got:])
        if read == 0:
            return None
        got += read
    return bytes(buffer)
