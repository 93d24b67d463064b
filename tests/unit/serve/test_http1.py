"""HTTP/1.1 over a transport in memory: whatever the bytes come in, the same answers in the same order; what is no request is refused."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.package import Package
from tidemill.serve.access import keys
from tidemill.serve.access.config import AuthConfig
from tidemill.serve.app import App
from tidemill.serve.calls import Calls
from tidemill.serve.config import ServeConfig
from tidemill.serve.connection import Connection
from tidemill.serve.heads import KNOWN_HEADS, MAX_FIELDS, MAX_HEAD_BYTES, MAX_URL_BYTES
from tidemill.serve.http1 import Http1
from tidemill.serve.limits import LimitsConfig, Rate
from tidemill.serve.model import Model
from tidemill.testing.packages import EXAMPLE, tiny_probability

BODY = json.dumps(EXAMPLE).encode()
LIVE = b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n"


@dataclass
class Wire(asyncio.Transport):
    """A transport that keeps what is written; `room` is what fits in before the other side reads."""

    room: int | None = None
    written: bytearray = field(default_factory=bytearray)
    left: int = 0
    is_closed: bool = False
    is_aborted: bool = False
    has_ended: bool = False
    is_read: bool = True
    protocol: Any = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 5) if name == "peername" else default

    def write(self, data: Any) -> None:
        assert not self.has_ended
        assert not self.is_closed
        self.written += data
        if self.room is not None:
            self.left += len(data)
            if self.left > self.room:
                self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.left

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_ended = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.protocol.connection_lost(None)

    def abort(self) -> None:
        self.is_aborted = True
        self.close()


@dataclass
class Server:
    """The protocol over one application, on the running loop."""

    http: Http1
    app: App

    def connect(self, **wire: Any) -> tuple[Connection, Wire]:
        made, transport = self.http.connection(), Wire(**wire)
        transport.protocol = made
        made.connection_made(transport)
        return made, transport

    async def answers(self, pieces: Sequence[bytes]) -> list[tuple[int, dict[str, str], bytes]]:
        """What comes back for bytes that come in these pieces."""
        connection, wire = self.connect()
        for piece in pieces:
            while not wire.is_read:
                await asyncio.sleep(0)
            connection.data_received(piece)
            await asyncio.sleep(0)
        await self.settled(wire)
        return parsed(bytes(wire.written))

    async def settled(self, wire: Wire) -> None:
        quiet = 0
        while quiet < 5:
            before = len(wire.written)
            await asyncio.sleep(0.001 if self.http.in_flight.value else 0)
            quiet = quiet + 1 if len(wire.written) == before and (not self.http.in_flight.value or quiet < 4) else 0


def parsed(content: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    found = []
    while content:
        head, _, content = content.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        size = int(headers.get("content-length", "0"))
        found.append((int(first.split()[1]), headers, content[:size]))
        content = content[size:]
    return found


@pytest.fixture(scope="module")
def model(packages: Path) -> Model:
    return Model(Package.open(packages / "binary"))


@pytest.fixture
def serve(model: Model) -> Callable[..., Any]:
    """Runs a test's coroutine with a server of the given configuration."""

    def run(test: Callable[[Server], Any], *, most: int = 100, **config: Any) -> Any:
        async def main() -> Any:
            settings = ServeConfig(**config)
            app = App([model], config=settings)
            http = Http1(Calls(app, workers=2), settings, most=most)
            try:
                return await test(Server(http, app))
            finally:
                assert http.in_flight.value == 0
                assert http.calls.app.models[0].holds._count == 0
                http.close()
                app.close()

        return asyncio.run(main())

    return run


def post(body: bytes = BODY, *lines: str, path: str = "/predict", form: str = "length") -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: a", "content-type: application/json", *lines]
    if form == "length":
        return "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body
    half = len(body) // 2
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part)
    return "\r\n".join([*head, "transfer-encoding: chunked", "", ""]).encode() + chunks + b"0\r\nx-trailer: a\r\n\r\n"


def statuses(found: list[tuple[int, dict[str, str], bytes]]) -> list[int]:
    return [status for status, _, _ in found]


# Bytes however they are cut.


@pytest.mark.parametrize("form", ["length", "chunked"])
@pytest.mark.parametrize("inline_ms", [1000.0, 0.0], ids=["on the loop", "by the queue"])
def test_byte_after_byte(serve: Callable[..., Any], form: str, inline_ms: float) -> None:
    sent = post(form=form)

    async def test(server: Server) -> None:
        for pieces in ([sent], [sent[i : i + 1] for i in range(len(sent))]):
            [(status, headers, body)] = await server.answers(pieces)
            assert status == 200
            assert json.loads(body)["probability"] == pytest.approx(tiny_probability(EXAMPLE), abs=1e-6)
            assert headers["server"] == "tidemill"
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["date"])

    serve(test, inline_ms=inline_ms)


REQUESTS = [
    LIVE, post(), post(form="chunked"), post(b"{"), post(b"", path="/nowhere"), post(b"x" * 1500, path="/nowhere"),
    b"GET http://other:80/health/live?a=b HTTP/1.1\r\nhost: a\r\n\r\n", b"GET /health%2Flive HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}", b"\r\nDELETE /predict HTTP/1.1\r\nHOST: a\r\n\r\n",
    post(BODY, "expect: 200-maybe"), post(BODY, "connection: upgrade", "upgrade: h2c"), post(BODY, "connection: upgrade", "upgrade: h2c", form="chunked"),
    b"GET /health/live HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
]  # fmt: skip
LAST = [
    b"", b"GET /health/live HTTP/1.0\r\n\r\n", b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nGET /after HTTP/1.1\r\nhost: a\r\n\r\n",
    b"BREW / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n" + LIVE, post(b"a" * 3000), post(b"a" * 3000, form="chunked"), b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\nabc",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    sent=st.tuples(st.lists(st.sampled_from(REQUESTS), max_size=5), st.sampled_from(LAST)),
    cuts=st.lists(st.floats(0, 1), max_size=12),
)
def test_any_cut_of_the_bytes_gives_the_same_answers(packages: Path, sent: tuple[list[bytes], bytes], cuts: list[float]) -> None:
    content = b"".join(sent[0]) + sent[1]
    at = sorted({0, len(content), *(int(cut * len(content)) for cut in cuts)})
    settings = ServeConfig(max_body_mb=0.002)

    async def main() -> None:
        app = App([_model(packages)], config=settings)
        http = Http1(Calls(app, workers=1), settings, most=10)
        server = Server(http, app)
        whole = [plain(one) for one in await server.answers([content])]
        parts = [plain(one) for one in await server.answers([content[a:b] for a, b in pairwise(at)])]
        http.close()
        app.close()
        assert parts == whole
        assert len(whole) == len(sent[0]) + (1 if sent[1] else 0)

    asyncio.run(main())


AGAIN = [
    *REQUESTS, post(b'{"a": "\r\n\r\n"}', path="/nowhere"), post(b"\r\n\r\n" * 10, path="/nowhere"), b"\r\n" + LIVE, b"\r\n\r\n" + LIVE, b"\r\n\r\n", post(b"", path="/predict"),
    post(BODY, "expect: 100-continue"), post(BODY[:-1] + b" }"), post(b"[" + BODY[1:]), LIVE + LIVE, post() + LIVE, post(path="/models/tiny/predict?a=b"),
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(sent=st.lists(st.sampled_from(AGAIN), min_size=2, max_size=12))
def test_a_head_that_came_before_means_the_same(packages: Path, sent: list[bytes]) -> None:
    """Each piece one or two whole requests, so that heads are known again, beside the same bytes in pieces that never are."""

    async def main() -> None:
        app = App([_model(packages)])
        http = Http1(Calls(app, workers=1), app.config, most=10)
        server = Server(http, app)
        content = b"".join(sent)
        expected = [plain(one) for one in await server.answers([content[at : at + 50] for at in range(0, len(content), 50)])]
        for _ in range(2):
            assert [plain(one) for one in await server.answers(sent)] == expected
        http.close()
        app.close()

    asyncio.run(main())


def test_which_heads_are_known_again(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        async def is_known(first: bytes, then: bytes) -> bool:
            await server.answers([first])
            return server.http.heads.find(then) is not None

        assert await is_known(post(), post())
        assert await is_known(post(), post(b"x" * len(BODY)))
        assert not await is_known(post(), post() + LIVE)
        assert not await is_known(post(), post()[:-1])
        assert not await is_known(b"\r\n\r\n" + LIVE, b"\r\n\r\n")
        assert await is_known(LIVE, LIVE)
        for special in (
            post(form="chunked"), post(BODY, "connection: close"), post(BODY, "expect: 100-continue"),
            post(BODY, f"x-long: {'a' * 2000}"), b"GET /health/live HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        ):  # fmt: skip
            assert not await is_known(special, special), special

    serve(test)


def test_heads_that_are_all_different_take_no_more_room(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        for number in range(KNOWN_HEADS + 10):
            [(status, _, _)] = await server.answers([post(BODY, f"x-request-id: {number}")])
            assert status == 200
        assert server.http.heads.find(post(BODY, f"x-request-id: {number}")) is not None
        assert server.http.heads.find(post(BODY, "x-request-id: 0")) is None
        assert len(server.http.heads) <= KNOWN_HEADS

    serve(test, most=KNOWN_HEADS + 100)


def test_what_a_head_allows_is_looked_at_each_time(packages: Path, tmp_path: Path) -> None:
    """A known head is no admission: limits count each request, and a key that nobody has is refused each time."""
    key = keys.add(tmp_path / "keys.json", "alice", scopes=["predict"])

    async def main() -> None:
        config = ServeConfig(auth=AuthConfig(keys=Path("keys.json")), limits=LimitsConfig(per_key=Rate(per_day=3)))
        app = App([_model(packages)], config=config, folder=tmp_path)
        http = Http1(Calls(app, workers=1), config, most=10)
        server = Server(http, app)
        sent = post(BODY, f"x-api-key: {key}")
        assert statuses(await server.answers([sent] * 5)) == [200, 200, 200, 429, 429]
        assert http.heads.find(sent) is not None
        assert statuses(await server.answers([post(BODY, "x-api-key: other")] * 2)) == [401, 401]
        http.close()
        app.close()

    asyncio.run(main())


_MODELS: dict[Path, Model] = {}


def _model(packages: Path) -> Model:
    if packages not in _MODELS:
        _MODELS[packages] = Model(Package.open(packages / "binary"))
    return _MODELS[packages]


def plain(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, dict[str, str], bytes]:
    status, headers, body = answer
    return status, {name: value for name, value in headers.items() if name not in ("date", "x-request-id")}, body


def test_pipelined_requests_are_answered_in_their_order(serve: Callable[..., Any]) -> None:
    records = [{**EXAMPLE, "distance": float(i)} for i in range(300)]

    async def test(server: Server) -> None:
        found = await server.answers([b"".join(post(json.dumps(record).encode()) for record in records)])
        assert [json.loads(body)["probability"] for _, _, body in found] == pytest.approx([tiny_probability(r) for r in records], abs=1e-6)

    serve(test)
    serve(test, inline_ms=0.0)


def test_more_is_not_read_while_requests_wait(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        connection, wire = server.connect()
        connection.data_received(LIVE * 3)
        assert not wire.is_read
        await server.settled(wire)
        assert wire.is_read
        assert len(parsed(bytes(wire.written))) == 3

    serve(test)


# What each request gets.


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (LIVE, None),
        (b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "close"),
        (b"GET /health/live HTTP/1.0\r\n\r\n", "close"),
        (b"GET /health/live HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", "keep-alive"),
    ],
)
def test_what_becomes_of_the_connection(serve: Callable[..., Any], sent: bytes, kept: str | None) -> None:
    async def test(server: Server) -> None:
        connection, wire = server.connect()
        connection.data_received(sent)
        await server.settled(wire)
        [(status, headers, _)] = parsed(bytes(wire.written))
        assert (status, headers.get("connection"), wire.is_closed) == (200, kept, kept == "close")

    serve(test)


def test_head_says_what_get_would(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        connection, wire = server.connect()
        connection.data_received(b"HEAD /health/live HTTP/1.1\r\nhost: a\r\n\r\n" + LIVE)
        await server.settled(wire)
        first, second, body = bytes(wire.written).split(b"\r\n\r\n")
        assert b"content-length: %d" % len(body) in first
        assert b"content-length: %d" % len(body) in second

    serve(test)


def test_the_body_is_asked_for_where_the_caller_waits_for_that(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        connection, wire = server.connect()
        sent = post(BODY, "expect: 100-continue")
        connection.data_received(sent[: -len(BODY)])
        assert bytes(wire.written) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.data_received(BODY)
        await server.settled(wire)
        assert statuses(parsed(bytes(wire.written))) == [100, 200]
        for refused, status in ((post(b"", "expect: 100-continue"), 404), (post(b"x" * 9000, "expect: 100-continue"), 413)):
            connection, wire = server.connect()
            head = (
                refused.partition(b"\r\n\r\n")[0]
                .replace(b"length: 0", b"length: 9")
                .replace(b"/predict", b"/nowhere" if status == 404 else b"/predict")
            )
            connection.data_received(head + b"\r\n\r\n")
            [(found, headers, _)] = parsed(bytes(wire.written))
            assert (found, headers["connection"], wire.has_ended) == (status, "close", True)
            connection.connection_lost(None)

    serve(test, max_body_mb=0.005)


def test_a_large_body_that_nobody_wants_is_not_waited_for(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        for form, size in (("length", 100_000), ("chunked", 10)):
            connection, wire = server.connect()
            sent = post(b"a" * size, path="/nowhere", form=form)
            connection.data_received(sent[: sent.index(b"\r\n\r\n") + 4])
            assert statuses(parsed(bytes(wire.written))) == [404]
            assert wire.has_ended
            connection.data_received(b"a" * 1000)  # thrown away
            assert not wire.is_closed
            connection.eof_received()
            wire.close()

    serve(test)


# What is refused.

HEAD = "POST /predict HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + "content-length: 2\r\ncontent-length: 2\r\n\r\n{}", HEAD + "content-length: 2\r\ncontent-length: 3\r\n\r\n{}", HEAD + "content-length: 2, 2\r\n\r\n{}",
        HEAD + "content-length: +2\r\n\r\n{}", HEAD + "content-length: -2\r\n\r\n{}", HEAD + "content-length:\r\n\r\n{}", HEAD + "content-length: 0x2\r\n\r\n{}",
        HEAD + "content-length: 99999999999999999999999\r\n\r\n{}", HEAD + "content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + "transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n", HEAD + "transfer-encoding: gzip\r\n\r\n{}", HEAD + "transfer-encoding: chunked, gzip\r\n\r\n{}",
        HEAD + "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", HEAD + "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", HEAD + "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + "transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n", HEAD + "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + "transfer-encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n", HEAD + "transfer-encoding: chunked\r\n\r\n2 \r\n{}\r\n0\r\n\r\n", HEAD + "transfer-encoding: chunked\r\n\r\n-2\r\n{}",
        HEAD + "transfer-encoding: chunked\r\n\r\n2\n{}\n0\n\n", HEAD + "transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}", HEAD + "transfer-encoding: chunked\r\n\r\n2\r\n{}zz\r\n",
        HEAD + "host: b\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\nhost: a\n\n", HEAD + " folded: a\r\n\r\n", HEAD + "x: a\0b\r\n\r\n", HEAD + "x: a\rb\r\n\r\n", HEAD + ": a\r\n\r\n",
        HEAD + "a b: c\r\n\r\n", "GET / HTTP/2.0\r\nhost: a\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", "\x16\x03\x01\x02\x00\x01",
    ],
)  # fmt: skip
def test_what_smuggles_or_is_no_request_is_refused_and_nothing_behind_it_is_read(serve: Callable[..., Any], sent: str) -> None:
    async def test(server: Server) -> None:
        for content in (sent.encode("latin-1"), sent.encode("latin-1") + LIVE):
            found = await server.answers([LIVE + content])
            assert statuses(found) == [200, 400]
            assert found[1][1]["connection"] == "close"
            assert json.loads(found[1][2])["error"]["reason"]

    serve(test)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"a" * (MAX_URL_BYTES - 1) + b" HTTP/1.1\r\nhost: a\r\n\r\n", 404),
        (b"GET /" + b"a" * MAX_URL_BYTES + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
        (b"GET /" + b"a" * 3 * MAX_HEAD_BYTES, 414),
        (LIVE[:-2] + b"x: a\r\n" * (MAX_FIELDS - 1) + b"\r\n", 200),
        (LIVE[:-2] + b"x: a\r\n" * MAX_FIELDS + b"\r\n", 431),
        (LIVE[:-2] + b"x: " + b"a" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n", 200),
        (LIVE[:-2] + b"x: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (LIVE[:-2] + b"x: " + b"a" * 3 * MAX_HEAD_BYTES, 431),
        (LIVE[:-2] + b"x: a\r\n" * 40_000 + b"x", 431),
        (post(b"", form="chunked")[:-19] + b"2;" + b"a" * 3 * MAX_HEAD_BYTES, 431),
        (post(b"{" * 5000 + b"}"), 413),
        (post(b"{" * 5000 + b"}", form="chunked"), 413),
        (post(b"{" * 4999 + b"}"), 400),
    ],
)
def test_limits_of_size(serve: Callable[..., Any], sent: bytes, status: int) -> None:
    async def test(server: Server) -> None:
        for size in (len(sent), 10_000) if sent.endswith((b"\n", b"}")) else (10_000, 50_000):
            found = await server.answers([sent[i : i + size] for i in range(0, len(sent), size)])
            assert statuses(found) == [status]
            assert (found[0][1].get("connection") == "close") == (status in (413, 414, 431))

    serve(test, max_body_mb=0.005)


def test_too_many_connections_are_told_so(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        kept = [server.connect() for _ in range(2)]
        _, late = server.connect()
        [(status, headers, _)] = parsed(bytes(late.written))
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        late.close()
        kept[0][1].close()
        assert server.connect()[1].written == b""

    serve(test, most=2)


# Time.


def test_whoever_takes_too_long_is_let_go(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        silent, head, body, idle = (server.connect() for _ in range(4))
        head[0].data_received(LIVE[:10])
        body[0].data_received(post()[:-5])
        idle[0].data_received(LIVE)
        while not all(wire.is_closed or wire.has_ended for _, wire in (silent, head, body, idle)):
            await asyncio.sleep(0.01)
        assert silent[1].written == b""
        assert statuses(parsed(bytes(head[1].written))) == [408]
        assert statuses(parsed(bytes(body[1].written))) == [408]
        assert statuses(parsed(bytes(idle[1].written))) == [200]

    serve(test, header_timeout_s=0.1, body_timeout_s=0.1, idle_timeout_s=0.1)


def test_whoever_does_not_read_is_dropped_and_whoever_reads_slowly_is_not(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        (stuck, stuck_wire), (slow, slow_wire) = server.connect(room=100), server.connect(room=100)
        for connection in (stuck, slow):
            connection.data_received(LIVE * 2)
        while not stuck_wire.is_aborted:
            await asyncio.sleep(0.01)
            slow_wire.left = max(1, slow_wire.left - 1)
        assert len(parsed(bytes(stuck_wire.written))) == 1  # the next is not begun
        assert not slow_wire.is_closed
        slow_wire.left = 0
        slow_wire.room = None
        slow.resume_writing()
        await server.settled(slow_wire)
        assert len(parsed(bytes(slow_wire.written))) == 2

    serve(test, body_timeout_s=0.2)


# Callers who leave, and servers that stop.


def test_a_caller_who_has_closed_one_half_is_answered(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        server.connect()  # with one who asks alone it is answered at once
        connection, wire = server.connect()
        connection.data_received(post())
        assert connection.eof_received()
        await server.settled(wire)
        assert statuses(parsed(bytes(wire.written))) == [200]
        assert wire.is_closed
        connection, wire = server.connect()
        connection.data_received(post()[:-1])
        assert not connection.eof_received()
        assert statuses(parsed(bytes(wire.written))) == [400]
        wire.close()

    serve(test)


@pytest.mark.parametrize("sent", [LIVE[:9], post()[:-1], post(), post() + LIVE, b""])
def test_whoever_is_gone_leaves_nothing_behind(serve: Callable[..., Any], sent: bytes) -> None:
    async def test(server: Server) -> None:
        _, other = server.connect()
        connection, wire = server.connect()
        connection.data_received(sent)
        wire.close()
        other.close()
        await server.settled(wire)
        assert not server.http.connections
        assert not wire.written

    serve(test)
    serve(test, inline_ms=0.0)


def test_work_of_whoever_is_gone_is_not_begun(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        many = json.dumps({"records": [EXAMPLE] * 20_000}).encode()
        connections = [server.connect() for _ in range(8)]
        for connection, _ in connections:
            connection.data_received(post(many, path="/predict_batch"))
        for _, wire in connections:
            wire.close()
        while server.http.in_flight.value:
            await asyncio.sleep(0.01)
        assert server.app.metrics.errors.sample("gone").value > 0

    serve(test, inline_ms=0.0, max_body_mb=100.0)


def test_a_server_that_stops_answers_what_it_was_asked(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        (idle, idle_wire), (asking, asking_wire) = server.connect(), server.connect()
        idle.data_received(LIVE)
        asking.data_received(post()[:-1])
        draining = asyncio.ensure_future(server.http.drain(20.0))
        await asyncio.sleep(0)
        late = server.connect()[1]
        assert late.is_closed
        idle.data_received(LIVE)  # it was on its way
        assert statuses(parsed(bytes(idle_wire.written))) == [200, 200]
        assert idle_wire.is_closed
        asking.data_received(post()[-1:])
        assert await draining
        [(status, headers, _)] = parsed(bytes(asking_wire.written))
        assert (status, headers["connection"]) == (200, "close")

    serve(test)


def test_what_takes_too_long_to_stop_is_cut(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        (_, idle_wire), (asking, asking_wire) = server.connect(), server.connect()
        asking.data_received(post()[:-1])
        assert not await server.http.drain(0.3)
        assert idle_wire.is_closed
        assert not idle_wire.is_aborted
        assert asking_wire.is_aborted

    serve(test)


def test_limits_that_are_counted_elsewhere_hold_up_no_order(serve: Callable[..., Any]) -> None:
    async def test(server: Server) -> None:
        assert server.app.limits is not None
        server.app.limits.waits = True  # as where Redis counts
        found = await server.answers([LIVE + post() * 3 + LIVE])
        assert statuses(found) == [200, 200, 200, 429, 200]

    serve(test, limits=LimitsConfig(per_address=Rate(per_s=0.001, burst=2)))
