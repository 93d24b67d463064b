"""Load on a server: closed loops, an open loop that keeps to its schedule, and a look at whether answers are right.

Closed: so many connections, each sending its next request when the last is answered; what a server can do at most. By `wrk` (on Debian:
apt-get install wrk) where answers take milliseconds; it starts to count with nothing under way and drops what is under way at the end,
which would cost a server that takes a second for a batch a fifth of its throughput, so that slow models are asked by a loop of our own that counts
between two moments while all connections are busy. Open: requests at random times of a given rate whatever the server does, each timed from
the moment at which it was due, so that a server that stalls is charged for every request that had to wait (no coordinated omission).

Loops of our own run as processes of their own: `python load.py open PORT PATH BODIES RATE SECONDS SEED`,
`python load.py closed PORT PATH BODIES CONNECTIONS SECONDS SEED`.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import select
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
JSON = {"Content-Type": "application/json"}
# Connections that the open loop opens at most; what is due beyond waits, and its wait counts.
MAX_CONNECTIONS = 256
# How long a loop of our own waits for answers after its last request.
PATIENCE_S = 10.0
# How long connections are busy before a loop of our own counts, and at least as long as the first of them all took.
WARM_UP_S = 1.0


def closed(port: int, path: str, bodies: Path, *, connections: int, seconds: float, offset: float = 0.0) -> dict[str, float]:
    """What `wrk` saw: answers a second (refusals left out), latencies, refusals, failures.

    Args:
        seconds: Whole ones, as wrk takes them.
        offset: Where in the bodies to begin, in 0..1.
    """
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{round(seconds)}s",
        "--timeout",
        "30s",
        "-s",
        str(HERE / "post.lua"),
        f"http://127.0.0.1:{port}",
    ]
    environment = {**os.environ, "BODIES": str(bodies), "TARGET": path, "OFFSET": f"{offset % 1:.6f}"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(next(line for line in said.splitlines() if line.startswith("RESULT"))[7:])
    return {"requests_s": (found["answers"] - found["refused"]) / found["seconds"], **found}


def kept_busy(port: int, path: str, bodies: Path, *, connections: int, seconds: float, seed: int) -> dict[str, float]:
    """What a closed loop of our own saw while all of its connections were busy."""
    return own_loop("closed", port, path, bodies, connections, seconds, seed)


def opened(port: int, path: str, bodies: Path, *, rate: float, seconds: float, seed: int) -> dict[str, float]:
    """What a schedule of `rate` requests a second saw, from a process of its own."""
    return own_loop("open", port, path, bodies, rate, seconds, seed)


def own_loop(kind: str, *given: Any) -> dict[str, float]:
    said = subprocess.run([sys.executable, __file__, kind, *map(str, given)], capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(said)
    return found


def largest_difference(
    port: int, path: str, bodies: Path, differs: Callable[[int, Any], float], *, requests: int, connections: int
) -> float:
    """The largest difference from right answers over the first `requests` bodies, asked over several connections at once.

    Raises:
        RuntimeError: If one is refused.
    """
    lines = bodies.read_bytes().splitlines()[:requests]

    def ask(first: int) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        worst = 0.0
        for place in range(first, len(lines), connections):
            connection.request("POST", path, lines[place], JSON)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status} {body[:300]!r}")
            worst = max(worst, differs(place, json.loads(body)))
        connection.close()
        return worst

    with ThreadPoolExecutor(connections) as pool:
        return max(pool.map(ask, range(connections)))


class Connection:
    """One kept connection, with at most one request on its way, timed from `due`."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._got = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, request: bytes, due: float) -> None:
        self.due, self._got = due, b""
        self.socket.sendall(request)

    def status(self) -> int | None:
        """Read what came: the status once the answer is whole, 0 where the connection ended."""
        try:
            got = self.socket.recv(65_536)
        except ConnectionResetError:
            got = b""
        if not got:
            return 0
        self._got += got
        head, found, body = self._got.partition(b"\r\n\r\n")
        if not found:
            return None
        name = head.lower()
        at = name.find(b"content-length:")
        length = int(name[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else None
        whole = body.endswith(b"0\r\n\r\n") if length is None else len(body) >= length
        return int(head[9:12]) if whole else None


def run_schedule(port: int, requests: list[bytes], due_s: list[float]) -> dict[str, float]:
    """Send each request when it is due, over a free connection or a new one; times count from when it was due."""
    address = ("127.0.0.1", port)
    idle, busy, waiting = [Connection(address)], [], deque[int]()
    took_ms: list[float] = []
    refused_ms: list[float] = []
    refused = failed = place = 0
    last = due_s[-1] + PATIENCE_S
    start = time.perf_counter()
    while len(took_ms) + refused + failed < len(due_s):
        now = time.perf_counter() - start
        if now > last:
            break
        while place < len(due_s) and due_s[place] <= now:
            waiting.append(place)
            place += 1
        while waiting and (idle or len(busy) < MAX_CONNECTIONS):
            connection = idle.pop() if idle else Connection(address)
            one = waiting.popleft()
            try:
                connection.send(requests[one % len(requests)], due_s[one])
            except (ConnectionResetError, BrokenPipeError):  # it was closed while nobody used it, as some servers do
                connection.socket.close()
                connection = Connection(address)
                connection.send(requests[one % len(requests)], due_s[one])
            busy.append(connection)
        # Not epoll, whose time-outs are whole milliseconds.
        ready, _, _ = select.select(busy, (), (), max(0.0, (due_s[place] if place < len(due_s) else last) - (time.perf_counter() - start)))
        for connection in ready:
            status = connection.status()
            if status is None:
                continue
            busy.remove(connection)
            if status == 200:
                took_ms.append((time.perf_counter() - start - connection.due) * 1e3)
                idle.append(connection)
            elif status:
                refused += 1
                refused_ms.append((time.perf_counter() - start - connection.due) * 1e3)
                idle.append(connection)
            else:
                failed += 1
    unanswered = len(due_s) - len(took_ms) - refused - failed
    seconds = max(due_s[-1], time.perf_counter() - start if unanswered else 0.0)
    said = figures(took_ms, seconds, refused=refused, failed=failed, late=unanswered)
    return said | {"refused_p99_ms": quantile(sorted(refused_ms), 0.99)}


def run_busy(port: int, requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    """Keep connections busy; count what is answered in `seconds` after the warm-up, then wait for what is under way."""
    selector = selectors.DefaultSelector()
    start = time.perf_counter()
    for place in range(connections):
        connection = Connection(("127.0.0.1", port))
        selector.register(connection, selectors.EVENT_READ)
        connection.send(requests[place % len(requests)], 0.0)
    sent, busy, first = connections, connections, 0
    took_ms: list[float] = []
    refused = failed = 0
    begin = end = float("inf")
    while busy and (now := time.perf_counter() - start) < end + PATIENCE_S:
        if begin == float("inf") and now > WARM_UP_S and first >= min(connections, len(requests)):
            begin, end = now, now + seconds
        for key, _ in selector.select(0.1):
            connection = key.fileobj
            status = connection.status()
            if status is None:
                continue
            now = time.perf_counter() - start
            first += 1
            if begin < now < end:
                if status == 200:
                    took_ms.append((now - connection.due) * 1e3)
                refused += status not in (0, 200)
                failed += status == 0
            if status == 0:
                selector.unregister(connection)
                connection.socket.close()
                connection = Connection(("127.0.0.1", port))
                selector.register(connection, selectors.EVENT_READ)
            if now < end:
                connection.send(requests[sent % len(requests)], now)
                sent += 1
            else:
                selector.unregister(connection)
                connection.socket.close()
                busy -= 1
    return figures(took_ms, seconds, refused=refused, failed=failed, late=busy)


def figures(took_ms: list[float], seconds: float, **lost: int) -> dict[str, float]:
    took_ms.sort()
    return {
        "requests_s": len(took_ms) / seconds,
        "answers": len(took_ms),
        "p50_ms": quantile(took_ms, 0.5),
        "p99_ms": quantile(took_ms, 0.99),
        "max_ms": took_ms[-1] if took_ms else float("nan"),
        **lost,
    }


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main() -> None:
    kind, port, path, bodies, count, seconds, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    requests = []
    for body in Path(bodies).read_bytes().splitlines():
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        requests.append(head.encode() + body)
    rng.shuffle(requests)
    if kind == "closed":
        found = run_busy(int(port), requests, int(count), float(seconds))
    else:
        due_s = [rng.expovariate(float(count))]
        while due_s[-1] < float(seconds):
            due_s.append(due_s[-1] + rng.expovariate(float(count)))
        found = run_schedule(int(port), requests, due_s)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
