"""`serve`: packages checked, warmed up, held to their contract, then answered for until the process is told to stop."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.core.errors import ConfigError, Conflict
from tidemill.core.events import Events
from tidemill.core.load import need
from tidemill.core.package import Package
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.listener import Listener, bound, reachable
from tidemill.serve.model import Model
from tidemill.serve.rsgi import RsgiApp

if TYPE_CHECKING:
    from tidemill.serve.grpc.server import GrpcServer


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that takes requests at `url`, over gRPC at `grpc` where it does; `stop` ends it gracefully, from any thread."""

    url: str
    grpc: str | None
    stop: Callable[[], None]


def serve(
    targets: Sequence[Package],
    *,
    config: ServeConfig | None = None,
    accept_latency: bool = False,
    allow_open: bool = False,
    events: Events | None = None,
    on_ready: Callable[[Running], None] | None = None,
) -> None:
    """Answer for packages until SIGTERM, SIGINT or `Running.stop`; requests in flight are finished before it returns.

    Args:
        targets: Opened packages, each checked by `Package.open`; the first is the default of `/predict`.
        accept_latency: Serve although a promised latency is broken on this hardware; recorded as an event.
        allow_open: Listen on an address that is not loopback, where whoever reaches it may ask.
        on_ready: Called from another thread when requests are taken.

    Raises:
        ConfigError: If the address is not loopback, nothing guards it and `allow_open` is not said, or no address of this machine.
        Conflict: If the port is taken.
        ContractViolation: If a package breaks its contract on this hardware.
        MissingDependency: If the extra [serve] is not installed.
    """
    need("granian", "tidemill serve")
    config, events = config or ServeConfig(), events or Events()
    check_address(config.host, allow_open=allow_open, guarded=config.auth is not None, events=events)
    config = replace(config, port=free_port(config.host, config.port))
    app = load(targets, config=config, accept_latency=accept_latency, events=events)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(app, events, on_ready))
    finally:
        app.close()


def load(targets: Sequence[Package], *, config: ServeConfig, accept_latency: bool = False, events: Events | None = None) -> App:
    """The application for packages: each loaded, warmed up, and its contract held on this hardware.

    Raises:
        ContractViolation: If a package breaks its contract on this hardware.
    """
    events = events or Events()
    models = []
    for package in targets:
        model = Model(package, threads=config.threads)
        model.keep_contract(accept_latency=accept_latency, events=events)
        events.emit("serve.loaded", f"{model.name} {model.version}: {model.row_ms:.3g} ms a row", model=model.name, version=model.version)
        models.append(model)
    return App(models, config=config, events=events)


def check_address(host: str, *, allow_open: bool, events: Events, guarded: bool = False) -> None:
    """Refuse an address that others can reach, unless credentials are asked for or the word is given.

    Raises:
        ConfigError: If `host` is not loopback, nothing guards it and `allow_open` is false.
    """
    if _is_loopback(host) or guarded:
        return
    if not allow_open:
        raise ConfigError(
            f"serve.host: must be a loopback address, got {host!r}: whoever reaches it could ask",
            hint="[serve.auth] asks for keys or tokens; --allow-open listens there all the same",
        )
    events.warn("serve.open", f"listening on {host}: whoever reaches it may ask", host=host)


def free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0.

    Raises:
        Conflict: If another program listens on it.
        ConfigError: If `host` is no address of this machine, or the port needs more rights.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the server will bind, but without sharing the port: that another server listens must be seen.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise ConfigError(f"serve.host: must be an address of this machine, got {host!r}: {error.strerror}") from error
        except PermissionError as error:
            raise ConfigError(f"serve.port: must be one that this user may open, got {port}", hint="take one from 1024 up") from error
        except OSError as error:
            if error.errno == 98 or "in use" in str(error):
                raise Conflict(f"port {port} of {host} must be free, another program listens on it", hint="--port takes another") from error
            raise ConfigError(f"serve.host: must be an address of this machine, got {host!r}: {error.strerror}") from error
        return int(probe.getsockname()[1])


async def _run(app: App, events: Events, on_ready: Callable[[Running], None] | None) -> None:
    config, loop = app.config, asyncio.get_running_loop()
    target = RsgiApp(app, workers=config.workers or os.cpu_count() or 1)
    listener = Listener(target, config, folder=Path(), events=events)
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
    try:
        await listener.start()
        grpc = _grpc(app)
        at = f"{reachable(config.host)}:{grpc.port}" if grpc is not None else None
        running = Running(url=_url(config), grpc=at, stop=stop_from_anywhere)
        gc.collect()
        gc.freeze()
        events.emit("serve.ready", running.url, url=running.url, grpc=running.grpc)
        told = loop.run_in_executor(None, on_ready, running) if on_ready is not None else None
        if told is not None:
            told.add_done_callback(lambda told: stop() if told.exception() else None)
        await listener.run(stopping)
        events.emit("serve.stopping", "finishing requests in flight")
        calls = loop.run_in_executor(None, lambda: grpc.stop(grace_s=config.drain_timeout_s)) if grpc is not None else None
        if not await listener.stop(drain_s=config.drain_timeout_s):
            events.warn("serve.cut", f"requests in flight were cut after {config.drain_timeout_s:g} s")
        if calls is not None:
            await calls
        if told is not None:
            await told
        events.emit("serve.stopped", "stopped")
    finally:
        if grpc is not None:
            grpc.stop(grace_s=0)
        target.close()


def _grpc(app: App) -> GrpcServer | None:
    """The server of gRPC calls, where the configuration has a port for it."""
    config = app.config
    if config.grpc_port is None:
        return None
    from tidemill.serve.grpc.server import GrpcServer, secure

    credentials = secure(config.tls, folder=Path()) if config.tls is not None else None
    return GrpcServer(
        app, host=bound(config.host), port=config.grpc_port, workers=config.workers or os.cpu_count() or 1, credentials=credentials
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed, which takes half as many requests again; else asyncio's own."""
    if find_spec("uvloop") is None:
        return None
    import uvloop

    made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return made


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(config: ServeConfig) -> str:
    host, scheme = reachable(config.host), "https" if config.tls is not None else "http"
    return f"{scheme}://[{host}]:{config.port}" if ":" in host else f"{scheme}://{host}:{config.port}"
