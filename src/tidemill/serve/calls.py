"""Requests answered on an event loop without a task each: what is quick at once, the rest by runners and threads, whose answers come back to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from tidemill.serve.app import App, Call
from tidemill.serve.http import Refused, Request, Response

# More rows are made ready, and their answers written, on threads.
FEW_ROWS = 64


class Calls:
    """The way from a request to its response, on the running loop; nothing here is for other threads.

    Args:
        workers: Threads for what would hold up the loop.
    """

    def __init__(self, app: App, *, workers: int) -> None:
        self.app = app
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="infer")

    def admit(self, request: Request, admitted: Callable[[Call], None]) -> Call | None:
        """The request's call, from its head alone; None where that takes a while, after which `admitted` gets it."""
        limits = self.app.limits
        if limits is None or not limits.waits:
            return self.app.admit(request)
        self._threads.submit(lambda: self._soon(admitted, self.app.admit(request)))
        return None

    def refuse(self, call: Call, refused: Refused) -> Response:
        """The response to a call whose head or body is not as it must be."""
        return self.app.refuse(call, refused)

    def answer(self, call: Call, done: Callable[[Response], None], *, there: Callable[[], bool], alone: bool) -> None:
        """Answer a call whose body is here: `done` gets the response, maybe before this returns.

        Args:
            there: Whether the caller still waits, asked from any thread; work that has not begun is not begun for one who has left.
            alone: Whether nobody else can ask.
        """
        app = self.app
        if app.waits(call):
            self._loop.run_in_executor(None, lambda: self._soon(done, app.answer(call)))
        elif app.is_quick(call):
            app.read(call)
            self._infer(call, done, there, alone)
        else:
            self._threads.submit(self._read, call, done, there)

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    def _read(self, call: Call, done: Callable[[Response], None], there: Callable[[], bool]) -> None:
        self.app.read(call)
        self._soon(self._infer, call, done, there, False)

    def _infer(self, call: Call, done: Callable[[Response], None], there: Callable[[], bool], alone: bool) -> None:
        """Have the call's rows answered, alone or with others' rows."""
        app, work = self.app, call.work
        if work is None:
            done(app.finish(call))
        elif not app.keeps_answers and not app.queues(call):
            app.begin(call, partial(self._finish, call, done), on_loop=True, alone=alone)
        else:
            call.request.wanted = there
            landed = partial(self._soon, self._finish, call, done)
            if app.asks_elsewhere or work.rows > FEW_ROWS or not app.is_quick(call):
                self._threads.submit(app.begin, call, landed)
            else:
                app.begin(call, landed, on_loop=True)

    def _finish(self, call: Call, done: Callable[[Response], None]) -> None:
        if call.work is not None and call.work.rows > FEW_ROWS:
            self._threads.submit(lambda: self._soon(done, self.app.finish(call)))
            return
        try:
            done(self.app.finish(call))
        except Exception as error:  # noqa: BLE001 - others' answers, which came with this one, must not be lost over it
            self._loop.call_exception_handler({"message": "an answer could not be given", "exception": error})

    def _soon(self, tell: Callable[..., None], *values: Any) -> None:
        """From any thread to the loop."""
        with suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(tell, *values)
