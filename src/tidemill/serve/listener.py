"""What listens: a socket whose connections are answered, and, where its certificate changes, shown the new one.

The socket is ours, so that connections that wait in it are kept while one process takes over from another.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from pathlib import Path
from typing import Any

from tidemill.core.errors import ConfigError, Conflict, TidemillError
from tidemill.core.events import Events
from tidemill.serve.config import ServeConfig
from tidemill.serve.http1 import Http1

# Connections that wait to be taken.
BACKLOG = 1024
# Connections that may be open at once, idle ones too.
MOST_CONNECTIONS = 65_536
# Files that may be open beside the connections.
FILES = 128
# How often a certificate's files are looked at.
LOOK_S = 2.0


class Listener:
    """Takes connections on an event loop.

    Args:
        taken: A socket with an address of its own; closed when this stops.
        folder: What the certificate's paths are relative to.
    """

    def __init__(self, http: Http1, config: ServeConfig, *, taken: socket.socket, folder: Path, events: Events) -> None:
        self._http = http
        self._taken = taken
        self._config = config
        self._folder = folder
        self._events = events
        self._server: asyncio.Server | None = None
        self._context: ssl.SSLContext | None = None
        self._stamp: Any = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: If the certificate cannot be used.
        """
        secure: dict[str, Any] = {}
        if self._config.tls is not None:
            self._load()
            shown = self._config.tls.context(self._folder)
            shown.sni_callback = self._show
            secure = {"ssl": shown, "ssl_handshake_timeout": self._config.header_timeout_s}
        self._taken.setblocking(False)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._http.connection, sock=self._taken, backlog=BACKLOG, **secure)

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow the certificate until `stopping`."""
        while not stopping.is_set():
            try:
                async with asyncio.timeout(LOOK_S if self._config.tls else None):
                    await stopping.wait()
            except TimeoutError:
                self._look()

    async def stop(self, *, drain_s: float) -> bool:
        """Take no more, and wait until what is in flight is answered; False where some was cut after `drain_s`."""
        if self._server is not None:
            self._server.close()
        return await self._http.drain(drain_s)

    def _look(self) -> None:
        """Show new connections the new certificate, if there is one; the others keep theirs."""
        if self._config.tls is None or self._config.tls.stamp(self._folder) == self._stamp:
            return
        try:
            self._load()
        except ConfigError as error:
            self._events.warn("serve.certificate", f"the old certificate stays: {error}")
        else:
            self._events.emit("serve.certificate", "the new certificate is used")

    def _load(self) -> None:
        if self._config.tls is not None:
            self._stamp = self._config.tls.stamp(self._folder)
            self._context = self._config.tls.context(self._folder)

    def _show(self, connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        """Called when a connection says hello, whether it names a host or not."""
        if self._context is not None:
            connection.context = self._context


def listening_socket(host: str, port: int, *, together: bool = False) -> socket.socket:
    """A socket that is bound and does not listen yet; port 0 takes a free one.

    Args:
        together: Whether other processes of this server bind the same address, between which the system spreads connections.

    Raises:
        Conflict: If another program listens there.
        ConfigError: If `host` is no address of this machine, or the port needs more rights.
    """
    if together and port != 0:
        listening_socket(host, port).close()  # that another server listens must be seen
    try:
        return bound_socket(host, port, together=together)
    except OSError as error:
        raise _not_bound(error, host, port) from error


def bound_socket(host: str, port: int, *, together: bool) -> socket.socket:
    """The same, without a look at who else listens there.

    Raises:
        OSError: If it cannot be bound.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if together:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def most_connections() -> int:
    """As many as the system's limit of open files allows, which is raised as far as this user may."""
    wanted = MOST_CONNECTIONS + FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(allowed - FILES, allowed // 2)


def _not_bound(error: OSError, host: str, port: int) -> TidemillError:
    if isinstance(error, PermissionError):
        return ConfigError(f"serve.port: must be one that this user may open, got {port}", hint="take one from 1024 up")
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"port {port} of {host} must be free, another program listens on it", hint="--port takes another")
    return ConfigError(f"serve.host: must be an address of this machine, got {host!r}: {error.strerror}")
