"""HTTP/1.1 on one event loop: all connections, what they share, and their end."""

from __future__ import annotations

import asyncio
from time import perf_counter

from tidemill.serve.calls import Calls
from tidemill.serve.config import ServeConfig
from tidemill.serve.connection import Connection
from tidemill.serve.heads import KnownHeads

# How long a connection that asks nothing is kept when the server stops: a request may be on its way.
FAREWELL_S = 0.1


class Http1:
    """What the connections of one server share.

    Args:
        most: Connections that may be open at once.
    """

    def __init__(self, calls: Calls, config: ServeConfig, *, most: int) -> None:
        self.calls = calls
        self.max_body_bytes = int(config.max_body_mb * 1e6)
        self.head_s = config.header_timeout_s
        self.body_s = config.body_timeout_s
        self.idle_s = config.idle_timeout_s
        self.most = most
        self.in_flight = calls.app.metrics.in_flight.sample()
        self.heads = KnownHeads()
        self.connections: set[Connection] = set()
        self.draining = False
        self.loop = asyncio.get_running_loop()
        self._emptied = asyncio.Event()
        self._between_s = min(1.0, self.head_s / 4, self.body_s / 4, self.idle_s / 4)
        self._next_sweep = self.loop.call_later(self._between_s, self._sweep)

    def connection(self) -> Connection:
        """A new caller's."""
        return Connection(self)

    async def drain(self, limit_s: float) -> bool:
        """Let what is under way be answered, and every connection end; False where some was cut after `limit_s`."""
        self.draining = True
        self.loop.call_later(min(FAREWELL_S, limit_s / 2), self._part)
        try:
            async with asyncio.timeout(limit_s):
                while self.connections:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            cut = any(connection.is_asked for connection in self.connections)
            for connection in list(self.connections):
                connection.abort()
            return not cut
        return True

    def lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()

    def close(self) -> None:
        self._next_sweep.cancel()
        self.calls.close()

    def _part(self) -> None:
        for connection in list(self.connections):
            if not connection.is_asked:
                connection.part()

    def _sweep(self) -> None:
        """Look after those whose time is over. One timer for all: one for each would cost more than a small model's answer."""
        self._next_sweep = self.loop.call_later(self._between_s, self._sweep)
        now = perf_counter()
        for connection in [connection for connection in self.connections if connection.due < now]:
            connection.overdue(now)
