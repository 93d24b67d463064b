"""Writing that nobody waits for: entries handed over at once, written together by a thread of its own a moment later."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

FLUSH_S = 0.5
MOST = 1000


class Background(Generic[T]):
    """Gives `write` what was put within half a second, a thousand entries at most. `write` must not raise.

    `put` never blocks; safe from several threads. A process that is killed loses what is pending.
    """

    def __init__(self, write: Callable[[list[T]], None], *, name: str) -> None:
        self._write = write
        self._pending: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, entry: T) -> None:
        self._pending.put(entry)

    def close(self) -> None:
        """Write what is pending."""
        self._pending.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            entries, ended = self._collect()
            if entries:
                self._write(entries)

    def _collect(self) -> tuple[list[T], bool]:
        """What came within `FLUSH_S` of the first entry, and whether the end did."""
        first = self._pending.get()
        if first is None:
            return [], True
        entries, until = [first], time.monotonic() + FLUSH_S
        while len(entries) < MOST:
            try:
                entry = self._pending.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if entry is None:
                return entries, True
            entries.append(entry)
        return entries, False
