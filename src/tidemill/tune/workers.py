"""Several processes on this machine that search together, started and watched by the one that runs the stage.

Each is a fresh interpreter that is told its part as JSON and answers with events, a line each. One that dies is replaced;
what it had claimed goes back to the others. When this process ends, however it ends, so do they.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tidemill.core import errors
from tidemill.core.errors import TidemillError, Unavailable
from tidemill.core.events import Events

# Deaths in a row, without a trial finished between them, after which the search gives up.
MAX_DEATHS = 5
_END_S = 5.0


def run_workers(order: Mapping[str, Any], number: int, *, events: Events) -> None:
    """Have `number` processes do what `order` says, and pass their events on.

    Raises:
        TidemillError: What a worker raised.
        Unavailable: If workers die again and again.
    """
    told: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    alive = {_Worker(order, told) for _ in range(number)}
    deaths = 0
    try:
        while alive:
            worker, line = told.get()
            if line is None:
                alive.discard(worker)
                code = worker.wait()
                if code != 0:
                    deaths += 1
                    events.warn("tune.worker_lost", f"a worker of the search ended with code {code}; its trial is drawn again", code=code)
                    if deaths >= MAX_DEATHS:
                        raise Unavailable(
                            f"tune.workers: {deaths} workers died one after the other, the last with code {code}", hint=worker.last_words()
                        )
                    alive.add(_Worker(order, told))
            elif "error" in line:
                raise _error(line["error"])
            else:
                deaths = 0 if line["kind"] == "tune.trial" else deaths
                events.emit(line["kind"], line["message"], level=line["level"], **line["fields"])
    finally:
        for worker in alive:
            worker.stop()


class _Worker:
    """One process. Its input stays open as long as this one lives, which is how it learns of our end."""

    def __init__(self, order: Mapping[str, Any], told: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tidemill.tune.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        self._said: list[str] = []
        self._threads = [
            threading.Thread(target=self._read, args=(told,), daemon=True),
            threading.Thread(target=self._listen, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it died at once, which its end tells
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()

    def wait(self) -> int:
        code = self._process.wait()
        for thread in self._threads:
            thread.join(_END_S)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        return code

    def last_words(self) -> str | None:
        return self._said[-1] if self._said else None

    def stop(self) -> None:
        """End it; what it has claimed goes to the next who comes."""
        self._process.kill()
        self.wait()

    def _read(self, told: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        for line in self._process.stdout or ():
            try:
                told.put((self, json.loads(line)))
            except ValueError:  # cut short by a kill
                continue
        told.put((self, None))

    def _listen(self) -> None:
        for line in self._process.stderr or ():
            self._said = [*self._said[-20:], line.rstrip()]


def _error(told: Mapping[str, Any]) -> TidemillError:
    kind = getattr(errors, told["type"], Unavailable)
    made: TidemillError = Unavailable(told["message"])
    if isinstance(kind, type) and issubclass(kind, TidemillError):
        try:
            made = kind(told["message"], hint=told.get("hint"))
        except TypeError:  # one whose arguments are its own; the message says it all
            made = Unavailable(told["message"], hint=told.get("hint"))
    return made
