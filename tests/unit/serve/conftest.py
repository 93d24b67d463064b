"""An application over tiny packages, asked without a socket."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tidemill.core.events import Event, Events
from tidemill.serve.app import App
from tidemill.serve.calls import Calls
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request, Response
from tidemill.serve.server import load
from tidemill.testing.packages import tiny_package

Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny package a task, named as its task."""
    folder = tmp_path_factory.mktemp("packages")
    for task in ("binary", "multiclass", "regression", "text", "embedding"):
        tiny_package(folder / task, task=task, name=task)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def seen() -> list[Event]:
    """Events that the application of `app` emitted."""
    return []


@pytest.fixture
def app(packages: Path, seen: list[Event]) -> App:
    """All tiny packages behind one application; `binary`, version 3, is the default."""
    from tidemill.core.package import Package

    names = ("binary", "multiclass", "regression", "text", "embedding")
    opened = [Package.open(packages / name, version="3" if name == "binary" else None) for name in names]
    return load(opened, config=ServeConfig(max_batch_rows=50), events=Events(seen.append))


@pytest.fixture
def send(app: App) -> Callable[..., Response]:
    """Sends one request: a body as it stands, or a value as JSON."""

    def ask(method: str, path: str, body: Any = None, **headers: str) -> Response:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return app.handle(Request(method, path, "", named, content))

    return ask


@pytest.fixture
def ask(send: Callable[..., Response]) -> Ask:
    """As `send`, and reads the answer: status and value."""

    def asked(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        response = send(method, path, body, **headers)
        return response.status, json.loads(response.body) if response.body else None

    return asked


@contextmanager
def started_redis() -> Iterator[tuple[str, Any]]:
    """The address of a Redis of one's own, and its process."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as server:
        url = f"redis://127.0.0.1:{port}/0"
        end = time.monotonic() + 10
        while True:
            try:
                redis.Redis.from_url(url).ping()
                break
            except redis.RedisError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        yield url, server
        server.terminate()


@pytest.fixture
def start_redis() -> Callable[[], AbstractContextManager[tuple[str, Any]]]:
    """Starts a Redis of the test's own."""
    return started_redis


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with started_redis() as (url, _):
        yield url


@contextmanager
def over_grpc(app: App, port: int = 0) -> Iterator[int]:
    """The port on which an application answers gRPC calls."""
    from tidemill.serve.grpc.server import GrpcServer

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    async def begun() -> tuple[Calls, GrpcServer]:
        calls = Calls(app, workers=4)
        server = GrpcServer(calls, host="127.0.0.1", port=port)
        await server.start()
        return calls, server

    with ExitStack() as stack:
        stack.callback(lambda: (loop.call_soon_threadsafe(loop.stop), thread.join(), loop.close()))
        calls, server = wait(begun())
        stack.callback(calls.close)
        stack.callback(lambda: wait(server.stop(grace_s=1)))
        yield server.port


@pytest.fixture(scope="session")
def grpc_served() -> Callable[..., AbstractContextManager[int]]:
    """Has an application answer gRPC calls: of it, and a port, makes the context of that port."""
    return over_grpc
