"""Heads of HTTP/1.1: what a request's says, whether it may say that, and how a response's is written."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from urllib.parse import unquote

from tidemill.serve.http import Headers, Refused, Response

# What a request's head may hold: bytes of its address, bytes and number of its fields.
MAX_URL_BYTES = 8_192
MAX_HEAD_BYTES = 65_536
MAX_FIELDS = 128

# Heads that are known again: how many, and of how many bytes each at most.
KNOWN_HEADS = 512
KNOWN_BYTES = 1_024
HEAD_END = b"\r\n\r\n"

Fields = list[tuple[bytes, bytes]]
"""Names and values of a head's fields, as they came."""

METHODS = {method.encode(): method for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}

# How usual names are written usually, so that they need not be put in lower case each time.
_NAMES = {
    form.encode(): name
    for name in (
        "host", "user-agent", "accept", "accept-encoding", "accept-language", "connection", "content-type", "content-length", "content-encoding",
        "transfer-encoding", "expect", "authorization", "origin", "traceparent", "x-api-key", "x-request-id", "x-forwarded-for",
        "inference-header-content-length",
    )
    for form in (name, name.title())
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a request says that has nothing special to it: its body is as long as `size`, and the connection goes on behind it."""

    method: str
    path: str
    query: str
    headers: Headers
    """Not to be changed: it is the same for every request with this head."""
    size: int


class KnownHeads:
    """Heads by their bytes. A caller sends the same again and again, and the same bytes at a request's start mean the same."""

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """Head and body, where `data` is one whole request with a known head."""
        end = data.find(HEAD_END) + len(HEAD_END)
        head = self._heads.get(data[:end])
        return (head, data[end:]) if head is not None and len(data) == end + head.size else None

    def keep(self, data: bytes, head: Head) -> None:
        """Know a head again, where `data`, a request that was read, is short enough and ends with its body.

        That its body begins where the first empty line ends is seen by its length.
        """
        end = data.find(HEAD_END) + len(HEAD_END)
        if end <= KNOWN_BYTES and len(data) == end + head.size:
            if len(self._heads) >= KNOWN_HEADS:
                self._heads.clear()
            self._heads[data[:end]] = head


def headers_of(fields: Fields) -> dict[str, str]:
    """Values by lower-case name; those of one name together."""
    headers: dict[str, str] = {}
    for name, value in fields if len(fields) <= MAX_FIELDS else ():
        key = _NAMES.get(name) or name.decode("latin-1").lower()
        headers[key] = value.decode("latin-1") if key not in headers else f"{headers[key]}, {value.decode('latin-1')}"
    return headers


@lru_cache(maxsize=256)
def target_of(url: bytes) -> tuple[str, str]:
    """Path, its escapes undone, and query of a request's target, which may be a whole URL."""
    if not url.startswith(b"/") and b"://" in url:
        rest = url.partition(b"://")[2]
        start = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
        url = rest[start:] if rest[start : start + 1] == b"/" else b"/" + rest[start:]
    path, _, query = url.partition(b"#")[0].partition(b"?")
    text = path.decode("latin-1")
    return unquote(text, errors="replace") if "%" in text else text, query.decode("latin-1")


def problem(version: str, url: bytes, fields: Fields, headers: dict[str, str], *, size: int) -> Refused | None:
    """What is wrong with a head that the parser took.

    Args:
        size: Bytes that it has at most.
    """
    if len(fields) > MAX_FIELDS or (size > MAX_HEAD_BYTES and sum(len(name) + len(value) for name, value in fields) > MAX_HEAD_BYTES):
        return head_too_large()
    if len(url) > MAX_URL_BYTES:
        return address_too_long()
    if version == "1.1":
        if "," in headers.get("host", ","):
            return malformed("the request must name one host")
    elif version != "1.0":
        return malformed(f"the request must be HTTP/1.1, got {version}")
    if headers.get("transfer-encoding", "chunked").lower() != "chunked":
        return malformed("the body must be in chunks, or as long as it says, and in no other transfer encoding")
    return None


def head_of(response: Response, *, keeps: str) -> bytes:
    """A response's head.

    Args:
        keeps: The field that says whether the connection is kept, with its end of line; empty where that goes without saying.
    """
    status = response.status
    fields = "\r\n".join(map(": ".join, response.headers))
    length = f"content-length: {len(response.body)}\r\n\r\n" if status not in (204, 304) else "\r\n"
    first = _STATUS_LINES.get(status) or _status_line(status)
    return f"{first}{_date(int(time()))}{keeps}{fields}{fields and _END}{length}".encode("latin-1", "replace")


_END = "\r\n"


def _status_line(status: int, phrase: str = "") -> str:
    return f"HTTP/1.1 {status} {phrase}\r\nserver: tidemill\r\n"


_STATUS_LINES = {status.value: _status_line(status.value, status.phrase) for status in HTTPStatus}
_STATUS_LINES |= {499: _status_line(499, "Client Closed Request")}


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return f"date: {formatdate(second, usegmt=True)}\r\n"


def malformed(reason: str) -> Refused:
    return Refused(400, "malformed", reason)


def address_too_long() -> Refused:
    return Refused(414, "too_large", f"the address must be at most {MAX_URL_BYTES} bytes")


def head_too_large() -> Refused:
    return Refused(431, "too_large", f"the head must have at most {MAX_FIELDS} fields and {MAX_HEAD_BYTES} bytes")


def body_too_large(size: str, limit: int) -> Refused:
    return Refused(413, "too_large", f"the body must be at most {limit} bytes, got {size}", hint="send the rows in parts")
