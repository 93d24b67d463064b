"""Keeps one replica alive: starts it, waits for its end, starts it again."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Protocol

from tidemill.core.errors import TidemillError, Unavailable
from tidemill.serve.counts import Snapshot
from tidemill.serve.replicas.channel import Channel

# A replica that ends is started again after this long, twice as long each time, until it has lived for a while.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
LIVED_S = 10.0
# After so many ends in a row before it answered there is no hope for it.
MOST_FAILURES = 5
# Connections that came to a dead replica wait this long for the next one; after that, new ones go to the others.
KEPT_S = 10.0


class Died(TidemillError):
    """A replica ended without a word."""


class Desk(Protocol):
    """What a keeper asks of its supervisor."""

    def spec(self) -> tuple[int, dict[str, Any]]:
        """What a new replica is to be, and the number of that state."""
        ...

    def admit(self, keeper: Keeper) -> None:
        """Bring a loaded replica to what the others are, and let it listen."""
        ...

    def hear(self, keeper: Keeper, word: str, value: Any) -> Any:
        """A message of the replica."""
        ...

    def listening(self) -> socket.socket:
        """A socket of the replica's own on the server's address."""
        ...

    def alone(self, keeper: Keeper) -> bool:
        """Whether no other replica answers."""
        ...

    def ended(self, keeper: Keeper, *, again: bool) -> None:
        """The replica has ended; what it counted is in `keeper.snapshot`."""
        ...

    def hopeless(self, keeper: Keeper, error: TidemillError) -> None:
        """The replica cannot be started."""
        ...


class Keeper:
    """One place for a replica. `ready` while its replica answers; `generation` is the state that it has."""

    def __init__(self, number: int, desk: Desk) -> None:
        self.number = number
        self.generation = -1
        self.snapshot: Snapshot = {}
        self.ready = threading.Event()
        self.settled = threading.Event()
        """Set when the first start has come to an end, good or bad."""
        self.pid = 0
        self._desk = desk
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._sockets: socket.socket | None = None
        self._taken: socket.socket | None = None
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name=f"replica-{number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self, word: str, value: Any = None, *, timeout_s: float | None = None) -> Any:
        """What the replica answers.

        Raises:
            Unavailable: If it is gone, or does not answer in time.
        """
        if self._channel is None:
            raise Unavailable("the replica is gone")
        return self._channel.ask(word, value, timeout_s=timeout_s)

    def tell(self, word: str, value: Any = None) -> None:
        if self._channel is not None:
            self._channel.tell(word, value)

    def stop(self) -> None:
        """Let the replica finish what is in flight, and start no other."""
        with self._starting:
            self._stopping.set()
            self._release()
            self.tell("stop")

    def wait(self, timeout_s: float) -> bool:
        """Whether all is over, after at most this long."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def listen(self) -> None:
        """Give the replica its socket, which outlives it: what waits there when one dies is taken by the next.

        Raises:
            TidemillError: If it cannot listen.
        """
        with self._starting:
            if self._stopping.is_set() or self._sockets is None:
                return
            if self._taken is None:
                self._taken = self._desk.listening()
            socket.send_fds(self._sockets, [b"x"], [self._taken.fileno()])
        self.ask("listen")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _keep(self) -> None:
        failures = ends = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            error = self._live()
            answered, lived = self.ready.is_set(), time.monotonic() - began
            self.ready.clear()
            failures = 0 if answered else failures + 1
            ends = 0 if answered and lived >= LIVED_S else ends + 1
            again = not self._stopping.is_set()
            self._desk.ended(self, again=again and answered)
            said = error is not None and not isinstance(error, Died)
            if again and error is not None and (failures >= MOST_FAILURES or (said and not self.settled.is_set())):
                self._desk.hopeless(self, error)
                break
            if answered:
                kept = threading.Timer(KEPT_S, self._release_unless_ready)
                kept.daemon = True
                kept.start()
            self._stopping.wait(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** max(0, ends - 1)))
        self._release()
        self.settled.set()

    def _live(self) -> TidemillError | None:
        """One replica from its start to its end; why it ended where it never answered."""
        gone = threading.Event()
        error: TidemillError | None = None
        (ours, theirs), (sockets, for_sockets) = socket.socketpair(), socket.socketpair()
        with ours, theirs, sockets, for_sockets:
            with self._starting:
                if self._stopping.is_set():
                    return None
                inherited = (theirs.fileno(), for_sockets.fileno())
                command = [sys.executable, "-P", "-m", "tidemill.serve.replicas.replica", *map(str, inherited)]
                self._process = subprocess.Popen(command, pass_fds=inherited, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                theirs.close()
                for_sockets.close()
                self._sockets = sockets
                self._channel = Channel(ours, self._hear, ended=gone.set, name=f"replica-{self.number}")
            self.pid = self._process.pid
            try:
                self.generation, spec = self._desk.spec()
                self.ask("start", spec)
                if not self._stopping.is_set():
                    self._desk.admit(self)
                    self.ready.set()
                    self.settled.set()
            except TidemillError as raised:
                error = raised
            if error is not None or self._stopping.is_set():
                self.tell("stop")
            code = self._process.wait()
            gone.wait()
            self._channel.close()
            with self._starting:
                self._sockets = None
        if isinstance(error, Unavailable):  # it says nothing itself: its end does
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            error = Died(f"replica {self.number} must start, it ended with {how}")
        return error

    def _hear(self, word: str, value: Any) -> Any:
        if word == "last":
            self.snapshot = value
            return None
        return self._desk.hear(self, word, value)

    def _release_unless_ready(self) -> None:
        with self._starting:
            if not self.ready.is_set() and not self._desk.alone(self):
                self._release()

    def _release(self) -> None:
        taken, self._taken = self._taken, None
        if taken is not None:
            with suppress(OSError):
                taken.close()
