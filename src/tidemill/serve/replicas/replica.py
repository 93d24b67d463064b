"""One replica: a server process that loads, listens, changes and ends as its supervisor says."""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from concurrent.futures import Future
from typing import Any

import msgspec

from tidemill.core.errors import TidemillError
from tidemill.core.events import Event, Events
from tidemill.core.project import build
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.deployment.local import Deployment
from tidemill.serve.deployment.slot import Slot, Standing
from tidemill.serve.process import Running, answer
from tidemill.serve.replicas.channel import Channel

# Beyond the time to drain, what a replica without a supervisor is given to end.
MARGIN_S = 5.0
SCRAPE_S = 5.0


class Replica:
    """Loads on the main thread, then answers there; changes come in over the channel while it answers.

    Args:
        connection: To the supervisor; when its other end is closed, this ends.
        sockets: Brings the socket to listen on, bound to the address of the server.
    """

    def __init__(self, connection: socket.socket, sockets: socket.socket) -> None:
        self._sockets = sockets
        self._spec: Future[dict[str, Any]] = Future()
        self._loaded: Future[None] = Future()
        self._may_listen = threading.Event()
        self._over = threading.Event()
        self._listening: Future[None] = Future()
        self._running: Running | None = None
        self._app: App | None = None
        self._deployment: Deployment | None = None
        self._drain_s = 0.0
        self._channel = Channel(connection, self._handle, ended=self._abandoned, name="supervisor")

    def run(self) -> int:
        """The process's exit code, when it has ended."""
        spec = self._spec.result()
        config = build(ServeConfig, spec["config"], path="serve", where="supervisor")
        self._drain_s = config.drain_timeout_s
        events = Events(self._tell_event)
        try:
            self._deployment = Deployment(config, accept_latency=spec["accept_latency"], events=events)
            self._app = app = self._deployment.start(_slots(spec["slots"]))
        except TidemillError as error:
            self._loaded.set_exception(error)
            return self._told(error)
        app.stand(_standings(spec["standings"]))
        app.repository = self
        app.view = lambda: app.metrics.render_all(self._channel.ask("metrics", timeout_s=SCRAPE_S))
        self._loaded.set_result(None)
        self._may_listen.wait()
        [taken] = socket.recv_fds(self._sockets, 1, 1)[1]
        try:
            answer(app, socket.socket(fileno=taken), events=events, on_ready=self._ready, together=True)
        except TidemillError as error:
            if not self._listening.done():
                self._listening.set_exception(error)
            return self._told(error)
        self._channel.tell("last", app.metrics.snapshot())
        return 0

    def _told(self, error: TidemillError) -> int:
        """Wait until the supervisor has heard of the error, and says that it is time to go."""
        self._over.wait(MARGIN_S)
        return error.exit_code

    def load(self, ref: str) -> None:
        self._channel.ask("load", ref, timeout_s=None)

    def unload(self, name: str) -> None:
        self._channel.ask("unload", name, timeout_s=None)

    def _ready(self, running: Running) -> None:
        self._running = running
        self._listening.set_result(None)

    def _handle(self, word: str, value: Any) -> Any:
        """What the supervisor says; `start` and `listen` are answered when that is done."""
        if word == "start":
            self._spec.set_result(value)
            return self._loaded.result()
        if word == "listen":
            self._may_listen.set()
            return self._listening.result()
        if word == "stop":
            return self._stop()
        if self._app is None or self._deployment is None:
            raise TidemillError(f"a replica must be loaded before it is told {word!r}")
        if word == "snapshot":
            return self._app.metrics.snapshot()
        if word == "prepare":
            return self._deployment.prepare(_slots(value))
        if word == "commit":
            return self._deployment.commit()
        if word == "discard":
            return self._deployment.discard()
        if word == "stand":
            return self._app.stand(_standings(value))
        raise TidemillError(f"a replica must know what it is told, got {word!r}")

    def _stop(self) -> None:
        self._over.set()
        if self._running is not None:
            self._running.stop()
        elif not (self._loaded.done() and self._loaded.exception()):
            os._exit(0)  # nothing is in flight

    def _abandoned(self) -> None:
        """End without a supervisor: what is in flight is finished, but nobody may hold this up."""
        threading.Timer(self._drain_s + MARGIN_S, os._exit, (1,)).start()
        self._stop()

    def _tell_event(self, event: Event) -> None:
        self._channel.tell("event", {"kind": event.kind, "message": event.message, "level": event.level, "fields": _plain(event.fields)})


def _slots(value: Any) -> tuple[Slot, ...]:
    return msgspec.convert(value, tuple[Slot, ...])


def _standings(value: Any) -> tuple[Standing, ...]:
    return msgspec.convert(value, tuple[Standing, ...])


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that can travel."""
    plain: dict[str, Any] = msgspec.to_builtins(fields, enc_hook=str)
    return plain


def main() -> int:
    connection, sockets = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    return Replica(connection, sockets).run()


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except BaseException:  # noqa: BLE001 - the edge of the process
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)  # threads that wait for the supervisor hold up nothing
