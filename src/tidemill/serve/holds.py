"""Who still needs something that is about to be closed."""

from __future__ import annotations

import threading


class Holds:
    """Counts callers, until it is retired and the last one has left. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._retired = False
        self._ended = threading.Event()

    def enter(self) -> bool:
        """Count a caller, who must `leave`; False where it is too late to come."""
        with self._lock:
            if not self._retired:
                self._count += 1
            return not self._retired

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._retired and self._count == 0:
                self._ended.set()

    def retire(self) -> None:
        """Take no more callers."""
        with self._lock:
            self._retired = True
            if self._count == 0:
                self._ended.set()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until a retired one has no callers, however long for None; False where some are left after `timeout_s`."""
        return self._ended.wait(timeout_s)
