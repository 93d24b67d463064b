"""One server of the comparison: `python stacks.py NAME PORT`. The echo stacks parse a small JSON body and send a number back."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

JSON = [("content-type", "application/json")]


class RsgiEcho:
    async def __rsgi__(self, _scope: Any, protocol: Any) -> None:
        value = msgspec.json.decode(await protocol())
        protocol.response_bytes(200, JSON, msgspec.json.encode({"y": value["distance"]}))


async def asgi_echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    message = await receive()
    body = msgspec.json.encode({"y": msgspec.json.decode(message["body"])["distance"]})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class ProtocolEcho(asyncio.Protocol):
    """What our server is at its barest: a parser on a transport, no task a request."""

    def connection_made(self, transport: Any) -> None:
        import httptools

        self._transport, self._parser = transport, httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body = body

    def on_message_complete(self) -> None:
        made = msgspec.json.encode({"y": msgspec.json.decode(self._body)["distance"]})
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(made) + made)


def protocol(port: int) -> None:
    import uvloop

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(ProtocolEcho, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def granian(interface: str, target: Any, port: int, *, uvloop: bool) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    async def main() -> None:
        kind = Interfaces.RSGI if interface == "rsgi" else Interfaces.ASGINL
        server = Server(
            target, address="127.0.0.1", port=port, interface=kind, http=HTTPModes.http1, websockets=False, log_enabled=False, backlog=1024
        )
        await server.serve()

    if uvloop:
        import uvloop as loops

        with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
            runner.run(main())
    else:
        asyncio.run(main())


def uvicorn(port: int) -> None:
    import uvicorn as server

    server.run(asgi_echo, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


def tidemill(port: int, **config: Any) -> None:
    from tidemill.serve.config import ServeConfig
    from tidemill.serve.server import serve
    from tidemill.testing.packages import tiny_package

    with tempfile.TemporaryDirectory() as folder:
        serve([tiny_package(Path(folder) / "tiny")], config=ServeConfig(port=port, **config))


STACKS = {
    "granian-rsgi": lambda port: granian("rsgi", RsgiEcho(), port, uvloop=True),
    "granian-rsgi-asyncio": lambda port: granian("rsgi", RsgiEcho(), port, uvloop=False),
    "granian-asgi": lambda port: granian("asgi", asgi_echo, port, uvloop=True),
    "uvicorn-asgi": uvicorn,
    "protocol": protocol,
    "tidemill-inline": lambda port: tidemill(port, inline_ms=1000.0),
    "tidemill-threads": lambda port: tidemill(port, inline_ms=0.0),
}

if __name__ == "__main__":
    STACKS[sys.argv[1]](int(sys.argv[2]))
