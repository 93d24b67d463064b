"""The client, and its connections: sockets, kept and bounded in number."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from tidemill.client.asking import Asking, Core, Late, Lost, NotSent, Send, Server, Wait
from tidemill.client.calls import Record
from tidemill.client.http1 import BrokenAnswer, Reader, Reply
from tidemill.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


class Client:
    """Asks one server. Keeps its connections; safe from several threads.

    Example:
        >>> client = Client("http://127.0.0.1:8000")
        >>> client.url
        'http://127.0.0.1:8000'
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        version: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        api_key: str | None = None,
        token: str | Callable[[], str] | None = None,
        ca: str | Path | None = None,
        gzip: bool = False,
        headers: Mapping[str, str] | None = None,
        max_connections: int = 10,
    ) -> None:
        """Make a client; nothing is sent.

        Args:
            model: Name of the model to ask; the server's default when absent.
            version: Version of it; the server's first of that name when absent.
            timeout_s: Time for a call with everything that belongs to it, in seconds; for a table that goes in parts, of each part.
                The server is told, and does not begin what would come too late.
            retries: How often a call is sent again where that is safe: when no connection came about, and on 429 and 503, after
                the time that the server asks for. Never beyond `timeout_s`.
            api_key: A key of `tidemill serve keys`.
            token: A token of an issuer, or a function that gives the one to send now.
            ca: File of certificates (PEM) that sign the server's; the system's when absent.
            gzip: Whether large bodies are compressed, both ways: for slow networks.
            headers: What is sent with every request besides.
            max_connections: Most connections at once, >= 1; further calls wait for one.

        Raises:
            ConfigError: If `url` is no http or https address, or an argument is none.
        """
        if max_connections < 1:
            raise ConfigError(f"max_connections: must be >= 1, got {max_connections}")
        server = Server.at(
            url, timeout_s=timeout_s, retries=retries, api_key=api_key, token=token, ca=ca, gzip=gzip, headers=headers
        )  # fmt: skip
        self._core = Core(server, model=model, version=version)
        self._pool = Pool(server, size=max_connections)

    @property
    def url(self) -> str:
        """The server's address."""
        return self._core.server.url

    def predict(self, record: Record, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The answer for one record: a mapping of fields, a text for a text package, the bytes of an image for one of images.

        Args:
            timeout_s: Time for this call; the client's when absent.

        Raises:
            DataError: If a field is missing or wrong; names it.
            Unavailable: If the server does not answer now.
        """
        return self._run(self._core.predict(record, timeout_s))

    @overload
    def predict_batch(self, rows: Mapping[str, Any] | np.ndarray, *, timeout_s: float | None = None) -> dict[str, np.ndarray]: ...
    @overload
    def predict_batch(self, rows: Sequence[Record], *, timeout_s: float | None = None) -> list[dict[str, Any]]: ...
    @overload
    def predict_batch(self, rows: Any, *, timeout_s: float | None = None) -> Any: ...
    def predict_batch(self, rows: Any, *, timeout_s: float | None = None) -> Any:
        """The answers for many rows, in their order and in kind; large tables go in parts.

        Args:
            rows: A list of records, texts or images, an Arrow table, a pandas or Polars frame: answered as such. NumPy arrays by column, a
                structured array, or [N, C] in the order of the model's columns: answered as arrays, `prediction` and, with
                classes, `probability` [N, K].
            timeout_s: Time for each part; the client's when absent.

        Raises:
            DataError: If a field is missing or wrong; names it.
            Unavailable: If the server does not answer now.
        """
        return self._run(self._core.predict_batch(rows, timeout_s))

    def health(self) -> dict[str, Any]:
        """What the server says of itself."""
        return self._run(self._core.health())

    def model_info(self) -> dict[str, Any]:
        """Name, version, signature and contract of the model."""
        return self._run(self._core.model_info())

    def close(self) -> None:
        """Close every connection; a later call opens new ones."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, asking: Asking[T]) -> T:
        try:
            step = next(asking)
            while True:
                try:
                    reply = self._taken(step)
                except (NotSent, Lost, Late) as failure:
                    step = asking.throw(failure)
                else:
                    step = asking.send(reply)
        except StopIteration as done:
            answer: T = done.value
            return answer
        finally:
            asking.close()

    def _taken(self, step: Send | Wait) -> Reply | None:
        if isinstance(step, Send):
            return self._pool.send(step)
        time.sleep(step.seconds)
        return None


class Pool:
    """Connections to one server, at most `size` in use at once. Safe from several threads."""

    def __init__(self, server: Server, *, size: int) -> None:
        self._server = server
        self._slots = threading.BoundedSemaphore(size)
        self._idle: list[Connection] = []

    def send(self, step: Send) -> Reply:
        """The answer to one request, over a kept connection where there is one.

        Raises:
            NotSent: If no connection comes about.
            Lost: If it ends without an answer.
            Late: If no answer comes in time.
        """
        until = time.monotonic() + step.within_s
        if not self._slots.acquire(timeout=step.within_s):
            raise Late
        try:
            connection = self._kept(fresh=step.fresh) or Connection(self._server, until=until)
            try:
                reply = connection.exchange(step.request, until=until)
            except BaseException:
                connection.close()
                raise
            if connection.is_usable:
                self._idle.append(connection)
            else:
                connection.close()
            return reply
        finally:
            self._slots.release()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _kept(self, *, fresh: bool) -> Connection | None:
        if fresh:
            self.close()
        while True:
            try:
                connection = self._idle.pop()  # the one that was used last: the server closes the oldest first
            except IndexError:
                return None
            if connection.is_quiet:
                return connection
            connection.close()


class Connection:
    """One connection, for one request at a time."""

    def __init__(self, server: Server, *, until: float) -> None:
        self._reader = Reader()
        self._was_used = False
        try:
            self.socket = socket.create_connection((server.host, server.port), timeout=_left(until))
            try:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if server.secure is not None:
                    self.socket = server.secure.wrap_socket(self.socket, server_hostname=server.host)
            except BaseException:
                self.socket.close()
                raise
        except ssl.SSLCertVerificationError as error:
            raise unverified(server, error) from error
        except TimeoutError as error:
            raise Late from error
        except OSError as error:
            raise NotSent(reason(error)) from error

    @property
    def is_usable(self) -> bool:
        """Whether another request may follow."""
        return self._reader.keeps and not self._reader.is_started

    @property
    def is_quiet(self) -> bool:
        """Whether the server has neither closed it nor said something unasked."""
        watch = select.poll()
        watch.register(self.socket, select.POLLIN)
        return not watch.poll(0)

    def exchange(self, request: bytes, *, until: float) -> Reply:
        """The answer to one request.

        Raises:
            Lost: If the connection ends first.
            Late: If it is not whole in time.
        """
        was_kept, self._was_used = self._was_used, True
        try:
            self.socket.settimeout(_left(until))
            try:
                self.socket.sendall(request)
            except (BrokenPipeError, ConnectionResetError):
                if was_kept:
                    raise
                # A server that refuses a body before it has read it has answered already.
            while True:
                self.socket.settimeout(_left(until))
                data = self.socket.recv(262_144)
                reply = self._reader.feed(data) if data else self._reader.end()
                if reply is not None:
                    return reply
                if not data:
                    raise Lost("the connection was closed", was_kept=was_kept and not self._reader.is_started)
        except TimeoutError as error:
            raise Late from error
        except (OSError, BrokenAnswer) as error:
            raise Lost(reason(error), was_kept=was_kept and not self._reader.is_started) from error

    def close(self) -> None:
        with suppress(OSError):
            self.socket.close()


def reason(error: Exception) -> str:
    """What went wrong, in the system's words."""
    return str(getattr(error, "strerror", None) or error)


def unverified(server: Server, error: ssl.SSLCertVerificationError) -> ConfigError:
    """The error of a certificate that is not trusted."""
    return ConfigError(
        f"the certificate of {server.url} must be one that is trusted: {error.verify_message}", hint="ca names its authority"
    )


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
