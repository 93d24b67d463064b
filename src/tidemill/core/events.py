"""What happened, as records: for the terminal, for a log file, for whoever listens."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Level = Literal["progress", "info", "warning", "error"]


def now() -> str:
    """The present in ISO 8601, UTC, milliseconds."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened. `kind` is dotted (`stage.started`, `tune.trial`); `fields` is JSON-able."""

    kind: str
    message: str = ""
    level: Level = "info"
    fields: dict[str, Any] = field(default_factory=dict)
    at: str = field(default_factory=now)


Listener = Callable[[Event], None]


class Events:
    """Sends each event to every listener, in order. Listeners must not raise."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = list(listeners)

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def emit(self, kind: str, message: str = "", /, *, level: Level = "info", **fields: Any) -> None:
        event = Event(kind=kind, message=message, level=level, fields=fields)
        for listener in self._listeners:
            listener(event)

    def warn(self, kind: str, message: str, /, **fields: Any) -> None:
        self.emit(kind, message, level="warning", **fields)


def to_file(path: Path) -> Listener:
    """A listener that appends each event to a JSON-lines file, except progress; a log that cannot be written ends no work."""

    def write(event: Event) -> None:
        if event.level == "progress":
            return
        line = {"at": event.at, "level": event.level, "kind": event.kind, "message": event.message, **event.fields}
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    return write
