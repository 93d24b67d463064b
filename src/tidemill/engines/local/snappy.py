"""Snappy's framing format (google/snappy, framing_format.txt): chunks of at most 64 KiB, each with a checksum of its bytes.

Arrow unpacks the chunks; the frames around them and CRC-32C, which no library here has, are read in this file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
MAX_CHUNK = 65_536
LANE = 128


def unframed(file: BinaryIO) -> BinaryIO:
    """The unpacked bytes of a framed file, as they are read.

    Raises:
        OSError: While reading, if the file is torn, changed or has no frames.
    """
    return cast(BinaryIO, io.BufferedReader(_Reader(_chunks(file)), MAX_CHUNK))


class _Reader(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        size = min(len(view), len(self._rest))
        view[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    codec = pa.Codec("snappy")
    if file.read(len(IDENTIFIER)) != IDENTIFIER:
        raise OSError("it does not begin with Snappy's framing; raw Snappy, without frames, is not read")
    while header := file.read(4):
        size = int.from_bytes(header[1:], "little") if len(header) == 4 else -1
        body = file.read(size) if size >= 0 else b""
        if len(body) != size:
            raise OSError("it ends within a chunk")
        kind = header[0]
        if kind in (0x00, 0x01):
            plain = body[4:]
            if kind == 0x00:
                length = _length(plain)
                if length > MAX_CHUNK:
                    raise OSError(f"a chunk must hold at most {MAX_CHUNK} bytes, says {length}")
                plain = codec.decompress(plain, decompressed_size=length).to_pybytes()
            if masked_crc32c(plain) != int.from_bytes(body[:4], "little"):
                raise OSError("a chunk does not match its checksum")
            yield plain
        elif 0x02 <= kind <= 0x7F:
            raise OSError(f"it has a chunk of unknown kind {kind:#x}")


def _length(packed: bytes) -> int:
    """The unpacked length, which a chunk opens with: seven bits a byte, low ones first."""
    length = 0
    for position, byte in enumerate(packed[:5]):
        length |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return length
    raise OSError("a chunk has no length")


def masked_crc32c(data: bytes) -> int:
    """CRC-32C, rotated and shifted as the format asks.

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes: lanes side by side in NumPy, then joined."""
    lanes = len(data) // LANE
    table, over_lane = _tables()
    first, second, third, fourth = over_lane
    state = 0xFFFFFFFF
    if lanes:
        bytes_LN = np.frombuffer(data, np.uint8, lanes * LANE).reshape(lanes, LANE).T
        crcs_N = np.zeros(lanes, np.uint32)
        for byte_N in bytes_LN:
            crcs_N = table[(crcs_N ^ byte_N) & 0xFF] ^ (crcs_N >> np.uint32(8))
        for crc in crcs_N.tolist():  # the state moves over a lane of zeros, and takes the lane's own
            state = first[state & 255] ^ second[state >> 8 & 255] ^ third[state >> 16 & 255] ^ fourth[state >> 24] ^ crc
    for byte in data[lanes * LANE :]:
        state = int(table[(state ^ byte) & 0xFF]) ^ state >> 8
    return state ^ 0xFFFFFFFF


@cache
def _tables() -> tuple[np.ndarray, list[list[int]]]:
    """The step of one byte, shape (256,), and what each byte of the state becomes over a lane of zeros, shape (4, 256)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> np.uint32(1) ^ np.uint32(0x82F63B78), table >> np.uint32(1)).astype(np.uint32)
    shift = (np.arange(256, dtype=np.uint32)[None, :] << np.array([0, 8, 16, 24], dtype=np.uint32)[:, None]).astype(np.uint32)
    for _ in range(LANE):
        shift = table[shift & 0xFF] ^ (shift >> np.uint32(8))
    return table, shift.tolist()
