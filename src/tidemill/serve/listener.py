"""What listens: Granian's server over one application, and, where its certificate changes, the next one in its place.

The socket is ours, so that connections that wait in it are kept while one server, or one process, takes over from another.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from importlib import import_module
from pathlib import Path
from typing import Any

from tidemill.core.errors import ConfigError, Conflict, TidemillError
from tidemill.core.events import Events
from tidemill.serve.address import bound
from tidemill.serve.config import ServeConfig
from tidemill.serve.rsgi import RsgiApp

STARTUP_S = 30.0
# Connections that wait to be taken.
BACKLOG = 1024
# Connections that may be open at once, idle ones too.
MOST_CONNECTIONS = 65_536
# Files that may be open beside the connections.
FILES = 128
# How often a certificate's files are looked at, and how long both servers take connections when they changed.
LOOK_S = 2.0
BESIDE_S = 0.5


class Listener:
    """Takes connections for an application on an event loop.

    Args:
        taken: A socket with an address of its own; closed when this stops.
        folder: What the certificate's paths are relative to.
    """

    def __init__(self, target: RsgiApp, config: ServeConfig, *, taken: socket.socket, folder: Path, events: Events) -> None:
        self._target = target
        self._taken = taken
        self._config = config
        self._folder = folder
        self._events = events
        self._server: Any = None
        self._serving: asyncio.Task[None] | None = None
        self._stamp: Any = None

    async def start(self) -> None:
        """Listen.

        Raises:
            TidemillError: If it does not begin within half a minute.
            ConfigError: If the certificate cannot be used.
        """
        self._taken.listen(BACKLOG)
        self._taken.setblocking(False)
        self._server, self._serving = self._begin()
        await self._begun(self._server, self._serving)

    async def run(self, stopping: asyncio.Event) -> None:
        """Listen on, following the certificate, until `stopping`.

        Raises:
            TidemillError: If the server ends by itself.
        """
        while not stopping.is_set():
            waiting = asyncio.ensure_future(stopping.wait())
            serving = self._serving
            watched: set[asyncio.Future[Any]] = {waiting, *([serving] if serving is not None else [])}
            await asyncio.wait(watched, timeout=LOOK_S if self._config.tls else None, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if serving is not None and serving.done() and not stopping.is_set():
                raise TidemillError("the server must keep running, it ended by itself")
            config = self._config
            if config.tls is not None and not stopping.is_set() and config.tls.stamp(self._folder) != self._stamp:
                await self._renew()

    async def stop(self, *, drain_s: float) -> bool:
        """Take no more, and wait until what is in flight is answered; False where some was cut after `drain_s`."""
        if self._serving is None:
            return True
        self._server.stop()
        self._taken.close()
        _, late = await asyncio.wait({self._serving}, timeout=drain_s)
        if late:
            self._serving.cancel()
        return not late

    async def _renew(self) -> None:
        """The new certificate in a server of its own; the old one then finishes what it took."""
        try:
            server, serving = self._begin()
        except ConfigError as error:
            self._events.warn("serve.certificate", f"the old certificate stays: {error}")
            return
        await asyncio.sleep(BESIDE_S)
        if serving.done():
            self._events.warn("serve.certificate", f"the old certificate stays: {serving.exception() or 'the new server ended'}")
            return
        old, ended = self._server, self._serving
        self._server, self._serving = server, serving
        old.stop()
        if ended is not None:
            _, late = await asyncio.wait({ended}, timeout=self._config.drain_timeout_s)
            for task in late:
                task.cancel()
        self._events.emit("serve.certificate", "the new certificate is used")

    def _begin(self) -> tuple[Any, asyncio.Task[None]]:
        from granian.constants import HTTPModes, Interfaces, SSLProtocols
        from granian.http import HTTP1Settings

        config = self._config
        secure: dict[str, Any] = {}
        if config.tls is not None:
            self._stamp = config.tls.stamp(self._folder)
            cert, key = config.tls.checked(self._folder)
            oldest = SSLProtocols.tls13 if config.tls.min_version == "1.3" else SSLProtocols.tls12
            secure = {"ssl_cert": cert, "ssl_key": key, "ssl_protocol_min": oldest}
        server = _server_on(self._taken)(
            self._target,
            address=bound(config.host),
            port=config.port,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=int(config.header_timeout_s * 1000)),
            websockets=False,
            backlog=BACKLOG,
            backpressure=_most_connections(),
            log_enabled=False,
            **secure,
        )
        return server, asyncio.get_running_loop().create_task(server.serve())

    async def _begun(self, server: Any, serving: asyncio.Task[None]) -> None:
        """Wait until the server takes what comes to the socket."""
        started = asyncio.ensure_future(server.started.wait())
        await asyncio.wait({serving, started}, timeout=STARTUP_S, return_when=asyncio.FIRST_COMPLETED)
        if started.done() and not serving.done():
            return
        started.cancel()
        cause = serving.exception() if serving.done() else None
        serving.cancel()
        where = f"{self._config.host}:{self._config.port}"
        raise TidemillError(f"the server must listen on {where}, it does not" + (f": {cause}" if cause else "")) from cause


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


def _most_connections() -> int:
    """As many as the system's limit of open files allows, which is raised as far as this user may.

    Granian itself takes no more than its backlog, idle ones too, and all others wait until one of them goes.
    """
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


def _server_on(taken: socket.socket) -> Any:
    """Granian's server, over a socket that is there already; it says when it has `started`."""
    net: Any = import_module("granian.net")
    base: Any = import_module("granian.server.embed").Server

    class ServerOn(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.started = asyncio.Event()

        def _init_shared_socket(self) -> None:
            self._shd = net.SocketHolder(os.dup(taken.fileno()), False, BACKLOG)

        async def _serve_loop(self, *spawning: Any) -> None:
            self.started.set()
            await super()._serve_loop(*spawning)

    return ServerOn
