"""The access log: one JSON line a request, with its id and trace; never a body, a query or a credential.

`{"at", "id", "trace", "span", "client", "caller", "method", "route", "status", "ms", "received", "sent", "model", "version", "rows"}`; what does
not apply is left out. `route` is the pattern of the address, so that nothing that a caller wrote into it is kept.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tidemill.core.errors import ConfigError
from tidemill.serve.background import Background

TRACEPARENT = "traceparent"
STDERR = Path("-")

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Trace:
    """This request's place in a trace (W3C Trace Context)."""

    trace: str
    span: str
    parent: str | None
    flags: str

    @classmethod
    def of(cls, header: str | None, *, ratio: float = 0.0) -> Trace:
        """A new span, in the caller's trace where the header `traceparent` names one, else in a new trace.

        Args:
            ratio: Share of new traces that are sampled, in 0..1; which ones, their number says.
        """
        match = _FORM.fullmatch(header.strip()) if header else None
        if match is None or (match[4] and header is not None and header.startswith("00")):
            trace = secrets.token_hex(16)
            return cls(trace, secrets.token_hex(8), None, "01" if int(trace[16:], 16) < ratio * 2**64 else "00")
        return cls(match[1], secrets.token_hex(8), match[2], match[3])

    @property
    def is_sampled(self) -> bool:
        """Whether spans of this trace are kept."""
        return bool(int(self.flags, 16) & 1)

    @property
    def header(self) -> str:
        return f"00-{self.trace}-{self.span}-{self.flags}"


class AccessLog:
    """Appends to a file, or to stderr for `-`. A disk that refuses loses lines, never requests.

    Raises:
        ConfigError: If the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path != STDERR:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("ab").close()
            except OSError as error:
                raise ConfigError(f"serve.access_log: must be a file that can be written, got {path}: {error.strerror}") from error
        self._lines: Background[dict[str, Any]] = Background(self._write, name="access-log")

    def append(self, **fields: Any) -> None:
        """One request; fields that are None or empty are left out."""
        self._lines.put({"at": time.time(), **{key: value for key, value in fields.items() if value not in (None, "")}})

    def close(self) -> None:
        self._lines.close()

    def _write(self, lines: list[dict[str, Any]]) -> None:
        content = b"".join(msgspec.json.encode({**line, "at": _moment(line["at"])}) + b"\n" for line in lines)
        try:
            if self._path == STDERR:
                sys.stderr.buffer.write(content)
                sys.stderr.flush()
            else:
                # Opened each time, so that a file that was rotated away is made anew; one append of whole lines.
                with self._path.open("ab", buffering=0) as file:
                    file.write(content)
        except OSError:
            pass


def _moment(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
