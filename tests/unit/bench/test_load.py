"""The load generator against servers that answer, stall, refuse and hang up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tidemill.bench import load
from tidemill.client.asking import Server
from tidemill.core.errors import Unavailable

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
Behave = Callable[[socket.socket, int], bool]


def read(connection: socket.socket) -> bytes:
    """One request, empty where the other side left."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65_536)):
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    stated = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    left = stated - len(body)
    while left > 0:
        left -= len(connection.recv(1_000_000))
    return head


@contextmanager
def answering(behave: Behave) -> Iterator[tuple[Server, list[int]]]:
    """A server that does with its n-th request what `behave` does (False ends the connection), and the number of requests it read."""
    seen = [0]
    lock = threading.Lock()

    def serve(connection: socket.socket) -> None:
        with connection:
            while True:
                try:
                    if not read(connection):
                        return
                    with lock:
                        number = seen[0]
                        seen[0] += 1
                    if not behave(connection, number):
                        return
                except OSError:
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield Server.at(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout_s=5.0), seen
        listening.shutdown(socket.SHUT_RDWR)


def request(body: bytes = b"{}") -> bytes:
    return b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def answer(connection: socket.socket, number: int) -> bool:
    connection.sendall(OK)
    return True


def test_a_closed_loop_counts_every_answer_of_its_time() -> None:
    with answering(answer) as (server, seen):
        found = load.run(server, [request()], connections=4, seconds=0.2)
        assert 0 < found.answers == len(found.seconds) <= seen[0] <= found.answers + 4
        assert found.statuses == {200: found.answers}
        assert (found.lost, found.unanswered) == (0, 0)
        assert found.wall_s == pytest.approx(0.2)
        assert 0 < found.cpu_s <= 0.2 * 1.05
        assert all(seconds > 0 for seconds in found.seconds)


def test_a_warm_up_does_not_count() -> None:
    with answering(answer) as (server, seen):
        found = load.run(server, [request()], connections=1, seconds=0.1, warmup_s=0.3)
        assert found.answers < seen[0]


def test_an_open_loop_sends_at_its_rate() -> None:
    with answering(answer) as (server, seen):
        found = load.run(server, [request()], connections=8, seconds=0.5, rate=400)
        assert len(found.seconds) == seen[0]
        assert 120 < seen[0] < 280  # 200 on average, drawn


def test_who_waits_behind_a_slow_answer_is_counted_as_waiting() -> None:
    """A closed loop would see one slow answer; the callers who came meanwhile are what it omits."""

    def stall_once(connection: socket.socket, number: int) -> bool:
        if number == 5:
            time.sleep(0.4)
        return answer(connection, number)

    with answering(stall_once) as (server, _):
        closed = load.run(server, [request()], connections=1, seconds=0.8)
        assert sum(seconds > 0.3 for seconds in closed.seconds) == 1
    with answering(stall_once) as (server, _):
        found = load.run(server, [request()], connections=1, seconds=0.8, rate=200)
        assert sum(seconds > 0.1 for seconds in found.seconds) > 30


def test_what_is_not_answered_counts_with_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "GRACE_S", 0.2)

    def silent(connection: socket.socket, number: int) -> bool:
        return True

    with answering(silent) as (server, _):
        found = load.run(server, [request()], connections=2, seconds=0.2, rate=100)
        assert found.answers == 0
        assert found.unanswered == len(found.seconds) > 5
        assert max(found.seconds) > 0.2


def test_refusals_are_counted_apart() -> None:
    def refuse(connection: socket.socket, number: int) -> bool:
        connection.sendall(OK if number % 2 else b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
        return True

    with answering(refuse) as (server, _):
        found = load.run(server, [request()], connections=2, seconds=0.2)
        assert found.statuses[503] > 0
        assert found.answers == found.statuses[200]


def test_connections_that_end_are_replaced() -> None:
    def hang_up(connection: socket.socket, number: int) -> bool:
        if number % 3 == 2:
            return False
        if number % 3 == 1:
            connection.sendall(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            return False
        return answer(connection, number)

    with answering(hang_up) as (server, seen):
        found = load.run(server, [request()], connections=2, seconds=0.2)
        assert found.lost > 0
        assert found.answers > found.lost
        assert abs(seen[0] - found.answers - found.lost) <= 4


def test_a_body_larger_than_what_a_socket_takes_at_once_goes_out_whole() -> None:
    large = b"x" * 4_000_000
    with answering(answer) as (server, seen):
        found = load.run(server, [request(large)], connections=2, seconds=0.2)
        assert 0 < found.answers <= seen[0]


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(Unavailable, match="must answer"):
        load.run(Server.at("http://127.0.0.1:1", timeout_s=1.0), [request()], connections=1, seconds=0.1)
