"""Requests, responses and refusals, without a transport, and the JSON that they carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal, Protocol

import msgspec

from tidemill.core.errors import TidemillError

JSON = "application/json"
ARROW_STREAM = "application/vnd.apache.arrow.stream"
ARROW_FILE = "application/vnd.apache.arrow.file"

# What a refusal is counted under: few and fixed, since each is a label of a metric.
Cause = Literal[
    "malformed", "field", "unknown_route", "unknown_model", "method", "too_large", "media_type", "timeout", "unavailable", "internal",
    "unauthorized", "forbidden", "limit", "not_loaded", "overload", "deadline", "gone",
]  # fmt: skip


class Headers(Protocol):
    """Header values by lower-case name."""

    def get(self, key: str, default: Any = None, /) -> Any: ...


@dataclass(slots=True)
class Request:
    """One HTTP request, its body read. `arrived` is the `perf_counter` when its head was."""

    method: str
    path: str
    query: str = ""
    headers: Headers = field(default_factory=dict[str, str])
    body: bytes = b""
    arrived: float = field(default_factory=perf_counter)
    client: str = ""
    """Address of the peer, without its port."""
    wanted: Callable[[], bool] = lambda: True
    """Whether the caller still waits, as far as the transport knows."""

    @property
    def content_type(self) -> str:
        given = self.headers.get("content-type") or ""
        return JSON if given == JSON else str(given).partition(";")[0].strip().lower()

    def accepts(self, kind: str) -> bool:
        """Whether the caller names this media type in `Accept`."""
        return kind in str(self.headers.get("accept") or "").lower()


@dataclass(slots=True)
class Response:
    """One HTTP response; `headers` belongs to it and may be added to."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""


class Refused(TidemillError):
    """A request that cannot be answered, with its HTTP status and the field at fault."""

    def __init__(
        self, status: int, cause: Cause, reason: str, *, field: str | None = None, hint: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(reason, hint=hint)
        self.status = status
        self.cause: Cause = cause
        self.field = field
        self.headers = headers

    def body(self, *, plain: bool) -> bytes:
        """The error as JSON: an object of field, reason and hint; as the protocols have it (`plain` false), one text."""
        if not plain:
            return msgspec.json.encode({"error": str(self)})
        return msgspec.json.encode({"error": {"field": self.field, "reason": self.message, "hint": self.hint}})


encode = msgspec.json.encode


def json_response(value: Any, status: int = 200) -> Response:
    return Response(status, [("content-type", JSON)], encode(value))


def read_json(body: bytes) -> Any:
    """The value of a JSON body.

    Raises:
        Refused: With 400, if it is not JSON in UTF-8, nests too deep, or holds a number out of range.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error, body) from error


def malformed(error: Exception, body: bytes) -> Refused:
    if not body:
        return Refused(400, "malformed", "the body must be JSON, got none")
    if isinstance(error, RecursionError):
        return Refused(400, "malformed", "the JSON body nests too deep")
    if isinstance(error, UnicodeDecodeError):
        return Refused(400, "malformed", f"the body must be UTF-8: {error.reason}")
    return Refused(
        400, "malformed", f"the body must be JSON: {error}", hint="NaN and Infinity are no JSON: send null" if b"NaN" in body else None
    )
