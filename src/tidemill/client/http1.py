"""HTTP/1.1 as a caller speaks it: a request as bytes, answers from bytes. Knows no connection.

Both clients and the load generator read and write through it; what RFC 9112 leaves to servers alone is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tidemill.core.errors import ConfigError

MAX_HEAD_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: header names in lower case, the body as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class BrokenAnswer(Exception):
    """What came is no answer of HTTP/1.1."""


def request(method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes | None) -> bytes:
    """The bytes of one request; the length of its body is stated."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def header(name: str, value: str) -> tuple[str, str]:
    """A header that ends where it ends.

    Raises:
        ConfigError: If the value holds what no header may, such as a line break. Does not show it, since it may be a secret.
    """
    if not value.isascii() or not value.isprintable() or not value.strip():
        raise ConfigError(f"{name}: must be printable ASCII on one line, got something else")
    return name, value


class Reader:
    """Answers from what a connection brings, one after the other.

    `is_started` says that an answer has begun, `keeps` whether the connection may be used again after the last one.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._length: int | None = None
        self._chunks: bytearray | None = None
        self.keeps = True

    @property
    def is_started(self) -> bool:
        return self._head is not None or bool(self._buffer)

    def feed(self, data: bytes) -> Reply | None:
        """The answer, once these bytes make it whole.

        Raises:
            BrokenAnswer: If they are none.
        """
        self._buffer += data
        while self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    raise BrokenAnswer("its head has no end")
                return None
            head = bytes(self._buffer[:end])
            del self._buffer[: end + 4]
            self._begin(head)
        if self._chunks is not None:
            return self._finished(bytes(self._chunks)) if self._take_chunks(self._chunks) else None
        if self._length is None or len(self._buffer) < self._length:
            return None
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        return self._finished(body)

    def end(self) -> Reply | None:
        """The answer that ends with the connection; None where none does."""
        if self._head is None or self._length is not None or self._chunks is not None:
            return None
        body = bytes(self._buffer)
        self._buffer.clear()
        return self._finished(body)

    def _begin(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise BrokenAnswer(f"its first line is {first[:40]!r}")
        status = int(rest[:3])
        if 100 <= status < 200:  # "go on", and others that come before the answer
            return
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        self._head = (status, headers)
        said = headers.get("connection", "").lower()
        self.keeps = "close" not in said and (version != "HTTP/1.0" or "keep-alive" in said)
        self._chunks = None
        if status in (204, 304):
            self._length = 0
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            self._chunks = bytearray()
        elif (stated := headers.get("content-length")) is None:
            self._length, self.keeps = None, False
        elif stated.isdecimal():
            self._length = int(stated)
        else:
            raise BrokenAnswer(f"its length is {stated[:20]!r}")

    def _take_chunks(self, made: bytearray) -> bool:
        """Move whole chunks over; whether the last one was there."""
        while True:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return False
            try:
                size = int(bytes(self._buffer[:end]).partition(b";")[0], 16)
            except ValueError:
                raise BrokenAnswer("a chunk has no size") from None
            if size == 0:
                trailers = self._buffer.find(b"\r\n\r\n", end)
                if trailers < 0:
                    return False
                del self._buffer[: trailers + 4]
                return True
            if len(self._buffer) < end + 2 + size + 2:
                return False
            made += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]

    def _finished(self, body: bytes) -> Reply:
        status, headers = self._head or (0, {})
        self._head, self._length, self._chunks = None, None, None
        return Reply(status, headers, body)
