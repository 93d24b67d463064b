"""What listens: Granian's server over one application, and, where its certificate changes, the next one beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tidemill.core.errors import ConfigError, TidemillError
from tidemill.core.events import Events
from tidemill.serve.config import ServeConfig
from tidemill.serve.rsgi import RsgiApp

STARTUP_S = 30.0
# How often a certificate's files are looked at, and how long both servers take connections when they changed.
LOOK_S = 2.0
BESIDE_S = 0.5


class Listener:
    """Takes connections for an application on an event loop.

    Args:
        folder: What the certificate's paths are relative to.
    """

    def __init__(self, target: RsgiApp, config: ServeConfig, *, folder: Path, events: Events) -> None:
        self._target = target
        self._config = config
        self._folder = folder
        self._events = events
        self._server: Any = None
        self._serving: asyncio.Task[None] | None = None
        self._stamp: Any = None

    async def start(self) -> None:
        """Listen.

        Raises:
            TidemillError: If nothing is taken within half a minute.
            ConfigError: If the certificate cannot be used.
        """
        self._server, self._serving = self._begin()
        await self._listening(self._serving)

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
        from granian.server.embed import Server

        config = self._config
        secure: dict[str, Any] = {}
        if config.tls is not None:
            self._stamp = config.tls.stamp(self._folder)
            cert, key = config.tls.checked(self._folder)
            oldest = SSLProtocols.tls13 if config.tls.min_version == "1.3" else SSLProtocols.tls12
            secure = {"ssl_cert": cert, "ssl_key": key, "ssl_protocol_min": oldest}
        server = Server(
            self._target,
            address=bound(config.host),
            port=config.port,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=int(config.header_timeout_s * 1000)),
            websockets=False,
            backlog=1024,
            log_enabled=False,
            **secure,
        )
        return server, asyncio.get_running_loop().create_task(server.serve())

    async def _listening(self, serving: asyncio.Task[None]) -> None:
        """Wait until a connection is taken."""
        config = self._config
        for _ in range(int(STARTUP_S / 0.01)):
            if serving.done():
                break
            try:
                _, writer = await asyncio.open_connection(reachable(config.host), config.port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            return
        cause = serving.exception() if serving.done() else None
        serving.cancel()
        raise TidemillError(
            f"the server must listen on {config.host}:{config.port}, it does not" + (f": {cause}" if cause else "")
        ) from cause


def bound(host: str) -> str:
    """The address to listen on."""
    return "127.0.0.1" if host == "localhost" else host


def reachable(host: str) -> str:
    """Where this machine finds a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared, never bound
