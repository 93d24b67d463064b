"""A load generator: one thread, many connections, requests written beforehand.

Closed loop: every connection sends its next request when it has its answer. Open loop: requests are due at times that no answer moves (gaps
drawn from an exponential distribution, as of independent callers), and a latency counts from when its request was due, so that a slow
answer also counts for those that had to wait behind it.
"""

from __future__ import annotations

import select
import selectors
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np

from tidemill.client.asking import Server
from tidemill.client.http1 import BrokenAnswer, Reader
from tidemill.core.errors import Unavailable

# From this share of one core on, the generator may be what limits.
BUSY = 0.85
# What is in flight when the time is over is waited for so long, in seconds.
GRACE_S = 5.0


@dataclass
class Outcome:
    """What came of a load: how many answers of 200 there were in its time, how many of another status, and what it took."""

    seconds: list[float] = field(default_factory=list)
    """Of each answer of 200; in an open loop those that came late too, and what had none with the time that it waited."""
    answers: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    """Connections that ended without an answer."""
    unanswered: int = 0
    """Requests of an open loop that had no answer when the time was over and a grace had passed."""
    wall_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether the generator was as busy as one thread can be."""
        return self.cpu_s > BUSY * self.wall_s


def run(
    server: Server, requests: Sequence[bytes], *, connections: int, seconds: float, warmup_s: float = 0.0, rate: float | None = None
) -> Outcome:
    """Load a server for some seconds.

    Args:
        requests: Sent one after the other, over all connections, again and again.
        rate: Requests a second of an open loop; a closed one when absent.
        warmup_s: Seconds before, that are not counted.

    Raises:
        Unavailable: If the server cannot be reached.
    """
    generator = _Generator(server, requests, connections)
    try:
        if rate is None:
            generator.closed(warmup_s, seconds)
        else:
            generator.open(warmup_s, seconds, rate)
        return generator.outcome
    finally:
        generator.close()


class _Line:
    """One connection: what it still has to send, and since when its answer is due."""

    __slots__ = ("due", "out", "reader", "socket")

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self.reader = Reader()
        self.out = memoryview(b"")
        self.due = 0.0


class _Generator:
    def __init__(self, server: Server, requests: Sequence[bytes], connections: int) -> None:
        self.outcome = Outcome()
        self._server = server
        self._requests: Iterator[bytes] = cycle(requests)
        self._selector = selectors.DefaultSelector()
        self._lines: set[_Line] = set()
        self._free: list[_Line] = [self._connected() for _ in range(connections)]

    def closed(self, warmup_s: float, seconds: float) -> None:
        """Keep every connection busy; what is answered after the warm-up and before the end counts."""
        start = time.perf_counter() + warmup_s
        end = start + seconds
        begun: tuple[float, float] | None = None
        flying = len(self._free)
        while self._free:
            self._begin(self._free.pop(), time.perf_counter())
        now = 0.0
        while flying and now < end + GRACE_S:
            for line, writable in self._ready(0.1):
                if not self._go_on(line, writable=writable):
                    continue
                now = time.perf_counter()
                if start <= now < end:
                    self._count(line, now, in_time=True)
                if now < end:
                    self._begin(line, now)
                else:
                    flying -= 1
                    self._free.append(line)
            now = time.perf_counter()
            if begun is None and now >= start:
                begun = now, time.thread_time()
            elif begun is not None and now >= end and not self.outcome.wall_s:
                self._close_account(begun, seconds)
        self._drop_flying()

    def open(self, warmup_s: float, seconds: float, rate: float) -> None:
        """Send what is due, on free connections or as soon as one is; what is due after the warm-up counts, however late its answer."""
        num = int(rate * (warmup_s + seconds))
        gaps = np.random.default_rng(0).exponential(1 / rate, num + 5 * int(num**0.5) + 50)
        start = time.perf_counter() + warmup_s
        end = start + seconds
        dues = deque(due for due in (time.perf_counter() + np.cumsum(gaps)).tolist() if due < end)
        begun: tuple[float, float] | None = None
        flying, now = 0, 0.0
        while (dues or flying) and now < end + GRACE_S:
            now = time.perf_counter()
            if begun is None and now >= start:
                begun = now, time.thread_time()
                while dues and dues[0] < start:  # what the warm-up left undone is nobody's wait
                    dues.popleft()
            while dues and dues[0] <= now and self._free:
                self._begin(self._free.pop(), dues.popleft())
                flying += 1
            wait = 0.05 if not dues or not self._free else max(0.0, dues[0] - time.perf_counter())
            for line, writable in self._ready(wait):
                if self._go_on(line, writable=writable):
                    now = time.perf_counter()
                    if line.due >= start:
                        self._count(line, now, in_time=now < end)
                    self._free.append(line)
                    flying -= 1
        self._close_account(begun or (start, time.thread_time()), seconds)
        waited = [now - due for due in (*dues, *(line.due for line in self._lines.difference(self._free))) if due >= start]
        self.outcome.unanswered = len(waited)
        self.outcome.seconds += waited
        self._drop_flying()

    def close(self) -> None:
        for line in list(self._lines):
            self._drop(line)
        self._selector.close()

    def _close_account(self, begun: tuple[float, float], counted_s: float) -> None:
        """Enter the time that counted, and this thread's share of it that was computing."""
        start, busy = begun
        self.outcome.cpu_s = (time.thread_time() - busy) / max(time.perf_counter() - start, 1e-9) * counted_s
        self.outcome.wall_s = counted_s

    def _ready(self, wait_s: float) -> list[tuple[_Line, bool]]:
        # The selector itself waits in whole milliseconds, which is longer than a small model takes.
        if 0 < wait_s < 0.02:
            select.select([self._selector.fileno()], [], [], wait_s)
            wait_s = 0
        return [(key.data, bool(events & selectors.EVENT_WRITE)) for key, events in self._selector.select(wait_s)]

    def _begin(self, line: _Line, due: float) -> None:
        line.due = due
        line.out = memoryview(next(self._requests))
        self._write(line)

    def _write(self, line: _Line) -> None:
        was_whole = True
        try:
            sent = line.socket.send(line.out)
            was_whole = sent == len(line.out)
            line.out = line.out[sent:]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            was_whole = False
        except OSError:
            line.out = memoryview(b"")  # the end is seen when it is read
        if not was_whole:
            self._selector.modify(line.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, line)

    def _go_on(self, line: _Line, *, writable: bool) -> bool:
        """Whether the line has its answer; a connection that ended is replaced, and its request counted as lost and sent again."""
        if writable and line.out:
            self._write(line)
            if not line.out:
                self._selector.modify(line.socket, selectors.EVENT_READ, line)
        try:
            while True:
                data = line.socket.recv(262_144)
                reply = line.reader.feed(data) if data else line.reader.end()
                if reply is not None:
                    self._last_status = reply.status
                    if not line.reader.keeps:
                        self._renew(line)
                    return True
                if not data:
                    break
                if len(data) < 262_144 and self._server.secure is None:
                    return False
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except (OSError, BrokenAnswer):
            pass
        self.outcome.lost += 1
        self._renew(line)
        line.out = memoryview(next(self._requests))
        self._write(line)
        return False

    def _count(self, line: _Line, now: float, *, in_time: bool) -> None:
        if self._last_status == 200:
            self.outcome.seconds.append(now - line.due)
            self.outcome.answers += in_time
        self.outcome.statuses[self._last_status] += 1

    def _connected(self) -> _Line:
        line = _Line(self._socket())
        self._lines.add(line)
        self._selector.register(line.socket, selectors.EVENT_READ, line)
        return line

    def _socket(self) -> socket.socket:
        server = self._server
        try:
            made: socket.socket = socket.create_connection((server.host, server.port), timeout=server.timeout_s)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if server.secure is not None:
                made = server.secure.wrap_socket(made, server_hostname=server.host)
        except OSError as error:
            raise Unavailable(f"the server at {server.url} must answer: {error.strerror or error}") from error
        made.setblocking(False)
        return made

    def _renew(self, line: _Line) -> None:
        """Another connection in the place of one that ended."""
        self._selector.unregister(line.socket)
        line.socket.close()
        line.socket, line.reader = self._socket(), Reader()
        self._selector.register(line.socket, selectors.EVENT_READ, line)

    def _drop_flying(self) -> None:
        """Replace what did not answer, so that its late answer is no later request's."""
        for line in self._lines.difference(self._free):
            self._renew(line)
            self._free.append(line)

    def _drop(self, line: _Line) -> None:
        self._lines.discard(line)
        self._selector.unregister(line.socket)
        line.socket.close()

    _last_status: Any = 0
