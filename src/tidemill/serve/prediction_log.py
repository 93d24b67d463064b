"""The prediction log: inputs and answers, one JSON line a row, one file a day, for whoever watches the model.

Lines are `{"at", "model", "version", "id", "inputs": {column: value}, "prediction", "probability"}`. They are written by
a thread of their own, about half a second after the answer: a process that is killed loses at most what is pending, and
never more than `MAX_PENDING_ROWS` are. Beyond these, and where the disk refuses, requests are answered and their lines
dropped, which is counted.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tidemill.core.errors import ConfigError
from tidemill.core.graph import Arrays
from tidemill.core.package import Answers
from tidemill.core.schema import NULL_BOOLEAN, NULL_STRING, NULL_TIMESTAMP, VALID_SUFFIX, Column
from tidemill.serve.background import Background
from tidemill.serve.model import Model

MAX_PENDING_ROWS = 100_000

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

# Told "written" or "dropped", and how many rows.
Count = Callable[[str, int], None]


@dataclass(slots=True)
class Entry:
    """One answered request."""

    model: Model
    request_id: str
    inputs: Arrays
    answers: Answers
    at: float


class PredictionLog:
    """Appends to `folder`. `append` never blocks and never raises; safe from several threads.

    Raises:
        ConfigError: If the folder cannot be made or written.
    """

    def __init__(self, folder: Path, *, count: Count = lambda _outcome, _rows: None) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"serve.log_folder: must be a folder that can be made, got {folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"serve.log_folder: must be writable, got {folder}")
        self._folder = folder
        self._count = count
        self._pending_rows = 0
        self._lock = threading.Lock()
        self._pending: Background[Entry] = Background(self._write_all, name="prediction-log")

    def append(self, model: Model, request_id: str, inputs: Arrays, answers: Answers) -> None:
        rows = len(answers.prediction)
        with self._lock:
            full = self._pending_rows + rows > MAX_PENDING_ROWS
            self._pending_rows += 0 if full else rows
        if full:
            self._count("dropped", rows)
        else:
            self._pending.put(Entry(model, request_id, inputs, answers, time.time()))

    def close(self) -> None:
        """Write what is pending and let go of the file."""
        self._pending.close()

    def _write_all(self, entries: list[Entry]) -> None:
        by_day: dict[str, list[Entry]] = {}
        for entry in entries:
            by_day.setdefault(time.strftime("%Y-%m-%d", time.gmtime(entry.at)), []).append(entry)
        for day, of_day in by_day.items():
            self._write(self._folder / f"predictions-{day}.jsonl", of_day)

    def _write(self, path: Path, entries: list[Entry]) -> None:
        rows = sum(len(entry.answers.prediction) for entry in entries)
        content = b"".join(msgspec.json.encode(line) + b"\n" for entry in entries for line in lines(entry))
        try:
            # One append of whole lines, so that several processes may share the file.
            with path.open("ab", buffering=0) as file:
                file.write(content)
        except OSError:
            self._count("dropped", rows)
        else:
            self._count("written", rows)
        with self._lock:
            self._pending_rows -= rows


def lines(entry: Entry) -> Iterator[dict[str, Any]]:
    """One mapping a row; rows of a batch have their place added to the request's id."""
    rows = entry.model.form.rows(entry.answers)
    columns = {column.name: plain_values(column, entry.inputs) for column in entry.model.schema}
    at = dt.datetime.fromtimestamp(entry.at, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for i, row in enumerate(rows):
        yield {
            "at": at,
            "model": entry.model.name,
            "version": entry.model.version,
            "id": entry.request_id if len(rows) == 1 else f"{entry.request_id}-{i}",
            "inputs": {name: values[i] for name, values in columns.items()},
            "prediction": row["prediction"],
            "probability": row.get("probability"),
            **({"interval": row["interval"]} if "interval" in row else {}),
        }


def plain_values(column: Column, inputs: Arrays) -> list[Any]:
    """A column of graph inputs as JSON values again; times as ISO 8601."""
    values: list[Any] = inputs[column.name].ravel().tolist()
    if column.type == "string":
        return [None if value == NULL_STRING else _short(value) for value in values]
    if column.type == "boolean":
        return [None if value == NULL_BOOLEAN else bool(value) for value in values]
    if column.type == "timestamp":
        return [None if value == NULL_TIMESTAMP else _iso(value) for value in values]
    if column.type == "int64" and column.nullable:
        return [value if valid else None for value, valid in zip(values, inputs[column.name + VALID_SUFFIX].ravel().tolist(), strict=True)]
    return values


def _short(value: Any) -> Any:
    """A text as it is; an image, which would fill the log, by its hash."""
    return f"sha256:{hashlib.sha256(value).hexdigest()}" if isinstance(value, bytes) else value


def _iso(microseconds: int) -> Any:
    """ISO 8601, or the microseconds where a calendar of four-digit years does not reach."""
    try:
        return (_EPOCH + dt.timedelta(microseconds=microseconds)).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return microseconds
