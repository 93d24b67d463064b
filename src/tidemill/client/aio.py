"""The asynchronous client, and its connections: streams of the event loop, kept and bounded in number."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from tidemill.client.asking import Asking, Core, Late, Lost, NotSent, Send, Server, Wait
from tidemill.client.calls import Record
from tidemill.client.http1 import BrokenAnswer, Reader, Reply
from tidemill.client.sync import reason, unverified
from tidemill.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


class AsyncClient:
    """Asks one server, from one event loop. Keeps its connections; any number of tasks may use it.

    A call that is cancelled closes its connection, by which the server knows that nobody waits any more.

    Example:
        >>> AsyncClient("http://127.0.0.1:8000", model="flights").url
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
        max_connections: int = 100,
    ) -> None:
        """Make a client; nothing is sent. Arguments and errors are those of `Client`."""
        if max_connections < 1:
            raise ConfigError(f"max_connections: must be >= 1, got {max_connections}")
        server = Server.at(
            url, timeout_s=timeout_s, retries=retries, api_key=api_key, token=token, ca=ca, gzip=gzip, headers=headers
        )  # fmt: skip
        self._core = Core(server, model=model, version=version)
        self._pool = AsyncPool(server, size=max_connections)

    @property
    def url(self) -> str:
        """The server's address."""
        return self._core.server.url

    async def predict(self, record: Record, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The answer for one record, as `Client.predict` gives it."""
        return await self._run(self._core.predict(record, timeout_s))

    @overload
    async def predict_batch(self, rows: Mapping[str, Any] | np.ndarray, *, timeout_s: float | None = None) -> dict[str, np.ndarray]: ...
    @overload
    async def predict_batch(self, rows: Sequence[Record], *, timeout_s: float | None = None) -> list[dict[str, Any]]: ...
    @overload
    async def predict_batch(self, rows: Any, *, timeout_s: float | None = None) -> Any: ...
    async def predict_batch(self, rows: Any, *, timeout_s: float | None = None) -> Any:
        """The answers for many rows, as `Client.predict_batch` gives them."""
        return await self._run(self._core.predict_batch(rows, timeout_s))

    async def health(self) -> dict[str, Any]:
        """What the server says of itself."""
        return await self._run(self._core.health())

    async def model_info(self) -> dict[str, Any]:
        """Name, version, signature and contract of the model."""
        return await self._run(self._core.model_info())

    async def close(self) -> None:
        """Close every connection; a later call opens new ones."""
        self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _run(self, asking: Asking[T]) -> T:
        try:
            step = next(asking)
            while True:
                try:
                    reply = await self._taken(step)
                except (NotSent, Lost, Late) as failure:
                    step = asking.throw(failure)
                else:
                    step = asking.send(reply)
        except StopIteration as done:
            answer: T = done.value
            return answer
        finally:
            asking.close()

    async def _taken(self, step: Send | Wait) -> Reply | None:
        if isinstance(step, Send):
            return await self._pool.send(step)
        await asyncio.sleep(step.seconds)
        return None


class AsyncPool:
    """Connections to one server, at most `size` in use at once. For one event loop."""

    def __init__(self, server: Server, *, size: int) -> None:
        self._server = server
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Stream] = []

    async def send(self, step: Send) -> Reply:
        """As `Pool.send`, with the same errors."""
        until = time.monotonic() + step.within_s
        try:
            async with asyncio.timeout(step.within_s), self._slots:
                stream = self._kept(fresh=step.fresh) or await Stream.opened(self._server)
                try:
                    reply = await stream.exchange(step.request)
                except BaseException:
                    stream.close()
                    raise
                if stream.is_usable:
                    self._idle.append(stream)
                else:
                    stream.close()
                return reply
        except TimeoutError as error:
            if time.monotonic() < until - 0.001:  # the system's, of a connection
                raise NotSent(reason(error)) from error
            raise Late from error

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _kept(self, *, fresh: bool) -> Stream | None:
        if fresh:
            self.close()
        while self._idle:
            stream = self._idle.pop()
            if stream.is_quiet:
                return stream
            stream.close()
        return None


class Stream:
    """One connection, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._incoming = reader
        self._writer = writer
        self._reader = Reader()
        self._was_used = False

    @classmethod
    async def opened(cls, server: Server) -> Stream:
        """A new connection.

        Raises:
            NotSent: If none comes about.
            ConfigError: If the server's certificate is not trusted.
        """
        try:
            reader, writer = await asyncio.open_connection(server.host, server.port, ssl=server.secure)
        except ssl.SSLCertVerificationError as error:
            raise unverified(server, error) from error
        except TimeoutError:
            raise
        except OSError as error:
            raise NotSent(reason(error)) from error
        if (plain := writer.get_extra_info("socket")) is not None:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(reader, writer)

    @property
    def is_usable(self) -> bool:
        """Whether another request may follow."""
        return self._reader.keeps and not self._reader.is_started

    @property
    def is_quiet(self) -> bool:
        """Whether the server has not closed it."""
        return not (self._incoming.at_eof() or self._writer.is_closing())

    async def exchange(self, request: bytes) -> Reply:
        """The answer to one request.

        Raises:
            Lost: If the connection ends first.
        """
        was_kept, self._was_used = self._was_used, True
        try:
            self._writer.write(request)
            while True:
                data = await self._incoming.read(262_144)
                reply = self._reader.feed(data) if data else self._reader.end()
                if reply is not None:
                    return reply
                if not data:
                    raise Lost("the connection was closed", was_kept=was_kept and not self._reader.is_started)
        except TimeoutError:
            raise
        except (OSError, BrokenAnswer) as error:
            raise Lost(reason(error), was_kept=was_kept and not self._reader.is_started) from error

    def close(self) -> None:
        self._writer.close()
