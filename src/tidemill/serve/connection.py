"""One caller's connection: bytes to requests and responses to bytes, in order, within limits of size and time.

The only module that knows the transport and the parser (llhttp, which is strict about what smuggles requests). Requests are answered one after
the other; each costs no task and no timer, and one write sends its answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any

import httptools

from tidemill.serve.app import Call
from tidemill.serve.heads import (
    MAX_HEAD_BYTES,
    MAX_URL_BYTES,
    METHODS,
    Fields,
    Head,
    address_too_long,
    body_too_large,
    head_of,
    head_too_large,
    headers_of,
    malformed,
    problem,
    target_of,
)  # fmt: skip
from tidemill.serve.http import Refused, Request, Response

if TYPE_CHECKING:
    from tidemill.serve.http1 import Http1

# Bytes that may come without a body's byte or a head's end among them.
MAX_DRY_BYTES = 2 * MAX_HEAD_BYTES
# A body that is not wanted is read to its end up to here, so that the connection can be kept.
SKIPPED_BYTES = 65_536
# How long what still comes is thrown away after a last answer: closed at once, the system would take the answer back.
LINGER_S = 2.0
# Larger bodies are not copied behind their heads.
JOINED_BYTES = 65_536

CUT_SHORT = "the request must be as long as it says"

# Where the parser is in a message.
_NOTHING, _HEAD, _BODY = range(3)


class Exchange:
    """A request on its way to its answer."""

    __slots__ = ("body", "call", "expects", "is_busy", "is_last", "is_torn", "is_whole", "keeps", "refused", "request", "size", "stated")

    def __init__(self, request: Request, *, is_last: bool) -> None:
        self.request = request
        self.stated: int | None = 0
        """Bytes that the body will have; None where its chunks will say."""
        self.is_last = is_last
        """Whether the connection ends with its answer."""
        self.keeps = ""
        """What tells the caller that it does not, where that must be told."""
        self.call: Call | None = None
        self.refused: Refused | None = None
        self.expects = False
        """Whether the caller waits to hear that its body is wanted."""
        self.is_torn = False
        """Whether the parser must be led to its body."""
        self.body: bytes | bytearray = b""
        self.size = 0
        self.is_whole = False
        self.is_busy = False
        """Whether it is being admitted or answered."""

    @property
    def is_plain(self) -> bool:
        """Whether it is whole, and its head asks for nothing but an answer."""
        is_special = self.is_last or self.keeps or self.expects or self.refused is not None
        return self.is_whole and not is_special and self.stated == self.size


class Connection(asyncio.Protocol):
    """One caller. `due` is the `perf_counter` from which on its time is over."""

    __slots__ = (
        "_client", "_dry", "_exchange", "_fields", "_has_ended", "_http", "_is_full", "_is_over", "_is_paused", "_parser", "_size", "_stage", "_timed",
        "_transport", "_unread", "_url", "_waiting", "due",
    )  # fmt: skip

    def __init__(self, http: Http1) -> None:
        self.due = inf
        self._http = http
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._client = ""
        # Requests in the order in which they came; the first is being answered, the last may be half here.
        self._waiting: deque[Exchange] = deque()
        self._exchange: Exchange | None = None
        self._url = b""
        self._fields: Fields = []
        self._stage = self._timed = _NOTHING
        # Bytes since nothing was half here, and since something of it began.
        self._size = self._dry = 0
        # Whether nothing is read, nothing can be written, and what was left to write when that was last looked at.
        self._is_paused = self._is_full = False
        self._unread = 0
        # Whether the caller says no more, and whether that is listened to.
        self._has_ended = self._is_over = False

    @property
    def is_asked(self) -> bool:
        """Whether a request is on its way in, or its answer on its way out."""
        return bool(self._waiting) or self._stage != _NOTHING or self._is_full

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        http = self._http
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if peer else ""
        self.due = perf_counter() + http.head_s
        http.connections.add(self)
        if http.draining:
            self.part()
        elif len(http.connections) > http.most:
            reason = f"the server keeps {http.most} connections, and all are in use"
            self._refuse(Refused(503, "overload", reason, headers=(("retry-after", "1"),)))

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        if self._stage == _NOTHING and not self._waiting:
            self._read_whole(data)
        else:
            self._read(data)
        if self._waiting:
            self._go_on()
        if self._stage == _NOTHING:
            self._size = 0
        else:
            self._wait_for_more(len(data))
        if self._waiting and (self._is_full or len(self._waiting) > 1) and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Answer what came whole: the caller may have closed its own half alone. Over TLS there are no halves."""
        self._has_ended = True
        if self._stage != _NOTHING and not self._is_over:
            self._refuse(malformed(CUT_SHORT))
        return bool(self._waiting) and bool(self._transport.can_write_eof())

    def connection_lost(self, error: Exception | None) -> None:
        http = self._http
        self._transport = self._parser = None
        self._is_over, self.due = True, inf
        while self._waiting and not self._waiting[-1].is_busy:
            exchange = self._waiting.pop()
            http.in_flight.value -= 1
            if exchange.call is not None:
                http.calls.refuse(exchange.call, malformed(CUT_SHORT))
        http.lost(self)

    def pause_writing(self) -> None:
        self._is_full, self._unread = True, 0
        self.due = perf_counter() + self._http.body_s / 2

    def resume_writing(self) -> None:
        self._is_full = False
        if not self._is_over:
            self.due = perf_counter() + self._http.idle_s
            self._next()

    def _read_whole(self, data: bytes) -> None:
        """Read what may be one whole request, and its head one that was read before."""
        http = self._http
        if (known := http.heads.find(data)) is not None:
            head, body = known
            exchange = Exchange(Request(head.method, head.path, head.query, head.headers, b"", perf_counter(), self._client), is_last=False)
            exchange.stated = exchange.size = head.size
            exchange.body, exchange.is_whole = body, True
            self._waiting.append(exchange)
            http.in_flight.value += 1
            return
        self._read(data)
        if len(self._waiting) == 1 and self._waiting[0].is_plain:
            request, size = self._waiting[0].request, self._waiting[0].size
            http.heads.keep(data, Head(request.method, request.path, request.query, request.headers, size))

    def _read(self, data: bytes) -> None:
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_after(upgrade, data)
        except httptools.HttpParserError as error:
            self._refuse_broken(error)

    # What the parser calls. This only takes down what came; what follows from it is done when the bytes at hand are read.

    def on_message_begin(self) -> None:
        self._stage = _HEAD
        self._dry = -1
        self._url = b""
        self._fields = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._exchange is not None:  # one that would change the protocol: its body is read behind a head of ours
            self._stage = _BODY
            return
        parser, fields, http = self._parser, self._fields, self._http
        headers = headers_of(fields)
        method, version = parser.get_method(), parser.get_http_version()
        path, query = target_of(self._url[: MAX_URL_BYTES + 1])
        request = Request(METHODS.get(method) or method.decode(), path, query, headers, b"", perf_counter(), self._client)
        self._exchange = exchange = Exchange(request, is_last=not parser.should_keep_alive() or method == b"CONNECT")
        if (length := headers.get("content-length")) is not None:
            exchange.stated = int(length)
        elif "transfer-encoding" in headers:
            exchange.stated = None
        if version != "1.1":
            exchange.keeps = "connection: keep-alive\r\n"
        elif "expect" in headers and exchange.stated != 0:
            exchange.expects = headers["expect"].lower() == "100-continue"
        if "upgrade" in headers and exchange.stated != 0:
            exchange.is_torn = parser.should_upgrade()
        exchange.refused = problem(version, self._url, fields, headers, size=self._size)
        if exchange.stated is not None and exchange.stated > http.max_body_bytes:
            exchange.refused = exchange.refused or body_too_large(str(exchange.stated), http.max_body_bytes)
        self._stage, self._dry, self._fields = _BODY, -1, []
        self._waiting.append(exchange)
        http.in_flight.value += 1

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        self._dry = -1
        exchange.size += len(body)
        if exchange.size > self._http.max_body_bytes:
            exchange.body, exchange.refused = b"", exchange.refused or body_too_large("more", self._http.max_body_bytes)
        elif not exchange.body:
            exchange.body = body
        elif isinstance(exchange.body, bytearray):
            exchange.body += body
        else:
            exchange.body = bytearray(exchange.body) + body

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.is_torn:
            return
        self._exchange = None
        self._stage = self._timed = _NOTHING
        if exchange is not None:
            exchange.is_whole = True
            self._is_over = exchange.is_last

    # What is no request.

    def _read_after(self, upgrade: Exception, data: bytes) -> None:
        """Read on behind the head of a request that would change to a protocol that is not spoken here."""
        left = memoryview(data)
        while not self._is_over:
            left = left[upgrade.args[0] :]
            try:
                if self._exchange is not None:  # the parser takes what follows for that protocol: another reads the body
                    stated, self._exchange.is_torn = self._exchange.stated, False
                    self._parser = httptools.HttpRequestParser(self)
                    length = "transfer-encoding: chunked" if stated is None else f"content-length: {stated}"
                    self._parser.feed_data(f"POST / HTTP/1.1\r\n{length}\r\n\r\n".encode())
                self._parser.feed_data(left)
            except httptools.HttpParserUpgrade as error:
                upgrade = error
            except httptools.HttpParserError as error:
                self._refuse_broken(error)
            else:
                return

    def _refuse_broken(self, error: Exception) -> None:
        if isinstance(error, httptools.HttpParserCallbackError):
            raise error
        if not self._is_over:
            self._note(malformed(f"the request must be HTTP/1.1: {error}"))

    def _refuse(self, refused: Refused) -> None:
        """End with a refusal of what is being read."""
        self._note(refused)
        self._go_on()

    def _note(self, refused: Refused) -> None:
        """Read no more, and refuse what is being read when its turn comes."""
        if self._exchange is None:
            path = target_of(self._url[:MAX_URL_BYTES])[0] if self._stage == _HEAD else ""
            self._exchange = Exchange(Request("", path, client=self._client), is_last=True)
            self._waiting.append(self._exchange)
            self._http.in_flight.value += 1
        self._exchange.refused = self._exchange.refused or refused
        self._exchange = None
        self._stage = self._timed = _NOTHING
        self._is_over = True

    # From a request to its answer.

    def _go_on(self) -> None:
        """Do for the first request what can be done with what is here of it."""
        first, http = self._waiting[0], self._http
        if first.is_busy or self._is_full or self._transport is None:
            return
        call = first.call
        if call is None:
            if first.refused is not None:
                call = Call(first.request, first.request.arrived)
            else:
                call = http.calls.admit(first.request, self._admitted)
                if call is None:
                    first.is_busy = True
                    return
            first.call = call
        if first.refused is not None or (call.response is not None and _is_worth_no_wait(first)):
            first.is_busy = first.is_last = True
            self._answered(http.calls.refuse(call, first.refused) if first.refused is not None else http.calls.app.answer(call))
        elif first.is_whole:
            first.is_busy = True
            self.due = inf
            if first.body and first.request.method not in ("GET", "HEAD"):
                first.request.body = bytes(first.body)
            first.body = b""
            http.calls.answer(call, self._answered, there=self._is_there, alone=len(http.connections) == 1)
        elif first.expects and not first.size:
            first.expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _admitted(self, call: Call) -> None:
        first = self._waiting[0]
        first.call, first.is_busy = call, False
        if self._transport is None:
            self._waiting.popleft()
            self._http.in_flight.value -= 1
            self._http.calls.refuse(call, malformed(CUT_SHORT))
        else:
            self._next()

    def _is_there(self) -> bool:
        return self._transport is not None and not self._has_ended

    def _answered(self, response: Response) -> None:
        """Send the first request's answer, and go on with the next one."""
        first, http, transport = self._waiting.popleft(), self._http, self._transport
        http.in_flight.value -= 1
        if transport is None or transport.is_closing():
            return
        is_last = first.is_last or http.draining or (self._has_ended and not self._waiting)
        body = response.body
        head = head_of(response, keeps="connection: close\r\n" if is_last else first.keeps)
        self.due = perf_counter() + (http.idle_s if self._stage == _NOTHING else http.head_s)
        if first.request.method == "HEAD":
            transport.write(head)
        elif len(body) <= JOINED_BYTES:
            transport.write(head + body)
        else:
            transport.writelines([head, body])
        if is_last:
            self._end(linger=not first.is_whole or first.refused is not None or bool(self._waiting))
        elif self._waiting:
            http.loop.call_soon(self._next)
        elif self._is_paused:
            self._read_again()

    def _next(self) -> None:
        """Go on with the next of several requests that came together."""
        if self._transport is None or not self._waiting:
            return
        if not self._waiting[0].is_whole and not self._waiting[0].is_busy:
            self.due = perf_counter() + self._http.body_s
        self._go_on()
        if self._is_paused and len(self._waiting) <= 1 and not self._is_full:
            self._read_again()

    def _read_again(self) -> None:
        self._is_paused = False
        self._transport.resume_reading()

    def _wait_for_more(self, size: int) -> None:
        """For a request that is half here: within its time, and within limits that it need not end to break."""
        if self._timed != self._stage:
            self._timed = self._stage
            if not (self._waiting and self._waiting[0].is_busy):
                self.due = perf_counter() + (self._http.head_s if self._stage == _HEAD else self._http.body_s)
        self._dry = 0 if self._dry < 0 else self._dry + size
        if self._dry > MAX_DRY_BYTES:
            is_address = self._stage == _HEAD and not self._fields and len(self._url) > MAX_URL_BYTES
            self._refuse(address_too_long() if is_address else head_too_large())

    # The end.

    def overdue(self, now: float) -> None:
        """Refuse, drop or close, whatever the time was for."""
        transport, http = self._transport, self._http
        if transport is None:
            return
        first = self._waiting[0] if self._waiting else None
        left = transport.get_write_buffer_size()
        if left and not (self._unread and left >= self._unread):  # it takes what it gets, if slowly
            self._unread, self.due = left, now + http.body_s / 2
        elif left or (self._is_over and first is None):
            transport.abort()
        elif first is not None and (first.is_busy or first.is_whole):
            self.due = inf
        elif first is not None:
            self._refuse(Refused(408, "timeout", f"the body must arrive within {http.body_s:g} s"))
        elif self._stage == _HEAD:
            self._refuse(Refused(408, "timeout", f"the head must arrive within {http.head_s:g} s"))
        else:
            transport.close()

    def part(self) -> None:
        """Close, where nothing is asked."""
        if self._transport is not None and not self.is_asked:
            self._is_over = True
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _end(self, *, linger: bool) -> None:
        """Close behind the last answer; where more may be on its way, when that has come or a while is over."""
        http, transport = self._http, self._transport
        self._is_over = True
        self._exchange, self._stage = None, _NOTHING
        http.in_flight.value -= len(self._waiting)
        self._waiting.clear()
        if not linger or self._has_ended:
            self.due = perf_counter() + http.body_s
            transport.close()
            return
        self.due = perf_counter() + LINGER_S
        if transport.can_write_eof():
            transport.write_eof()
        if self._is_paused:
            self._read_again()


def _is_worth_no_wait(exchange: Exchange) -> bool:
    """Whether a caller who is refused by its head had better not send its body."""
    return exchange.expects or exchange.stated is None or exchange.stated > SKIPPED_BYTES
