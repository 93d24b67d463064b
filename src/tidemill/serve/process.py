"""The life of one process that answers: it listens, says that it is ready, and finishes what is in flight when it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.core.events import Events
from tidemill.serve.address import bound, reachable
from tidemill.serve.app import App
from tidemill.serve.calls import Calls
from tidemill.serve.config import ServeConfig
from tidemill.serve.http1 import Http1
from tidemill.serve.listener import Listener, most_connections

if TYPE_CHECKING:
    from tidemill.serve.grpc.server import GrpcServer

# Objects that are made, beyond those that go, before Python looks for circles among them. A request leaves none: at the usual 700, all requests
# in flight were looked through again and again, with 1,024 connections a seventh of the processor's time (99 to 84 microseconds a request).
OBJECTS_BETWEEN_LOOKS = 50_000


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that takes requests at `url`, over gRPC at `grpc` where it does; `stop` ends it gracefully, from any thread."""

    url: str
    grpc: str | None
    stop: Callable[[], None]


def answer(
    app: App, taken: socket.socket, *, events: Events, on_ready: Callable[[Running], None] | None = None, together: bool = False
) -> None:
    """Answer on a socket until SIGTERM, SIGINT or `Running.stop`; requests in flight are finished before it returns.

    Args:
        taken: Bound to the address of the configuration.
        on_ready: Called from another thread when requests are taken.
        together: Whether other processes answer on the same ports.
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(app, taken, events, on_ready, together))
    finally:
        app.close()


def url(config: ServeConfig) -> str:
    """Where this machine finds the server."""
    host, scheme = reachable(config.host), "https" if config.tls is not None else "http"
    return f"{scheme}://[{host}]:{config.port}" if ":" in host else f"{scheme}://{host}:{config.port}"


async def _run(app: App, taken: socket.socket, events: Events, on_ready: Callable[[Running], None] | None, together: bool) -> None:
    config, loop = app.config, asyncio.get_running_loop()
    calls = Calls(app, workers=config.workers or os.cpu_count() or 1)
    http = Http1(calls, config, most=most_connections())
    listener = Listener(http, config, taken=taken, folder=Path(), events=events)
    stopping = asyncio.Event()

    def stop() -> None:
        app.draining = True
        stopping.set()

    def stop_from_anywhere() -> None:
        loop.call_soon_threadsafe(stop)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
    grpc: GrpcServer | None = None
    before = gc.get_threshold()
    try:
        await listener.start()
        grpc = await _grpc(calls, together)
        at = f"{reachable(config.host)}:{grpc.port}" if grpc is not None else None
        running = Running(url=url(config), grpc=at, stop=stop_from_anywhere)
        gc.collect()
        gc.freeze()
        gc.set_threshold(OBJECTS_BETWEEN_LOOKS, *before[1:])
        events.emit("serve.ready", running.url, url=running.url, grpc=running.grpc)
        told = loop.run_in_executor(None, on_ready, running) if on_ready is not None else None
        if told is not None:
            told.add_done_callback(lambda told: stop() if told.exception() else None)
        await listener.run(stopping)
        events.emit("serve.stopping", "finishing requests in flight")
        parted = asyncio.create_task(grpc.stop(grace_s=config.drain_timeout_s)) if grpc is not None else None
        if not await listener.stop(drain_s=config.drain_timeout_s):
            events.warn("serve.cut", f"requests in flight were cut after {config.drain_timeout_s:g} s")
        if parted is not None:
            await parted
        if told is not None:
            await told
        events.emit("serve.stopped", "stopped")
    finally:
        if grpc is not None:
            await grpc.stop(grace_s=0)
        http.close()
        gc.set_threshold(*before)


async def _grpc(calls: Calls, together: bool) -> GrpcServer | None:
    """The server of gRPC calls, where the configuration has a port for it."""
    config = calls.app.config
    if config.grpc_port is None:
        return None
    from tidemill.serve.grpc.server import GrpcServer, secure

    credentials = secure(config.tls, folder=Path()) if config.tls is not None else None
    made = GrpcServer(calls, host=bound(config.host), port=config.grpc_port, credentials=credentials, together=together)
    await made.start()
    return made


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed, which takes half as many requests again; else asyncio's own."""
    if find_spec("uvloop") is None:
        return None
    import uvloop

    made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return made
