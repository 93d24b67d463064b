"""The application on Granian's RSGI: bodies read within limits, quick requests answered on the event loop, the rest by runners and threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from time import perf_counter
from typing import Any, TypeVar

from tidemill.serve.app import App, Call
from tidemill.serve.http import Refused, Request, Response

# More rows are made ready, and their answers written, on threads.
FEW_ROWS = 64

A = TypeVar("A")
R = TypeVar("R")


class RsgiApp:
    """What Granian calls, on one event loop."""

    def __init__(self, app: App, *, workers: int) -> None:
        rsgi: Any = import_module("granian.rsgi")
        self._torn = (rsgi.ProtocolClosed, rsgi.ProtocolError)
        self._app = app
        self._max_bytes = int(app.config.max_body_mb * 1e6)
        self._timeout_s = app.config.body_timeout_s
        self._in_flight = app.metrics.in_flight.sample()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="infer")
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._next_sweep: asyncio.TimerHandle | None = None

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._next_sweep is None:  # a second server may take over from the first
            self._sweep(loop)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        arrived = perf_counter()
        self._in_flight.value += 1
        try:
            request = Request(scope.method, scope.path, scope.query_string, scope.headers, b"", arrived, scope.client.rpartition(":")[0])
            response = await self._answered(request, protocol)
            if request.method == "HEAD":
                protocol.response_empty(response.status, response.headers)
            else:
                protocol.response_bytes(response.status, response.headers, response.body)
        finally:
            self._in_flight.value -= 1

    async def _answered(self, request: Request, protocol: Any) -> Response:
        app = self._app
        limits = app.limits
        call = await self._on_thread(app.admit, request) if limits is not None and limits.waits else app.admit(request)
        try:
            if call.response is None and request.method not in ("GET", "HEAD"):
                try:
                    request.body = await self._read(request, protocol)
                except Refused as refused:
                    return app.refuse(call, refused)
            if app.waits(call):
                return await asyncio.get_running_loop().run_in_executor(None, app.answer, call)
            if app.is_quick(call):
                app.read(call)
            else:
                await self._on_thread(app.read, call)
            if call.work is not None:
                await self._inferred(call, protocol, rows=call.work.rows)
                if call.work.rows > FEW_ROWS:
                    return await self._on_thread(app.finish, call)
            return app.finish(call)
        finally:
            app.release(call)

    async def _inferred(self, call: Call, protocol: Any, *, rows: int) -> None:
        """Wait until the call's rows are answered, alone or with others' rows."""
        app, loop = self._app, asyncio.get_running_loop()
        answered = loop.create_future()
        if not app.keeps_answers and not app.queues(call):
            app.begin(call, partial(_settle, answered), on_loop=True, alone=self._in_flight.value == 1)
            if not answered.done():
                await answered
            return
        done = partial(_settle_from_anywhere, loop, answered)
        leaving = asyncio.ensure_future(protocol.client_disconnect())
        call.request.wanted = lambda: not leaving.done()
        try:
            if app.asks_elsewhere or not app.is_quick(call) or rows > FEW_ROWS:
                await self._on_thread(partial(app.begin, call), done)
            else:
                app.begin(call, done, on_loop=True)
            await answered
        finally:
            leaving.cancel()

    async def _on_thread(self, work: Callable[[A], R], argument: A) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, argument)

    def close(self) -> None:
        if self._next_sweep is not None:
            self._next_sweep.cancel()
        self._threads.shutdown(wait=False)

    async def _read(self, request: Request, protocol: Any) -> bytes:
        """The body.

        Raises:
            Refused: With 413 if it is too large, with 408 if it takes too long, with 400 if it ends before its time.
        """
        stated = request.headers.get("content-length")
        if stated is not None and int(stated) > self._max_bytes:
            raise self._too_large(stated)
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request must be answered in a task")
        self._reading[task] = request.arrived + self._timeout_s
        try:
            if stated is not None:
                return bytes(await protocol())
            chunks, size = [], 0
            async for chunk in protocol:
                size += len(chunk)
                if size > self._max_bytes:
                    raise self._too_large("more")
                chunks.append(chunk)
            return b"".join(chunks)
        except self._torn as error:
            raise Refused(400, "malformed", "the body must be as long as it says", headers=(("connection", "close"),)) from error
        except asyncio.CancelledError:
            if task in self._reading:  # not for its time, but because the server ends
                raise
            task.uncancel()
            reason = f"the body must arrive within {self._timeout_s:g} s"
            raise Refused(408, "timeout", reason, headers=(("connection", "close"),)) from None
        finally:
            self._reading.pop(task, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let go of bodies that took too long. One timer for all: one for each would cost more than a small model's answer."""
        now = perf_counter()
        for task in [task for task, until in self._reading.items() if until < now]:
            del self._reading[task]
            task.cancel()
        self._next_sweep = loop.call_later(min(1.0, self._timeout_s / 4), self._sweep, loop)

    def _too_large(self, size: str) -> Refused:
        reason = f"the body must be at most {self._max_bytes} bytes, got {size}"
        return Refused(413, "too_large", reason, hint="send the rows in parts", headers=(("connection", "close"),))


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _settle_from_anywhere(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and nobody waits
        loop.call_soon_threadsafe(_settle, future)
