"""Ranks that stay and answer: started by a launcher, fed over a socket, started again after a failure.

The process that asks holds an `Answering`; the first rank holds the other end, a `Desk`. Whatever ends this process ends the
ranks: their launcher holds each on a leash, and the first one sees the socket close.
"""

from __future__ import annotations

import select
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tidemill.core.errors import TidemillError, Unavailable
from tidemill.core.launcher import Launcher, RankJob, RanksFailed, Resources
from tidemill.core.load import load
from tidemill.core.ranks.wire import receive, send

SOCKET = "socket"

# The empty message: there will be no more.
_END = b""
# Between a failure and the next start: longer each time, as long as none comes to answer.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 30.0
_CLOSE_S = 10.0


class Answering:
    """Ranks of a job that each batch goes to. Safe from several threads; one batch is answered at a time.

    Made once the ranks are ready. A job's function makes a `Desk` of `arguments["socket"]` on its first rank.

    Args:
        job: Its folder is made here, and gone with `close`. `hang_s` is also how long an answer may take.

    Raises:
        TidemillError: If they cannot be started, what the rank raised or which one failed.
    """

    def __init__(self, job: RankJob, ranks: int, resources: Resources, *, launcher: str = "local") -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tidemill-ranks-"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / SOCKET))
        self._listener.listen(1)
        arguments = {**job.arguments, "socket": str(self._folder / SOCKET)}
        self._job = replace(job, folder=self._folder, arguments=arguments, restarts=0)
        made: Launcher = load("launcher", launcher)()
        self._run = partial(made.run, self._job, ranks, resources)
        self._turn, self._state = threading.Lock(), threading.Condition()
        self._desk: socket.socket | None = None
        self._failed: TidemillError | None = None
        self._closed = threading.Event()
        self._starts = 0
        threading.Thread(target=self._meet, name="ranks-meet", daemon=True).start()
        self._keeper = threading.Thread(target=self._keep, name="ranks-keep", daemon=True)
        self._keeper.start()
        self._wait_for_the_first()

    def _wait_for_the_first(self) -> None:
        with self._state:
            self._state.wait_for(lambda: self._desk is not None or self._failed is not None)
        if self._failed is not None:
            self.close()
            raise self._failed

    @property
    def starts(self) -> int:
        """How often the ranks came to answer."""
        return self._starts

    def ask(self, message: bytes) -> bytes:
        """The ranks' answer.

        Raises:
            Unavailable: If they fail, take too long, or are being started again.
        """
        with self._turn:
            desk = self._desk
            if self._closed.is_set():
                raise RuntimeError("a runtime that was closed must not run")
            if desk is None:
                raise self._away()
            try:
                send(desk, message)
                answer = receive(desk)
            except OSError as error:
                self._part(desk)
                late = isinstance(error, TimeoutError)
                raise (self._away(f"gave no answer within {self._job.hang_s:g} s") if late else self._away("failed")) from error
            if answer is None:
                self._part(desk)
                raise self._away("failed")
            return answer

    def close(self) -> None:
        """End the ranks; returns when they are gone, or soon, where one hangs: its launcher ends it then."""
        with self._state:
            if self._closed.is_set():
                return
            self._closed.set()
        desk = self._desk
        if desk is not None:
            with suppress(OSError):
                send(desk, _END)
        self._listener.close()
        self._keeper.join(_CLOSE_S)
        self._part(desk)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _keep(self) -> None:
        """Start the ranks, and again whenever they end, until `close`."""
        wait_s = _FIRST_WAIT_S
        while not self._closed.is_set():
            before = self._starts
            try:
                self._run()
                said: TidemillError = Unavailable("the ranks that answer ended")
            except TidemillError as error:
                said = error
            except Exception as error:  # noqa: BLE001 - the edge of a thread: whoever asks must hear of it
                said = Unavailable(f"the ranks that answer must start, {type(error).__name__}: {error}")
            self._part(self._desk)
            if self._closed.is_set():
                return
            with self._state:
                if self._starts == 0:
                    self._failed = said
                    self._state.notify_all()
                    return
            wait_s = _FIRST_WAIT_S if self._starts > before else min(2 * wait_s, _LONGEST_WAIT_S)
            if isinstance(said, RanksFailed):  # its launcher has told which one
                self._job.events.emit("ranks.restarted", f"all start again in {wait_s:.1f} s")
            else:
                self._job.events.warn("ranks.failed", f"{said}; all start again in {wait_s:.1f} s")
            self._closed.wait(wait_s)

    def _meet(self) -> None:
        """Take in the first rank of each start."""
        while not self._closed.is_set():
            try:
                desk, _ = self._listener.accept()
            except OSError:
                return
            desk.settimeout(self._job.hang_s)
            with self._state:
                self._desk, self._starts = desk, self._starts + 1
                self._state.notify_all()
            if self._starts > 1:
                self._job.events.emit("ranks.back", "the ranks answer again")

    def _part(self, desk: socket.socket | None) -> None:
        """Speak no more with this one."""
        with self._state:
            if desk is not None and self._desk is desk:
                self._desk = None
        if desk is not None:
            desk.close()

    def _away(self, what: str = "were ended by a failure") -> Unavailable:
        return Unavailable(f"the ranks that answer {what} and are being started again", retry_after_s=5.0)


class Desk:
    """The first rank's end: takes what is asked, gives what is answered.

    Args:
        arguments: Of the job's function.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(arguments["socket"])

    def next(self, timeout_s: float) -> bytes | None:
        """What is asked next; empty for the end, None where nothing came in time.

        Raises:
            Unavailable: If whoever asks is gone without a word.
        """
        ready, _, _ = select.select([self._socket], [], [], timeout_s)
        if not ready:
            return None
        message = receive(self._socket)
        if message is None:
            raise Unavailable("the process that asks must say when it ends, it is gone")
        return message

    def answer(self, message: bytes) -> None:
        send(self._socket, message)
