"""The application on Granian's RSGI: bodies read within limits, quick requests answered at once, the rest on threads."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from tidemill.serve.app import App
from tidemill.serve.http import Refused, Request


class RsgiApp:
    """What Granian calls, on one event loop."""

    def __init__(self, app: App, *, workers: int) -> None:
        self._app = app
        self._max_bytes = int(app.config.max_body_mb * 1e6)
        self._timeout_s = app.config.body_timeout_s
        self._in_flight = app.metrics.in_flight.sample()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="infer")

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        arrived = perf_counter()
        self._in_flight.value += 1
        try:
            request = Request(scope.method, scope.path, scope.query_string, scope.headers, b"", arrived)
            app = self._app
            try:
                if request.method not in ("GET", "HEAD"):
                    request.body = await self._read(request, protocol)
            except Refused as refused:
                response = app.refuse(request, refused)
            else:
                if app.is_quick(request):
                    response = app.handle(request)
                else:
                    response = await asyncio.get_running_loop().run_in_executor(self._threads, app.handle, request)
            if request.method == "HEAD":
                protocol.response_empty(response.status, response.headers)
            else:
                protocol.response_bytes(response.status, response.headers, response.body)
        finally:
            self._in_flight.value -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    async def _read(self, request: Request, protocol: Any) -> bytes:
        """The body.

        Raises:
            Refused: With 413 if it is too large, with 408 if it takes too long.
        """
        stated = request.headers.get("content-length")
        if stated is not None and int(stated) > self._max_bytes:
            raise self._too_large(stated)
        try:
            async with asyncio.timeout(self._timeout_s):
                if stated is not None:
                    return bytes(await protocol())
                chunks, size = [], 0
                async for chunk in protocol:
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise self._too_large("more")
                    chunks.append(chunk)
                return b"".join(chunks)
        except TimeoutError:
            reason = f"the body must arrive within {self._timeout_s:g} s"
            raise Refused(408, "timeout", reason, headers=(("connection", "close"),)) from None

    def _too_large(self, size: str) -> Refused:
        reason = f"the body must be at most {self._max_bytes} bytes, got {size}"
        return Refused(413, "too_large", reason, hint="send the rows in parts", headers=(("connection", "close"),))
