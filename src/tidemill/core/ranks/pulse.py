"""What a rank is at, told by a thread of its own, so that whoever watches can name the one that hangs.

The thread beats also while the rank waits in an operation; what counts as progress is what the rank tells: a step, another
thing to do, a collective operation entered. A process that is frozen as a whole beats no more.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tidemill.core.events import Event, Events


class Collective(NamedTuple):
    """The last collective operation of a rank."""

    name: str
    number: int
    """How many were entered so far."""
    waiting: bool
    """Whether it is still in it."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One line of a rank about itself."""

    rank: int
    host: str
    pid: int
    beats: int = 0
    """How many came before; what stands still is frozen."""
    progress: int = 0
    """How often it told of something new; what stands still hangs."""
    step: int | None = None
    doing: str = "starting"
    patient: bool = True
    """Whether what it does may take long: until its first step, and while it says so."""
    collective: str | None = None
    collectives: int = 0
    waiting: bool = False
    """Whether it is in that collective operation still."""
    line: str = ""
    """Where its main thread is."""


class Pulse:
    """A rank's own. `step`, `doing` and `patient` are for its main thread; they cost about a microsecond and never block.

    Args:
        path: The file that is written anew each beat; None for a process that nobody watches.
        every_s: Seconds between beats, above 0.
    """

    def __init__(self, path: Path | None = None, *, rank: int = 0, every_s: float = 1.0) -> None:
        self._path = path
        self._every_s = every_s
        self._beat = Beat(rank=rank, host=socket.gethostname(), pid=os.getpid())
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._main = threading.main_thread().ident
        self.collective: Callable[[], Collective | None] = lambda: None
        """Set by what knows of collective operations; called by the thread that beats."""
        self.events = Events(_to_file(path.with_suffix(".events"))) if path is not None else Events()
        """What is emitted here, the job's events hear."""

    def step(self, number: int) -> None:
        """Step `number` begins, or has come on."""
        if self._path is None:
            return
        beat = self._beat
        self._beat = replace(beat, step=number, doing="training", patient=False, progress=beat.progress + 1)

    def doing(self, what: str) -> None:
        """Something else begins, or has come on."""
        beat = self._beat
        self._beat = replace(beat, doing=what, progress=beat.progress + 1)

    @contextmanager
    def patient(self, what: str) -> Iterator[None]:
        """Inside the block no progress is expected for ten times as long, of any rank."""
        before = self._beat
        self._beat = replace(before, doing=what, patient=True, progress=before.progress + 1)
        try:
            yield
        finally:
            beat = self._beat
            self._beat = replace(beat, doing=before.doing, patient=before.patient, progress=beat.progress + 1)

    def start(self) -> None:
        """Beat from now on, until `stop`."""
        if self._path is not None and self._thread is None:
            self._write(0)
            self._thread = threading.Thread(target=self._run, name="tidemill-pulse", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(self._every_s):
            number += 1
            with suppress(OSError):  # a full disk must not end the run; what stands still then is seen by the watcher
                self._write(number)

    def _write(self, number: int) -> None:
        if self._path is None:
            return
        beat = replace(self._beat, beats=number, line=self._line())
        last = self.collective()
        if last is not None:
            beat = replace(beat, collective=last.name, collectives=last.number, waiting=last.waiting, progress=beat.progress + last.number)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(beat)), encoding="utf-8")
        os.replace(partial, self._path)

    def _line(self) -> str:
        frame = sys._current_frames().get(self._main or 0)
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}" if frame is not None else ""


_MINE: list[Pulse] = []


def pulse() -> Pulse:
    """This process's own; one that tells nobody where it was not started as a rank."""
    if not _MINE:
        _MINE.append(Pulse())
    return _MINE[0]


def begin(made: Pulse) -> Pulse:
    """Make `made` this process's own, and start it."""
    _MINE[:] = [made]
    made.start()
    return made


def read_beat(path: Path) -> Beat | None:
    """The last beat in a file; None where there is none yet."""
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Beat(**told)
    except (OSError, ValueError, TypeError):
        return None


def _to_file(path: Path) -> Callable[[Event], None]:
    def write(event: Event) -> None:
        line = {"kind": event.kind, "message": event.message, "level": event.level, "fields": event.fields, "at": event.at}
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    return write
