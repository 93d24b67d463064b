"""A server as a process of its own: its start, its limits, its page and its end."""

from __future__ import annotations

import html
import http.client
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tidemill.client import Client
from tidemill.core.package import Package
from tidemill.serve.listener import BACKLOG
from tidemill.testing.packages import EXAMPLE, tiny_package, tiny_probability

pytestmark = pytest.mark.server

HEAVY = (
    "pyarrow",
    "onnx",
    "duckdb",
    "narwhals",
    "pandas",
    "polars",
    "sklearn",
    "xgboost",
    "torch",
    "transformers",
    "optuna",
    "mlflow",
    "scipy",
)

PROGRAM = f"""
import sys
from pathlib import PosixPath
from tidemill.core.errors import TidemillError
from tidemill.core.package import Package
from tidemill.serve.config import ServeConfig
from tidemill.serve.server import serve

def ready(running):
    print(running.url, flush=True)

try:
    serve([Package.open(path) for path in {{paths!r}}], config=ServeConfig(**{{config!r}}), on_ready=ready)
except TidemillError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""


@contextmanager
def process(*packages: Package, **config: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of packages in a process of its own, and its address."""
    program = PROGRAM.format(paths=[str(package.path) for package in packages], config={"port": 0, **config})
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            url = started.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), started.communicate()[1]
            yield started, url
        finally:
            started.kill()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("served") / "rows", name="rows")


@pytest.fixture(scope="module")
def server(rows: Package) -> Iterator[str]:
    with process(rows, max_body_mb=0.2, header_timeout_s=0.5, body_timeout_s=0.5) as (_, url):
        yield url


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read(connection: socket.socket) -> bytes:
    """Everything until the other side closes or a whole answer is here."""
    with connection.makefile("rb") as file:
        head = b""
        while (line := file.readline()) not in (b"\r\n", b""):
            head += line
        length = re.search(rb"content-length: (\d+)", head)
        return head + b"\r\n" + (file.read(int(length[1])) if length else b"")


def head(size: int) -> bytes:
    return f"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n".encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_finishes_what_is_in_flight_and_ends_well(rows: Package, number: signal.Signals) -> None:
    body = json.dumps(EXAMPLE).encode()
    with process(rows) as (started, url), connect(url) as asking, connect(url) as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        assert b" 200 " in read(idle)
        asking.sendall(head(len(body)) + body[:10])
        while in_flight(url) < 2:  # the one that asks, and the one who looks
            time.sleep(0.01)
        started.send_signal(number)
        until_refused(url)
        asking.sendall(body[10:])
        answer = read(asking)
        assert b" 200 " in answer.splitlines()[0]
        assert json.loads(answer.rpartition(b"\r\n")[2])["probability"] == pytest.approx(tiny_probability(EXAMPLE), abs=1e-6)
        assert started.wait(timeout=30) == 0
        # And nothing that a plain server needs not was imported on the way.
        assert started.stdout is not None
        assert started.stdout.read().strip() == "[]"


def test_a_request_that_never_ends_is_cut_when_the_time_to_drain_is_over(rows: Package) -> None:
    with process(rows, drain_timeout_s=0.2) as (started, url), connect(url) as asking:
        asking.sendall(head(1000) + b"{")
        while in_flight(url) < 2:
            time.sleep(0.01)
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=20) == 0


def in_flight(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        found = re.search(rb"^tidemill_requests_in_flight (\d+)", response.read(), re.MULTILINE)
    assert found
    return float(found[1])


def until_refused(url: str) -> None:
    for _ in range(3000):
        try:
            with connect(url) as probe:
                probe.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
                if not probe.recv(10):
                    return
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError("the server takes new connections after it was told to stop")


def test_a_second_server_on_the_port_is_refused(rows: Package, server: str) -> None:
    port = int(server.rpartition(":")[2])
    program = PROGRAM.format(paths=[str(rows.path)], config={"port": port})
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 must be free" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_flipped_byte_keeps_a_server_from_starting(rows: Package, tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "p")
    content = bytearray(package.graph_file.read_bytes())
    content[len(content) // 2] ^= 1
    package.graph_file.write_bytes(content)
    program = PROGRAM.format(paths=[str(package.path)], config={"port": 0})
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "full.onnx is corrupted" in done.stderr


@pytest.mark.parametrize("inline_ms", [1000.0, 0.0], ids=["on the loop", "on threads"])
def test_answers_of_many_callers_are_never_mixed(rows: Package, inline_ms: float) -> None:
    def ask(caller: int) -> None:
        with Client(url) as client:
            for i in range(20):
                record = {**EXAMPLE, "distance": float(caller * 100), "seats": i}
                assert client.predict(record)["probability"] == pytest.approx(tiny_probability(record), abs=1e-6)
                batch = [{**record, "weekend": weekend} for weekend in (True, False, None)]
                expected = [tiny_probability(row) for row in batch]
                assert [row["probability"] for row in client.predict_batch(batch)] == pytest.approx(expected, abs=1e-6)

    with process(rows, inline_ms=inline_ms) as (_, url), ThreadPoolExecutor(16) as callers:
        for done in [callers.submit(ask, caller) for caller in range(16)]:
            done.result()


def test_a_body_beyond_the_limit_is_refused_stated_or_not(server: str) -> None:
    large = b"{" + b" " * 300_000 + b"}"
    with connect(server) as asking:
        asking.sendall(head(len(large)))
        answer = read(asking)
        assert b" 413 " in answer.splitlines()[0]
        assert b"must be at most 200000 bytes, got 300002" in answer
    with connect(server) as asking:
        asking.sendall(head(0).replace(b"content-length: 0", b"transfer-encoding: chunked"))
        asking.sendall(b"%x\r\n" % len(large) + large + b"\r\n0\r\n\r\n")
        assert b" 413 " in read(asking).splitlines()[0]
    with Client(server) as client:
        assert client.health()["status"] == "healthy"


def test_a_body_in_chunks_is_read(server: str) -> None:
    body = json.dumps(EXAMPLE).encode()
    with connect(server) as asking:
        asking.sendall(head(0).replace(b"content-length: 0", b"transfer-encoding: chunked"))
        for at in range(0, len(body), 20):
            part = body[at : at + 20]
            asking.sendall(b"%x\r\n" % len(part) + part + b"\r\n")
        asking.sendall(b"0\r\n\r\n")
        assert b" 200 " in read(asking).splitlines()[0]


def test_a_slow_caller_is_let_go_and_stops_no_other(server: str) -> None:
    with connect(server) as no_head, connect(server) as no_body, Client(server) as client:
        no_head.sendall(b"POST /predict HTTP/1.1\r\n")
        no_body.sendall(head(1000) + b"{")
        assert client.predict(EXAMPLE)["prediction"] is True
        assert b" 408 " in read(no_body).splitlines()[0]
        assert b" 200 " not in read(no_head)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /a\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: a\r\nx-request-id: \xff\xfe\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_ends_in_no_failure(server: str, sent: bytes) -> None:
    with connect(server) as asking:
        try:
            asking.sendall(sent)
            answer = read(asking)
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
    assert not re.match(rb"HTTP/1.1 [52]", answer), answer
    with Client(server) as client:
        assert client.predict(EXAMPLE)["prediction"] is True


def test_a_caller_who_leaves_stops_nothing(server: str) -> None:
    for _ in range(20):
        with connect(server) as asking:
            asking.sendall(head(len(json.dumps(EXAMPLE))) + json.dumps(EXAMPLE).encode())
    with Client(server) as client:
        assert client.predict(EXAMPLE)["prediction"] is True


def test_a_client_comes_back_over_a_connection_that_was_closed(rows: Package, server: str) -> None:
    with Client(server) as client:
        client.health()
        client._pool._idle[0].socket.shutdown(socket.SHUT_RDWR)  # as a proxy that let it go
        assert client.predict(EXAMPLE)["prediction"] is True


def test_the_prediction_log_is_whole_when_the_server_has_stopped(rows: Package, tmp_path: Path) -> None:
    with process(rows, log=True, log_folder=tmp_path / "log") as (started, url):
        with Client(url) as client:
            client.predict_batch([{**EXAMPLE, "seats": i} for i in range(500)])
        started.terminate()
        assert started.wait(timeout=30) == 0
    [file] = (tmp_path / "log").iterdir()
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [line["inputs"]["seats"] for line in lines] == list(range(500))


def test_the_page_shows_the_models_fields_and_a_live_answer(server: str, chromium: Path, tmp_path: Path) -> None:
    command = [
        str(chromium), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run([*command, f"{server}/docs#try"], capture_output=True, text=True, timeout=120, check=True)
    page = html.unescape(done.stdout)
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    for field in EXAMPLE:
        assert re.search(rf'name="{field}"', shown), field
    assert re.search(r'class="value">true<', shown)
    assert f'"probability": {tiny_probability(EXAMPLE):.5f}'[:-1] in shown
    assert f"curl {server}/predict" in shown


def test_many_kept_connections_are_served(server: str) -> None:
    """More than wait to be taken at once, and idle: whoever comes next is answered too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * BACKLOG)), hard))
    with ExitStack() as kept:
        kept.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(BACKLOG + 100):
            connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=30)
            kept.callback(connection.close)
            connection.request("GET", "/health/live")
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()
