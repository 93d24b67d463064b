"""`[serve.cache]`: answers that were given before, exactly: by model identity, tenant and every value of the row.

Rows are kept one by one, so that a batch asks its model only for those that are new. A row that is being computed for one caller is
waited for by the next who asks for the same.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from tidemill.core.engine import memory_bytes
from tidemill.core.errors import ConfigError
from tidemill.core.events import Events
from tidemill.core.graph import Arrays
from tidemill.core.package import Answers
from tidemill.serve.shared import Shared

# What an entry costs beside its values.
OVERHEAD_BYTES = 200


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """How many answers are kept, and how long."""

    max: str = "64MiB"
    """Memory for answers in this process, such as 64MiB."""
    policy: Literal["lru", "lfu"] = "lru"
    """What goes first when it is full: lru, the answer not asked for the longest; lfu, the one asked for the least."""
    ttl_s: float | None = field(default=None, metadata={"min": 0.001})
    """Seconds after which an answer is computed anew; never when absent, since a version always answers the same."""
    redis: str | None = None
    """redis://... that several servers keep answers in together, with its own limit of memory; in this process when absent."""
    max_rows: int = field(default=256, metadata={"min": 1, "max": 1_000_000})
    """Requests of more rows go past the cache."""

    def check(self) -> None:
        try:
            memory_bytes(self.max)
        except ConfigError as error:
            raise ConfigError(f"serve.cache.max: must be a size such as 64MiB, got {self.max!r}") from error


class Kept(Protocol):
    """Where answers lie. Safe from several threads; may lose what it was given, never change it."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]: ...
    def put(self, entries: dict[bytes, bytes]) -> None: ...


# Told "hit", "miss" or "shared" (waited for another caller's), and how many rows.
Count = Callable[[str, int], None]


class Cache:
    """Answers rows of one model from what is kept, and lets the model answer the others."""

    def __init__(self, kept: Kept, *, identity: str, max_rows: int, count: Count = lambda _outcome, _rows: None) -> None:
        self._kept = kept
        self._identity = identity.encode()
        self.max_rows = max_rows
        self._count = count
        self._flying: Flying = {}
        self._lock = threading.Lock()

    def answer(self, inputs: Arrays, rows: int, run: Callable[[Arrays], Answers], *, tenant: str = "") -> Answers:
        """What `run` answers for the inputs, from what is kept as far as it goes; waits for rows that others compute.

        Args:
            run: Answers for the rows that it is given, in their order.
            tenant: Whose answers these are; nobody gets another's.
        """
        if rows > self.max_rows or rows == 0:
            return run(inputs)
        looked = self.look(inputs, rows, tenant=tenant)
        if looked.missing is not None:
            try:
                looked.give(run(looked.missing))
            except BaseException as error:
                looked.fail(error)
                raise
        return looked.wait()

    def look(self, inputs: Arrays, rows: int, *, tenant: str) -> Looked:
        """What is kept of the rows, what others compute already, and what is left for the caller to have computed."""
        keys = self._keys(inputs, rows, tenant)
        found = [None if content is None else _read(content) for content in self._kept.get(keys)]
        missing = [i for i in range(rows) if found[i] is None]
        looked = Looked(self, keys, found)
        if missing:
            with self._lock:
                for i in missing:
                    looked.join(keys[i], i, self._flying)
        self._count("hit", rows - len(missing))
        self._count("miss", looked.count)
        self._count("shared", len(missing) - looked.count)
        if looked.places:
            looked.missing = inputs if looked.count == rows else {name: array[looked.places] for name, array in inputs.items()}
        return looked

    def land(self, keys: Iterable[bytes], answers: Mapping[bytes, Answers]) -> None:
        """Keep what was computed; nobody waits for it any more."""
        if answers:
            self._kept.put({key: _written(answer) for key, answer in answers.items()})
        with self._lock:
            for key in keys:
                del self._flying[key]

    def _keys(self, inputs: Arrays, rows: int, tenant: str) -> list[bytes]:
        """A hash for each row of everything that its answer may depend on."""
        head = self._identity + b"\x00" + tenant.encode("utf-8", "surrogatepass") + b"\x00"
        columns = []
        for name in sorted(inputs):
            array = inputs[name].reshape(rows, -1)
            columns.append([row.tobytes() for row in array] if array.dtype.kind not in "OU" else [_text(row) for row in array.tolist()])
        return [hashlib.blake2b(head + b"".join(_framed(values[i]) for values in columns), digest_size=20).digest() for i in range(rows)]


class Looked:
    """Rows that were looked up: whoever asked has `missing` computed, and gets the whole `then`, or has it by `wait`."""

    def __init__(self, cache: Cache, keys: Sequence[bytes], found: list[Answers | None]) -> None:
        self.missing: Arrays | None = None
        self.places: list[int] = []
        self._cache = cache
        self._keys = keys
        self._found = found
        self._mine: dict[bytes, Future[Answers]] = {}
        self._awaited: dict[bytes, Future[Answers]] = {}
        self._shared = False

    @property
    def count(self) -> int:
        """How many rows are to be computed."""
        return len(self.places)

    def is_shared(self) -> bool:
        """Whether somebody else waits for what is to be computed here."""
        return self._shared

    def join(self, key: bytes, place: int, flying: Flying) -> None:
        """Wait for a row that somebody computes, or be the one who does; while nobody else looks."""
        if key in self._mine:
            return
        if key in flying:
            self._awaited[key], other = flying[key]
            other._shared = True
            return
        self._awaited[key] = self._mine[key] = Future()
        flying[key] = self._mine[key], self
        self.places.append(place)

    def give(self, together: Answers) -> None:
        """The answers of `missing`: kept, and told to whoever waits."""
        made = {key: together.take(slice(i, i + 1)) for i, key in enumerate(self._mine)}
        try:
            self._cache.land(self._mine, made)
        finally:
            for key, answer in made.items():
                self._mine[key].set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Why there are none, told to whoever waits."""
        self._cache.land(self._mine, {})
        for future in self._mine.values():
            future.set_exception(error)

    def then(self, done: Callable[[Answers | None, BaseException | None], None]) -> None:
        """Have `done` called with all rows' answers, or why there are none, once they are here; maybe before this returns."""
        left, lock = len(self._awaited), threading.Lock()
        if not left:
            done(self.wait(), None)

        def one(_: Future[Answers]) -> None:
            nonlocal left
            with lock:
                left -= 1
                is_last = left == 0
            if is_last:
                error = next((error for future in self._awaited.values() if (error := future.exception()) is not None), None)
                done(None if error is not None else self.wait(), error)

        for future in self._awaited.values():
            future.add_done_callback(one)

    def wait(self) -> Answers:
        """All rows' answers; waits for those that others compute."""
        made = {key: future.result() for key, future in self._awaited.items()}
        whole = [answer if answer is not None else made[key] for key, answer in zip(self._keys, self._found, strict=True)]
        return Answers.joined(whole)


# By key: what is to come of a row, and for whom it is computed.
Flying = dict[bytes, tuple["Future[Answers]", Looked]]


class LocalKept:
    """Answers in this process, under a limit of bytes."""

    def __init__(self, config: CacheConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = memory_bytes(config.max)
        self._ttl_s = config.ttl_s
        self._clock = clock
        self._frequent = config.policy == "lfu"
        self._lock = threading.Lock()
        self._entries: dict[bytes, tuple[bytes, float, int]] = {}
        # Keys by how often they were asked for (one class for all where that does not matter), the longest silent first.
        self._classes: dict[int, OrderedDict[bytes, None]] = {}
        self._least = 1
        self.bytes = 0

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        now = self._clock()
        with self._lock:
            return [self._get(key, now) for key in keys]

    def put(self, entries: dict[bytes, bytes]) -> None:
        until = self._clock() + self._ttl_s if self._ttl_s is not None else float("inf")
        with self._lock:
            for key, content in entries.items():
                if key in self._entries:
                    self._drop(key)
                if _size(key, content) > self._limit:
                    continue
                self.bytes += _size(key, content)
                self._entries[key] = (content, until, 1)
                self._classes.setdefault(1, OrderedDict())[key] = None
                self._least = 1
                while self.bytes > self._limit:
                    self._drop(self._next())

    def _get(self, key: bytes, now: float) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        content, until, count = entry
        if until <= now:
            self._drop(key)
            return None
        if not self._frequent:
            self._classes[1].move_to_end(key)
            return content
        self._leave(key, count)
        if self._least == count and count not in self._classes:
            self._least = count + 1
        self._entries[key] = (content, until, count + 1)
        self._classes.setdefault(count + 1, OrderedDict())[key] = None
        return content

    def _next(self) -> bytes:
        """The key that goes first; the newest never does by being the only one asked for once."""
        if self._least not in self._classes:
            self._least = min(self._classes)
        ring = self._classes[self._least]
        newest = len(ring) == 1 and len(self._classes) > 1 and self._frequent
        return next(iter(self._classes[min(count for count in self._classes if count != self._least)] if newest else ring))

    def _drop(self, key: bytes) -> None:
        content, _, count = self._entries.pop(key)
        self.bytes -= _size(key, content)
        self._leave(key, count)

    def _leave(self, key: bytes, count: int) -> None:
        ring = self._classes[count]
        del ring[key]
        if not ring:
            del self._classes[count]


class RedisKept:
    """Answers in Redis, for all servers together; while it does not answer, nothing is kept."""

    def __init__(self, url: str, *, ttl_s: float | None, events: Events) -> None:
        told = ("serve.cache_away", "Redis does not answer, every row is computed")
        self._shared = Shared(url, setting="serve.cache.redis", warning=told, events=events)
        self._client = self._shared.client
        self._ttl_ms = None if ttl_s is None else max(1, round(ttl_s * 1000))

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found = self._shared.ask(lambda: self._client.mget([_named(key) for key in keys]))
        return [None] * len(keys) if found is None else list(found)

    def put(self, entries: dict[bytes, bytes]) -> None:
        def send() -> Any:
            pipeline = self._client.pipeline(transaction=False)
            for key, content in entries.items():
                pipeline.set(_named(key), content, px=self._ttl_ms)
            return pipeline.execute()

        self._shared.ask(send)


def _named(key: bytes) -> bytes:
    return b"tidemill:answer:" + key


def _framed(part: bytes) -> bytes:
    """A value that cannot run into the next one."""
    return len(part).to_bytes(4, "little") + part


def _text(row: list[Any]) -> bytes:
    return b"".join(_framed(str(value).encode("utf-8", "surrogatepass")) for value in row)


def _size(key: bytes, content: bytes) -> int:
    return len(key) + len(content) + OVERHEAD_BYTES


def _written(answers: Answers) -> bytes:
    """One row as bytes: of each array its type, shape and values; texts as texts. No code, unlike a pickle."""
    import msgspec

    plain = {
        name: None
        if array is None
        else (array.dtype.str, list(array.shape), array.tolist() if array.dtype.kind == "O" else array.tobytes())
        for name, array in vars(answers).items()
    }
    return msgspec.msgpack.encode(plain)


def _read(content: bytes) -> Answers | None:
    """One row from bytes; None where they are not what `_written` writes, since a store may be anybody's."""
    import msgspec

    arrays: dict[str, Any] = {}
    try:
        for name, entry in msgspec.msgpack.decode(content).items():
            if entry is None:
                arrays[name] = None
                continue
            kind, shape, values = entry
            if kind == "|O":
                arrays[name] = np.empty(shape, object)
                arrays[name][...] = values
            else:
                arrays[name] = np.frombuffer(values, kind).reshape(shape)
        return Answers(**arrays)
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError):
        return None
