"""Several processes on one port: they die, stop, count and grow as one server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from tidemill.core.package import Package
from tidemill.serve.grpc.messages import messages
from tidemill.testing.packages import EXAMPLE, tiny_package

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("served") / "rows", name="rows")


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return False


def test_of_a_killed_replica_only_what_is_in_flight_fails_and_it_is_back(serving: Any, rows: Package) -> None:
    threads = 8
    with serving.served(rows.path, replicas=2) as server, serving.Callers(server.url, threads=threads) as callers:
        serving.until(lambda: len(callers.answered) > 200)
        counted = server.metric("tidemill_requests_total")
        for kill in range(1, 4):
            victim = server.replicas()[0]
            killed = time.monotonic()
            before = len(callers.failures)
            os.kill(victim, signal.SIGKILL)
            serving.until(lambda kill=kill: len(server.events("serve.replica")) == 2 + kill)
            failed = callers.failures[before:]
            # One for each of its connections at most: what was in flight, or its end on a connection that was kept.
            assert len(failed) <= threads, failed
            assert all(asked < killed + 1.0 for asked, _, _ in failed), failed
            assert len(server.replicas()) == 2
            assert victim not in server.replicas()
            now = server.metric("tidemill_requests_total")
            assert now >= counted
            counted = now
        asked = len(callers.answered)
        serving.until(lambda: len(callers.answered) > asked + 200)
        assert server.metric("tidemill_replica_restarts_total") == 3
        assert server.metric("tidemill_replicas ") == 2
        assert server.stop() == 0


def test_both_answer_and_one_view_counts_all(serving: Any, rows: Package) -> None:
    with serving.served(rows.path, replicas=2) as server:
        for _ in range(300):  # each on a connection of its own
            assert server.post("/predict", EXAMPLE)[0] == 200
        views = [server.metric('tidemill_requests_total{route="/predict",status="200"}') for _ in range(10)]
        assert views == [300.0] * 10
        assert server.metric('tidemill_request_duration_seconds_count{route="/predict"}') == 300
        assert server.metric("tidemill_model_info") == 1
        shares = [server.metric(f'tidemill_process_resident_memory_bytes{{replica="{number}"}}') for number in (1, 2)]
        assert min(shares) > 1e6
        # Either answers when the other is away.
        both = server.replicas()
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
            try:
                answered = 0
                for _ in range(40):
                    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=10) as asking:
                        asking.settimeout(0.3)
                        asking.sendall(b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n")
                        try:
                            answered += b" 200 " in asking.recv(1000)
                        except TimeoutError:
                            continue
                    if answered:
                        break
                assert answered
            finally:
                os.kill(pid, signal.SIGCONT)


def test_a_stopped_server_finishes_what_is_in_flight_in_every_replica(serving: Any, rows: Package) -> None:
    body = json.dumps(EXAMPLE).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with serving.served(rows.path, replicas=2) as server:
        host, port = server.url.removeprefix("http://").split(":")
        asking = [socket.create_connection((host, int(port)), timeout=30) for _ in range(12)]
        for one in asking:
            one.sendall(head + body[:10])
        serving.until(lambda: server.metric("tidemill_requests_in_flight") >= 12)
        replicas = server.replicas()
        server.process.send_signal(signal.SIGTERM)
        serving.until(lambda: server.events("serve.stopping"))
        for one in asking:
            one.sendall(body[10:])
        for one in asking:
            with one, one.makefile("rb") as answer:
                assert b" 200 " in answer.readline()
        assert server.process.wait(30) == 0
        assert not any(map(alive, replicas))


def test_replicas_end_with_a_supervisor_that_is_killed(serving: Any, rows: Package) -> None:
    with serving.served(rows.path, replicas=2, drain_timeout_s=1) as server:
        replicas = server.replicas()
        assert len(replicas) == 2
        server.process.kill()
        server.process.wait()
        serving.until(lambda: not any(map(alive, replicas)))
        with pytest.raises(OSError, match="refused"):
            server.get("/health")


def test_a_package_that_breaks_its_contract_ends_the_start_as_with_one_process(tmp_path: Path, serving: Any) -> None:
    promise = {"name": "latency p99_ms", "measure": "latency.p99_ms", "relation": "<=", "limit": 1e-9}
    broken = tiny_package(tmp_path / "broken", promises=[promise])
    with serving.served(broken.path, replicas=2) as server:
        assert server.process.wait(30) == 3
        assert "contract broken" in server.events("failed")[0]["message"]


def test_one_that_dies_at_every_start_ends_the_server(tmp_path: Path, serving: Any, rows: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kills it is a module of the name of one that it imports: stands for a library that crashes."""
    (tmp_path / "uvloop.py").write_text(
        "import os, sys\nif 'replicas.replica' in ' '.join(sys.orig_argv): os.kill(os.getpid(), 9)\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with serving.served(rows.path, replicas=2) as server:
        assert server.process.wait(60) == 1
        assert "replica 1 must start, it ended with signal 9" in server.events("failed")[0]["message"]


def test_in_process_limits_of_several_are_warned_of(serving: Any, rows: Package) -> None:
    with serving.served(rows.path, replicas=2, limits={"per_address": {"per_s": 1000.0}}) as server:
        [said] = server.events("serve.limits_each")
        assert said["level"] == "warning"


def test_grpc_is_shared_and_the_logs_are_whole(serving: Any, rows: Package, tmp_path: Path) -> None:
    made = messages()
    with serving.served(rows.path, replicas=2, grpc_port=0, log=True, log_folder=str(tmp_path / "log")) as server:
        for _ in range(12):
            with grpc.insecure_channel(server.grpc) as channel:
                is_ready = channel.unary_unary(
                    "/inference.GRPCInferenceService/ModelReady",
                    request_serializer=made["ModelReadyRequest"].SerializeToString,
                    response_deserializer=made["ModelReadyResponse"].FromString,
                )
                assert is_ready(made["ModelReadyRequest"](name="rows"), timeout=30).ready
        with serving.Callers(server.url, threads=6) as callers:
            serving.until(lambda: len(callers.answered) > 500)
        assert server.stop() == 0
    [file] = (tmp_path / "log").iterdir()
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert len(lines) == len(callers.answered)
    assert len({line["id"] for line in lines}) == len(lines)


def test_the_number_follows_the_load(serving: Any, rows: Package) -> None:
    bounds = {"min": 1, "max": 2, "cpu": 0.15, "up_s": 0.5, "down_s": 2.0}
    with serving.served(rows.path, replicas=bounds) as server:
        assert len(server.replicas()) == 1
        with serving.Callers(server.url, threads=6) as callers:
            serving.until(lambda: len(server.events("serve.replica")) == 2)
            assert callers.failures == []
        serving.until(lambda: len(server.replicas()) == 1)
        assert server.post("/predict", EXAMPLE)[0] == 200
        said = [re.match(r"(\d) replicas in the place of (\d)", event["message"]) for event in server.events("serve.scaled")]
        assert [match.groups() for match in said if match] == [("2", "1"), ("1", "2")]
        assert server.metric("tidemill_replica_restarts_total") == 0
        assert server.metric('tidemill_requests_total{route="/predict",status="200"}') == len(callers.answered) + 1
