"""How one server is asked: the steps of every call, without I/O. A transport takes the steps and brings what came of them.

A call is a generator. It yields `Send` or `Wait`; the transport sends back the `Reply` (nothing after a wait), or throws
`NotSent`, `Lost` or `Late`. What the generator returns is the call's answer, what it raises is the caller's error.

Asked again is only where that is safe, and only while the answer can still come in time: when no connection came about, when a kept
connection turned out to be closed before an answer began, and when the server said 429 or 503, after the time that it asked for.
"""

from __future__ import annotations

import gzip
import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from tidemill.client import calls, http1
from tidemill.client.calls import Outgoing, Record
from tidemill.client.http1 import Reply
from tidemill.core.errors import ConfigError, DataError, Unavailable

if TYPE_CHECKING:
    import ssl

    from tidemill.client.frames import Rows

# Tells the server how long the caller still waits, in milliseconds.
DEADLINE = "x-request-timeout-ms"

# Pauses before asking again: the first at most, each later one at most twice that, up to the last, in seconds.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

# Bodies from this size on are worth compressing.
WORTH_BYTES = 4_096

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send this; an answer is of use for `within_s` seconds more. `fresh` says not to take a kept connection."""

    request: bytes
    within_s: float
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for so long."""

    seconds: float


class NotSent(Exception):
    """No connection came about: nothing reached the server."""


class Lost(Exception):
    """The connection ended without an answer. `was_kept` says that it had been used before, and that no answer had begun."""

    def __init__(self, reason: str, *, was_kept: bool) -> None:
        super().__init__(reason)
        self.was_kept = was_kept


class Late(Exception):
    """No answer came in time."""


Asking = Generator[Send | Wait, Reply | None, T]


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server, and how it is asked. `secure` is what TLS is spoken with, None for plain HTTP."""

    url: str
    prefix: str
    host: str
    port: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    token: Callable[[], str] | None = field(repr=False)
    timeout_s: float
    retries: int
    gzip: bool
    secure: ssl.SSLContext | None

    @classmethod
    def at(
        cls,
        url: str,
        *,
        timeout_s: float,
        retries: int = 3,
        api_key: str | None = None,
        token: str | Callable[[], str] | None = None,
        ca: str | Path | None = None,
        gzip: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Server:
        """The server at `url`.

        Raises:
            ConfigError: If a value cannot be one.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise ConfigError(f"url: must be like http://127.0.0.1:8000, got {url!r}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or not parts.netloc.isascii():
            raise ConfigError(f"url: must be like http://127.0.0.1:8000 or https://models.example.com, got {url!r}")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s: must be > 0, got {timeout_s}")
        if retries < 0:
            raise ConfigError(f"retries: must be >= 0, got {retries}")
        if api_key is not None and token is not None:
            raise ConfigError("one of api_key and token must be given, got both")
        if ca is not None and parts.scheme != "https":
            raise ConfigError(f"ca: must go with an https address, got {url!r}")
        prefix = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._")
        sent = [("host", parts.netloc), ("user-agent", "tidemill")]
        sent += [("accept-encoding", "gzip")] if gzip else []
        sent += [http1.header("x-api-key", api_key)] if api_key is not None else []
        sent += [http1.header("authorization", f"Bearer {token}")] if isinstance(token, str) else []
        sent += [http1.header(name.lower(), value) for name, value in (headers or {}).items()]
        return cls(
            url=f"{parts.scheme}://{parts.netloc}{prefix}",
            prefix=prefix,
            host=parts.hostname,
            port=port or (443 if parts.scheme == "https" else 80),
            headers=tuple(sent),
            token=token if callable(token) else None,
            timeout_s=timeout_s,
            retries=retries,
            gzip=gzip,
            secure=_secure(ca) if parts.scheme == "https" else None,
        )

    def reply(self, outgoing: Outgoing, *, timeout_s: float | None = None) -> Asking[Reply]:
        """The server's last word on a request, whatever its status.

        Raises:
            Unavailable: If it cannot be reached, or does not answer in time.
        """
        within_s = self.timeout_s if timeout_s is None else timeout_s
        until = time.monotonic() + within_s
        packed = self._packed(outgoing)
        fresh, tries = False, 0
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise self._late(within_s)
            reply: Reply | None = None
            failure: Unavailable | None = None
            try:
                reply = yield Send(self.written(packed, within_s=left), left, fresh)
            except NotSent as error:
                failure = self._unreachable(error)
            except Lost as error:
                if not error.was_kept or fresh:
                    raise self._unreachable(error) from error
                fresh = True  # others that were kept are as old
                continue
            except Late as error:
                raise self._late(within_s) from error
            if reply is not None and reply.status not in (429, 503):
                return calls.unpacked(reply)
            pause = random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**tries)) + ((reply and calls.retry_after(reply)) or 0.0)
            if tries >= self.retries or time.monotonic() + pause >= until:
                if reply is not None:
                    return calls.unpacked(reply)
                raise failure or self._late(within_s)
            tries += 1
            yield Wait(pause)

    def _packed(self, outgoing: Outgoing) -> Outgoing:
        if not self.gzip or outgoing.body is None or len(outgoing.body) < WORTH_BYTES:
            return outgoing
        body = gzip.compress(outgoing.body, compresslevel=1, mtime=0)
        return replace(outgoing, body=body, headers=(*outgoing.headers, ("content-encoding", "gzip")))

    def written(self, outgoing: Outgoing, *, within_s: float | None = None) -> bytes:
        """The bytes of one request, with the time that the server is given where it is given any."""
        headers = [*self.headers, *outgoing.headers]
        if within_s is not None:
            headers.append((DEADLINE, str(max(1, int(within_s * 1e3)))))
        if self.token is not None:
            headers.append(http1.header("authorization", f"Bearer {self.token()}"))
        return http1.request(outgoing.method, self.prefix + outgoing.path, headers, outgoing.body)

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(f"the server at {self.url} must answer: {error}", hint="is it running? tidemill serve NAME")

    def _late(self, within_s: float) -> Unavailable:
        return Unavailable(f"the server at {self.url} must answer within {within_s:g} s, it did not", hint="timeout_s gives it more")


class Core:
    """The calls of a client on one model of a server, as steps. Safe from several threads."""

    def __init__(self, server: Server, *, model: str | None, version: str | None) -> None:
        if version is not None and model is None:
            raise ConfigError(f"model: must be given with version {version!r}")
        self.server = server
        self._model = model
        self._version = version
        self._at = calls.address(model, version)
        self._known: dict[str, Any] | None = None

    def predict(self, record: Record, timeout_s: float | None) -> Asking[dict[str, Any]]:
        reply = yield from self.server.reply(calls.predict(self._at, record), timeout_s=timeout_s)
        return dict(calls.read_answer(reply))

    def predict_batch(self, given: Any, timeout_s: float | None) -> Asking[Any]:
        from tidemill.client import rows

        table: Rows = rows.read(given)
        if table.needs_names or (table.is_tensors and self._model is None):
            info = self._known = self._known or (yield from self.model_info())
            table.name_columns(info["signature"]["inputs"])
        name = self._model or (self._known or {}).get("name")
        at = self._at if not table.is_tensors else f"/v2{calls.address(name, self._version)}"
        answers: list[Any] = []
        parts = _parts(0, table.num_rows, table.part_rows)
        while parts:
            start, stop = parts.pop()
            reply = yield from self.server.reply(table.request(at, start, stop), timeout_s=timeout_s)
            if reply.status == 413 and stop - start > 1:
                parts = _parts(start, table.num_rows, (stop - start + 1) // 2)
                continue
            if reply.status == 415 and table.plainer is not None and not answers:
                table, at = table.plainer(), self._at
                parts = _parts(0, table.num_rows, table.part_rows)
                continue
            try:
                answers.append(table.answer(reply))
            except DataError as error:
                if table.mend(error.field):
                    parts.append((start, stop))
                    continue
                if start == 0:
                    raise
                raise DataError(f"{error.message}, counted from row {start}", field=error.field, hint=error.hint) from error
        return table.joined(answers)

    def health(self) -> Asking[dict[str, Any]]:
        return self._get("/health")

    def model_info(self) -> Asking[dict[str, Any]]:
        return self._get(f"{self._at}/model_info")

    def _get(self, path: str) -> Asking[dict[str, Any]]:
        reply = yield from self.server.reply(Outgoing("GET", path))
        return dict(calls.read_answer(reply))


def _parts(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Ranges of at most `size` rows, the last first; one where there is no row."""
    size = max(1, size)
    return [(at, min(at + size, stop)) for at in range(start, max(stop, start + 1), size)][::-1]


def _secure(ca: str | Path | None) -> ssl.SSLContext:
    import ssl

    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # also what is no certificate
        raise ConfigError(f"ca: must be a file of certificates (PEM), got {str(ca)!r}: {error.strerror or error}") from error
