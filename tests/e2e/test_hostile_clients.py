"""Clients that are slow, half gone, huge or broken, over raw sockets: others have their right answers all the while."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tidemill.testing.packages import EXAMPLE, tiny_package, tiny_probability

pytestmark = pytest.mark.server

# Far beyond what an answer takes here; a server that waits for the clients below would need longer.
PATIENCE_S = 10.0
MEGABYTE = 2**20
MAX_BODY_MB = 4.0
# The example's `departs` in microseconds since 1970.
DEPARTS_US = 1_370_115_000_000_000
BODY = json.dumps(EXAMPLE).encode()


@pytest.fixture(scope="module")
def server(serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    package = tiny_package(tmp_path_factory.mktemp("served") / "rows", name="rows", version="1")
    limits = {"header_timeout_s": 1.0, "body_timeout_s": 1.0, "max_body_mb": MAX_BODY_MB}
    with serving.served(package.path, grpc_port=0, **limits) as running:
        yield running
        assert running.events("serve.failed") == []
        assert running.stop() == 0


@contextmanager
def others(server: Any) -> Iterator[None]:
    """Callers who ask all the while, over a connection that is kept, over new ones and over gRPC; each must have its own answer, soon."""
    stopping, failures, answered = threading.Event(), [], [0, 0, 0]

    def ask(which: int, probability: Callable[[dict[str, Any]], float]) -> None:
        while not stopping.is_set():
            record = {**EXAMPLE, "distance": float(answered[which] % 3000), "weekend": which == 0}
            try:
                found = probability(record)
                if abs(found - tiny_probability(record)) > 1e-6:
                    failures.append(f"{found} for {record}")
            except Exception as error:  # noqa: BLE001 - each is a failure
                failures.append(repr(error))
            answered[which] += 1
            time.sleep(0.002)

    with ExitStack() as stack:
        ways = [stack.enter_context(way) for way in (over_http(server, is_kept=True), over_http(server, is_kept=False), over_grpc(server))]
        threads = [threading.Thread(target=ask, args=each) for each in enumerate(ways)]
        for thread in threads:
            thread.start()
        while min(answered) < 5 and not failures:
            time.sleep(0.01)
        try:
            yield
            until = [count + 5 for count in answered]
            while any(count < enough for count, enough in zip(answered, until, strict=True)):
                time.sleep(0.01)
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
    assert failures == []


@contextmanager
def over_http(server: Any, *, is_kept: bool) -> Iterator[Callable[[dict[str, Any]], float]]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE_S)

    def probability(record: dict[str, Any]) -> float:
        try:
            connection.request("POST", "/predict", json.dumps(record))
            found: float = json.loads(connection.getresponse().read())["probability"]
        except Exception:
            connection.close()
            raise
        if not is_kept:
            connection.close()
        return found

    yield probability
    connection.close()


@contextmanager
def over_grpc(server: Any) -> Iterator[Callable[[dict[str, Any]], float]]:
    import grpc

    from tidemill.serve.grpc.messages import messages

    made = messages()

    def probability(record: dict[str, Any]) -> float:
        answer = infer(made["ModelInferRequest"](model_name="rows", inputs=tensors(record)), timeout=PATIENCE_S)
        place = [output.name for output in answer.outputs].index("probability")
        return struct.unpack("<2f", answer.raw_output_contents[place])[1]

    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=made["ModelInferRequest"].SerializeToString,
            response_deserializer=made["ModelInferResponse"].FromString,
        )
        yield probability


def tensors(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A record of the tiny package as the inference protocol has it."""
    datatypes = {"distance": "FP64", "fare": "FP32", "seats": "INT64", "carrier": "BYTES", "weekend": "BOOL"}
    contents = {
        "FP64": "fp64_contents",
        "FP32": "fp32_contents",
        "INT64": "int64_contents",
        "BYTES": "bytes_contents",
        "BOOL": "bool_contents",
    }
    values = {**record, "carrier": record["carrier"].encode()}
    told = [(name, datatype, values[name]) for name, datatype in datatypes.items()] + [("departs", "INT64", DEPARTS_US)]
    return [{"name": name, "datatype": kind, "shape": [1, 1], "contents": {contents[kind]: [value]}} for name, kind, value in told]


def connect(server: Any, *, port: int | None = None) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port or int(server.url.rpartition(":")[2])), timeout=PATIENCE_S)


def head(size: int | str, path: str = "/predict", *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: a", "content-type: application/json", f"content-length: {size}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body; 0 where the server has closed."""
    try:
        with connection.makefile("rb") as file:
            first = file.readline().split()
            length = 0
            while (line := file.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            return (int(first[1]), file.read(length)) if len(first) > 1 else (0, b"")
    except ConnectionError:
        return 0, b""


def asked(server: Any, content: bytes) -> tuple[int, bytes]:
    with connect(server) as connection:
        with suppress(ConnectionError):  # what is refused early need not be read whole
            connection.sendall(content)
        return answer(connection)


def slow_heads(server: Any, stack: ExitStack) -> None:
    slow = [stack.enter_context(connect(server)) for _ in range(100)]
    for at in range(15):
        for connection in slow:
            with suppress(OSError):
                connection.sendall(head(10)[at : at + 1])
        time.sleep(0.1)
    assert {answer(connection)[0] for connection in slow} <= {0, 400, 408}  # each was let go


def slow_bodies(server: Any, stack: ExitStack) -> None:
    slow = [stack.enter_context(connect(server)) for _ in range(100)]
    for connection in slow:
        connection.sendall(head(len(BODY)))
    for at in range(15):
        for connection in slow:
            with suppress(OSError):
                connection.sendall(BODY[at : at + 1])
        time.sleep(0.1)
    assert {answer(connection)[0] for connection in slow} == {408}


def slow_readers(server: Any, stack: ExitStack) -> None:
    """Ask for much, and take none of it."""
    body = json.dumps({"records": [EXAMPLE] * 2000}).encode()
    for _ in range(10):
        connection = stack.enter_context(socket.socket())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        connection.sendall(head(len(body), "/predict_batch") + body)
    time.sleep(0.5)


def half_open(server: Any, stack: ExitStack) -> None:
    for _ in range(300):
        stack.enter_context(connect(server))
    time.sleep(0.3)


def many_idle(server: Any, stack: ExitStack) -> None:
    idle = [stack.enter_context(connect(server)) for _ in range(300)]
    for turn in range(2):
        for connection in idle:
            connection.sendall(head(len(BODY)) + BODY)
        assert {answer(connection)[0] for connection in idle} == {200}, turn


def resets(server: Any, _: ExitStack) -> None:
    """A connection that is reset in its head, in its body, before and after its answer."""
    for content in (head(10)[:30], head(len(BODY)) + BODY[:10], head(len(BODY)) + BODY, b""):
        for _ in range(50):
            connection = connect(server)
            connection.sendall(content)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


def shut_halfway(server: Any, stack: ExitStack) -> None:
    """The writing side closed: after a whole request its answer still comes, after half of one nothing does."""
    for content, expected in ((head(len(BODY)) + BODY, {200, 0}), (head(len(BODY)) + BODY[:10], {0, 400, 408})):
        connection = stack.enter_context(connect(server))
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection)[0] in expected


def huge_headers(server: Any, _: ExitStack) -> None:
    for lines in (
        ["x: " + "a" * 65_536],
        ["x: " + "a" * 4 * MEGABYTE],
        [f"x-{i}: a" for i in range(5000)],
        ["authorization: Bearer " + "a" * 60_000],
    ):
        assert asked(server, head(len(BODY), "/predict", *lines) + BODY)[0] in (0, 200, 400, 431)
    assert asked(server, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n")[0] in (0, 400, 404, 414, 431)


def bombs(server: Any, _: ExitStack) -> None:
    """A hundred megabytes in a small body; what comes out is bounded, and so is what it takes meanwhile."""
    large = b" " * (100 * MEGABYTE)
    packed = {"gzip": gzip.compress(large, 1), "zstd": zstandard.ZstdCompressor().compress(large)}
    twice = gzip.compress(gzip.compress(large, 1), 9)
    for encoding, content in packed.items():
        for _ in range(4):
            status, told = asked(server, head(len(content), "/predict", f"content-encoding: {encoding}") + content)
            assert (status, b"at most 4000000 bytes when it is unpacked" in told) == (413, True)
    for encoding in ("gzip, gzip", "deflate", "br"):
        assert asked(server, head(len(twice), "/predict", f"content-encoding: {encoding}") + twice)[0] == 415
    # Frames that promise more memory than anybody has.
    greedy = b"\x28\xb5\x2f\xfd\x00\xff" + b"\xff" * 20
    assert asked(server, head(len(greedy), "/predict", "content-encoding: zstd") + greedy)[0] == 400


def strange_json(server: Any, _: ExitStack) -> None:
    number = b"9" * 10_000
    for content in (
        b"[" * 200_000, b'{"a":' * 100_000, b'{"distance":' + b"[" * 50_000 + b"]" * 50_000 + b"}", b"\0" * 100, b'{"distance": "\0"}', BODY.replace(b"1400.0", number),
        BODY.replace(b"1400.0", b"0." + number), BODY.replace(b"1400.0", b"1e" + number), BODY.replace(b": 3", b": " + number), BODY.replace(b"12.5", b"NaN"),
        BODY.replace(b'"UA"', b'"\\ud800"'), BODY.replace(b'"UA"', b'"\xff"'), BODY[:-1] + b',"distance":1' * 50_000 + b"}", b'"' + b"\\" * 99_999,
    ):  # fmt: skip
        for path in ("/predict", "/predict_batch", "/v1/models/rows:predict", "/v2/models/rows/infer"):
            assert asked(server, head(len(content), path) + content)[0] in (200, 400, 422), (path, content[:80])
    nul = BODY.replace(b'"UA"', b'"U\\u0000A"')
    assert asked(server, head(len(nul)) + nul)[0] == 200  # a text like another


def wrong_lengths(server: Any, _: ExitStack) -> None:
    for size in (len(BODY) - 1, 0, 1):  # what is left over is the next request, and none
        assert asked(server, head(size) + BODY)[0] in (400, 422)
    for size in ("-1", "1e3", "0x10", "٣", "9" * 30, f"{len(BODY)}, {len(BODY)}", "", "18446744073709551616"):
        assert asked(server, head(0).replace(b"length: 0", f"length: {size}".encode()) + BODY)[0] in (0, 200, 400, 413)
    assert asked(server, head(len(BODY) + 1) + BODY)[0] == 408
    assert asked(server, head(10 * MEGABYTE) + BODY)[0] == 413  # at once, by what it says


def chunked_garbage(server: Any, _: ExitStack) -> None:
    chunked = head(0).replace(b"content-length: 0", b"transfer-encoding: chunked")
    for content in (b"zz\r\n", b"-1\r\n{}", b"ffffffffffffffff\r\n{}", b"10000000000000000\r\n{}", b"2\r\n{}\r\nzz", b"2;" + b"a" * 100_000 + b"\r\n{}\r\n0\r\n\r\n", b"5\r\n{}\r\n0\r\n\r\n"):  # fmt: skip
        assert asked(server, chunked + content)[0] in (0, 400, 408, 422), content[:40]
    with connect(server) as connection, suppress(ConnectionError):  # many tiny chunks, more than may be
        connection.sendall(chunked)
        for _ in range(60):
            connection.sendall(b"1\r\na\r\n" * 20_000)
        assert answer(connection)[0] in (0, 408, 413)
    both = head(len(BODY), "/predict", "transfer-encoding: chunked") + b"0\r\n\r\n" + BODY
    assert asked(server, both)[0] in (0, 400, 422)


def pipelined(server: Any, stack: ExitStack) -> None:
    """Hundred requests at once on one connection, the answers in their order."""
    connection = stack.enter_context(connect(server))
    records = [{**EXAMPLE, "distance": float(i)} for i in range(100)]
    connection.sendall(b"".join(head(len(body)) + body for body in (json.dumps(record).encode() for record in records)))
    with connection.makefile("rb") as file:
        for record in records:
            length = 0
            assert b" 200 " in file.readline()
            while (line := file.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            assert json.loads(file.read(length))["probability"] == pytest.approx(tiny_probability(record), abs=1e-6)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def http_2(server: Any, stack: ExitStack) -> None:
    """To the gRPC port: no preface, floods of every kind, streams begun and reset at once or never ended, headers without an end. To the other: HTTP/2 at all."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    port = int(server.grpc.rpartition(":")[2])
    # Method POST, scheme http, path and authority as literals: HPACK without an index.
    fields = b"\x83\x86" + b"".join(
        b"\0" + bytes([len(key)]) + key + bytes([len(value)]) + value
        for key, value in ((b":path", b"/inference.GRPCInferenceService/ModelInfer"), (b":authority", b"a"), (b"te", b"trailers"), (b"content-type", b"application/grpc"))
    )  # fmt: skip
    floods = {
        "nothing": b"", "garbage": b"\xff" * 5000, "http 1": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "settings": preface + frame(4, 0, 0) * 5000, "pings": preface + frame(4, 0, 0) + frame(6, 0, 0, bytes(8)) * 5000,
        "rapid reset": preface + frame(4, 0, 0) + b"".join(frame(1, 4, 2 * i + 1, fields) + frame(3, 0, 2 * i + 1, bytes(4)) for i in range(3000)),
        "endless headers": preface + frame(4, 0, 0) + frame(1, 0, 1, fields) + frame(9, 0, 1, b"\0\1a\1b" * 2000) * 100,
        "bad table": preface + frame(4, 0, 0) + frame(1, 4, 1, b"\xff\xff\xff\xff\x0f"), "no stream": preface + frame(4, 0, 0) + frame(0, 0, 99, b"a"),
        "windows": preface + frame(4, 0, 0) + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 10, "huge frame": preface + frame(4, 0, 0) + frame(0, 0, 1, bytes(100_000)),
        "length of a message": preface + frame(4, 0, 0) + frame(1, 4, 1, fields) + frame(0, 1, 1, b"\0\xff\xff\xff\xff" + b"a"),
        "packed message": preface + frame(4, 0, 0) + frame(1, 4, 1, fields) + frame(0, 1, 1, b"\1\0\0\0\1a"),
    }  # fmt: skip
    for name, flood in floods.items():
        with connect(server, port=port) as connection, suppress(OSError):  # some are over before they are all sent
            connection.sendall(flood)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        assert server.process.poll() is None, name
    held = preface + frame(4, 0, 0) + b"".join(frame(1, 4, 2 * i + 1, fields) for i in range(3000))
    for flood in (floods["rapid reset"], held):  # from several, who listen to nothing
        for _ in range(4):
            connection = stack.enter_context(connect(server, port=port))
            with suppress(OSError):
                connection.sendall(flood)
        time.sleep(0.5)
    assert asked(server, preface + frame(4, 0, 0))[0] in (0, 400, 405, 505)
    upgrade = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")
    assert asked(server, head(len(BODY), "/predict", *upgrade) + BODY)[0] == 200


@pytest.mark.parametrize(
    "hostile",
    [slow_heads, slow_bodies, slow_readers, half_open, many_idle, resets, shut_halfway, huge_headers, bombs, strange_json, wrong_lengths, chunked_garbage, pipelined, http_2],
)  # fmt: skip
def test_others_have_their_answers_all_the_while(server: Any, serving: Any, hostile: Callable[[Any, ExitStack], None]) -> None:
    before = serving.pss_kb(server.process.pid)
    with others(server), ExitStack() as stack:
        hostile(server, stack)
    assert server.process.poll() is None
    until_over(server)
    # Bodies are bounded, and what they took is given back but for what the allocator keeps.
    assert serving.pss_kb(server.process.pid) < before + 96 * 1024
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii"))
    assert peak is not None
    assert int(peak[1]) < 512 * 1024


def until_over(server: Any) -> None:
    """Wait until nothing of what a test began is in flight any more."""
    end = time.monotonic() + 3 * PATIENCE_S
    while server.metric("tidemill_requests_in_flight") > 1:
        assert time.monotonic() < end
        time.sleep(0.02)
