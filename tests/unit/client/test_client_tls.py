from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill.client import AsyncClient, Client
from tidemill.core.errors import ConfigError
from tidemill.serve.config import ServeConfig
from tidemill.serve.server import Running, serve
from tidemill.serve.tls import TlsConfig
from tidemill.testing.packages import EXAMPLE, tiny_package

pytestmark = pytest.mark.server


def ask(url: str, **arguments: Any) -> list[bool]:
    """What each kind of client is answered, twice over one connection."""
    with Client(url, **arguments) as client:
        answers = [client.predict(EXAMPLE)["prediction"] for _ in range(2)]
        assert len(client._pool._idle) == 1

    async def alike() -> list[bool]:
        async with AsyncClient(url, **arguments) as client:
            return [(await client.predict(EXAMPLE))["prediction"] for _ in range(2)]

    return [*answers, *asyncio.run(alike())]


def test_a_server_is_trusted_by_its_authority_alone(tmp_path: Path, certify: Callable[..., bytes]) -> None:
    certify(tmp_path)
    tls = TlsConfig(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    ready: queue.Queue[Running] = queue.Queue()
    options = {"config": ServeConfig(port=0, tls=tls), "on_ready": ready.put}
    thread = threading.Thread(target=serve, args=([tiny_package(tmp_path / "tiny")],), kwargs=options)
    thread.start()
    running = ready.get(timeout=60)
    try:
        url = running.url.replace("127.0.0.1", "localhost")
        assert ask(url, ca=tls.cert) == [True] * 4
        with pytest.raises(ConfigError, match=r"must be one that is trusted: .*; ca names its authority"):
            Client(url).health()
        with pytest.raises(ConfigError, match="must be one that is trusted"):
            asyncio.run(AsyncClient(url).health())
        with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
            Client(running.url, ca=tls.cert).health()
    finally:
        running.stop()
        thread.join(30)
