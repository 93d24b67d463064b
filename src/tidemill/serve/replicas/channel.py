"""Messages between two processes over a socket: each side tells, and asks and waits for an answer.

A message is four bytes of length and a MessagePack map. Questions are handled on threads, so that a handler may ask back.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import msgspec

from tidemill.core import errors
from tidemill.core.errors import TidemillError, Unavailable

Handle = Callable[[str, Any], Any]
"""Gets the word and its value; what it returns is the answer to who asked."""

HANDLERS = 4


class Channel:
    """One end, which owns its socket. Safe from several threads.

    Args:
        handle: Called for each message of the other side.
        ended: Called once when the other side is gone.
    """

    def __init__(self, connection: socket.socket, handle: Handle, *, ended: Callable[[], None], name: str) -> None:
        self._connection = connection
        self._handle = handle
        self._ended = ended
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()
        self._asked: dict[int, Future[Any]] = {}
        self._gone = threading.Event()
        self._handlers = ThreadPoolExecutor(HANDLERS, thread_name_prefix=f"{name}-handler")
        threading.Thread(target=self._read, name=name, daemon=True).start()

    def tell(self, word: str, value: Any = None) -> None:
        """Send a message; nothing happens where the other side is gone."""
        try:
            self._send({"word": word, "value": value})
        except OSError:
            self._gone.set()

    def ask(self, word: str, value: Any = None, *, timeout_s: float | None) -> Any:
        """What the other side's handler returns.

        Raises:
            TidemillError: As its handler raised it.
            Unavailable: If the other side is gone, or does not answer in time.
        """
        number, answer = next(self._numbers), Future[Any]()
        self._asked[number] = answer
        try:
            if self._gone.is_set():
                raise Unavailable("the other process is gone")
            self._send({"word": word, "value": value, "ask": number})
            return answer.result(timeout_s)
        except TimeoutError as error:
            raise Unavailable(f"the other process must answer within {timeout_s:g} s") from error
        except OSError as error:
            raise Unavailable("the other process is gone") from error
        finally:
            self._asked.pop(number, None)

    def close(self) -> None:
        self._gone.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._handlers.shutdown(wait=False)

    def _send(self, message: dict[str, Any]) -> None:
        content = msgspec.msgpack.encode(message)
        with self._sending:
            self._connection.sendall(len(content).to_bytes(4, "big") + content)

    def _read(self) -> None:
        try:
            with self._connection, self._connection.makefile("rb") as file:
                while len(head := file.read(4)) == 4:
                    self._take(msgspec.msgpack.decode(file.read(int.from_bytes(head, "big"))))
        except (OSError, ValueError, RuntimeError):  # cut in the middle, or closed here
            pass
        self._gone.set()
        for answer in list(self._asked.values()):
            if not answer.done():
                answer.set_exception(Unavailable("the other process is gone"))
        self._handlers.shutdown(wait=False)
        self._ended()

    def _take(self, message: dict[str, Any]) -> None:
        if "answer" in message:
            answer = self._asked.get(message["answer"])
            if answer is not None and not answer.done():
                failed = message.get("error")
                answer.set_exception(raised(failed)) if failed else answer.set_result(message.get("value"))
        elif "ask" in message:
            self._handlers.submit(self._reply, message)
        else:
            self._handle(message["word"], message["value"])

    def _reply(self, message: dict[str, Any]) -> None:
        made: dict[str, Any] = {"answer": message["ask"]}
        try:
            made["value"] = self._handle(message["word"], message["value"])
        except Exception as error:  # noqa: BLE001 - the edge of a process: whoever asked is told
            made["error"] = told(error)
        try:
            self._send(made)
        except OSError:
            self._gone.set()


def told(error: Exception) -> dict[str, Any]:
    """An error as a message."""
    known = isinstance(error, TidemillError)
    parts = {"breaches": getattr(error, "breaches", None), "name": getattr(error, "name", None), "known": getattr(error, "known", None)}
    message = error.message if isinstance(error, TidemillError) else f"{type(error).__name__}: {error}"
    return {"kind": type(error).__name__ if known else "", "message": message, "hint": getattr(error, "hint", None), **parts}


def raised(error: dict[str, Any]) -> TidemillError:
    """The error that a message tells of, of the same kind where that is one of ours."""
    kind, message, hint = error["kind"], error["message"], error["hint"]
    if kind == "ContractViolation":
        return errors.ContractViolation(error["breaches"], hint=hint)
    if kind == "NotFound":
        return errors.NotFound(message.partition(f" {error['name']!r} ")[0], error["name"], error["known"], hint=hint)
    if kind == "MissingDependency":
        return errors.ConfigError(message, hint=hint)
    kinds = {
        made.__name__: made for made in (errors.ConfigError, errors.DataError, errors.Conflict, errors.Unavailable, errors.Unsupported)
    }
    made: TidemillError = kinds.get(kind, TidemillError)(message, hint=hint)
    return made
