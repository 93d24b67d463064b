"""Callers at once, over real connections: own answers, deadlines, hang-ups, and a queue that is full."""

from __future__ import annotations

import http.client
import json
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tidemill.core.package import Package
from tidemill.serve.batching.config import BatchConfig
from tidemill.serve.config import ServeConfig
from tidemill.serve.server import Running, serve
from tidemill.testing.packages import EXAMPLE, tiny_package, tiny_probability

pytestmark = pytest.mark.server

SECONDS = 60.0


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("served") / "rows", name="rows", version="1")


@contextmanager
def served(package: Package, **config: Any) -> Iterator[Running]:
    ready: queue.Queue[Running] = queue.Queue()
    server = threading.Thread(target=serve, args=([package],), kwargs={"config": ServeConfig(port=0, **config), "on_ready": ready.put})
    server.start()
    running = ready.get(timeout=SECONDS)
    try:
        yield running
    finally:
        running.stop()
        server.join(SECONDS)
    assert not server.is_alive()


def connect(running: Running) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=SECONDS)


def ask(running: Running, body: Any, path: str = "/predict", **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = connect(running)
    connection.request("POST", path, json.dumps(body), {key.replace("_", "-"): value for key, value in headers.items()})
    response = connection.getresponse()
    found = response.status, {key.lower(): value for key, value in response.getheaders()}, json.loads(response.read())
    connection.close()
    return found


def counted(running: Running, sample: str) -> float:
    connection = connect(running)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    match = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    return float(match[1]) if match else 0.0


def until(running: Running, sample: str, value: float) -> None:
    end = time.monotonic() + SECONDS
    while counted(running, sample) < value:
        assert time.monotonic() < end, sample
        time.sleep(0.005)


@pytest.mark.parametrize(
    "config", [{"inline_ms": 1000}, {"inline_ms": 0}, {"inline_ms": 0, "batch": BatchConfig(max_delay_ms=5, max_rows=7)}]
)
def test_many_callers_get_their_own_answers(package: Package, config: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)

    def records(count: int) -> list[dict[str, Any]]:
        carriers = rng.choice(["UA", "DL", "航空", "x" * 90], count)
        return [{**EXAMPLE, "distance": float(rng.integers(0, 3000)), "carrier": str(carrier)} for carrier in carriers]

    requests = [records(int(count)) for count in rng.choice([1, 1, 1, 2, 5, 30], 150)]

    with served(package, **config) as running:

        def one(given: list[dict[str, Any]]) -> list[float]:
            if len(given) == 1:
                return [ask(running, given[0])[2]["probability"]]
            return [row["probability"] for row in ask(running, {"records": given}, "/predict_batch")[2]["predictions"]]

        with ThreadPoolExecutor(16) as callers:
            for given, found in zip(requests, callers.map(one, requests), strict=True):
                assert found == pytest.approx([tiny_probability(record) for record in given], abs=1e-6)
        assert counted(running, 'tidemill_rows_total{model="rows",version="1"}') == sum(map(len, requests))


def test_a_request_is_answered_by_its_deadline_or_refused(package: Package) -> None:
    with served(package, inline_ms=0, batch=BatchConfig(max_delay_ms=60_000, max_rows=2)) as running:
        status, _, answer = ask(running, EXAMPLE, x_request_timeout_ms="40")
        assert (status, answer["error"]["reason"]) == (504, "the time that the request had is over")
        assert counted(running, 'tidemill_errors_total{reason="deadline"}') == 1
        assert counted(running, 'tidemill_executions_total{model="rows",version="1"}') == 0


def test_work_of_a_caller_who_hung_up_is_not_run(package: Package) -> None:
    body = json.dumps(EXAMPLE).encode()
    with served(package, inline_ms=0, batch=BatchConfig(max_delay_ms=60_000, max_rows=2)) as running:
        host, _, port = running.url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=SECONDS) as leaving:
            head = f"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            leaving.sendall(head.encode() + body)
            until(running, "tidemill_requests_in_flight", 2)  # it, and the one who looks
        time.sleep(0.2)
        status, _, answer = ask(running, EXAMPLE)
        assert status == 200
        assert answer["probability"] == pytest.approx(tiny_probability(EXAMPLE), abs=1e-6)
        until(running, 'tidemill_errors_total{reason="gone"}', 1)
        assert counted(running, 'tidemill_rows_total{model="rows",version="1"}') == 1


def test_beyond_the_queue_callers_are_told_at_once_to_come_again(package: Package) -> None:
    with (
        served(package, inline_ms=0, batch=BatchConfig(max_delay_ms=60_000, max_rows=3, max_queue=2)) as running,
        ThreadPoolExecutor(2) as callers,
    ):
        waiting = [callers.submit(ask, running, EXAMPLE, x_request_timeout_ms="3000") for _ in range(2)]
        until(running, "tidemill_requests_in_flight", 3)
        status, headers, answer = ask(running, EXAMPLE)
        assert (status, int(headers["retry-after"]) >= 1) == (503, True)
        assert answer["error"]["reason"] == "too much is asked: 2 requests wait already"
        assert counted(running, 'tidemill_errors_total{reason="overload"}') == 1
        assert {future.result()[0] for future in waiting} <= {200, 504}


def test_over_grpc_deadlines_and_priorities_mean_the_same(package: Package, ask_client: Callable[..., Any]) -> None:
    columns = {
        "distance": ("FP64", [1400.0]), "fare": ("FP32", [12.5]), "seats": ("INT64", [3]), "carrier": ("BYTES", ["UA"]),
        "weekend": ("BOOL", [True]), "departs": ("INT64", [1370115000000000]),
    }  # fmt: skip
    with served(package, inline_ms=0, grpc_port=0, batch=BatchConfig(max_delay_ms=60_000, max_rows=2)) as running:
        late, too_late, both = ask_client("ask_triton.py", what="wishes", over="grpc", address=running.grpc, model="rows", columns=columns)
        assert "deadline" in late.lower()
        assert "the time that the request had is over" in too_late
        assert both == pytest.approx([tiny_probability(EXAMPLE)] * 2, abs=1e-6)
        assert counted(running, 'tidemill_batch_rows_sum{model="rows",version="1"}') == 2
