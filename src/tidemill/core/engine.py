"""Where data work runs: five verbs over rows, and the launcher that starts ranks.

Everything the platform itself does to data is said in these verbs, so that an engine can be swapped by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

S = TypeVar("S")
BatchFn = Callable[["pa.RecordBatch"], "pa.RecordBatch"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where each kind of work runs, and with how much."""

    data: str = "local"
    """Engine for data work: a name or `module:attribute`."""
    train: str = "local"
    """Launcher for training: local | ray | spark."""
    memory: str = "2GiB"
    """Memory that data work may take, such as 512MiB or 8GiB."""
    threads: int = field(default=0, metadata={"min": 0, "max": 1024})
    """Threads for data work and training; 0 takes every core."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table to read: a file, a glob or a Hive folder, the format told by the suffix."""

    path: str
    """File, glob or folder; relative ones are resolved by the caller."""
    format: Literal["parquet", "csv"] | None = None
    """Overrides what the suffix says."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A folder of Parquet files to write, all of it or nothing."""

    path: Path
    rows_per_group: int = 131_072


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write` left: file names relative to the target, and rows in all."""

    files: tuple[str, ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class Partitioning:
    """How `exchange` lays rows out: by hash of `keys` into `parts`, or sorted by `keys`."""

    keys: tuple[str, ...]
    kind: Literal["hash", "sort"] = "hash"
    parts: int = 1


class Mergeable(Protocol[S]):
    """An aggregation that can be computed in pieces.

    `merge` is associative; the engine merges in row-group order, so that floating sums come out the same every time.
    `update` may change and return the state it is given; `merge` may change and return its first argument.
    States are plain data (picklable), since they travel between processes.
    """

    def init(self) -> S: ...
    def update(self, state: S, batch: pa.RecordBatch) -> S: ...
    def merge(self, left: S, right: S) -> S: ...


class Rows(Protocol):
    """A lazy table, owned by the engine that made it; may be scanned more than once."""

    @property
    def schema(self) -> pa.Schema: ...
    def batches(self, batch_rows: int = 65_536) -> Iterator[pa.RecordBatch]: ...


class DataEngine(Protocol):
    """Five verbs. Safe to use from one thread; lazy except `reduce` and `write`."""

    def scan(self, source: Source, columns: Sequence[str] | None) -> Rows: ...
    def map_batches(self, rows: Rows, fn: BatchFn, schema: pa.Schema) -> Rows: ...
    def exchange(self, rows: Rows, by: Partitioning) -> Rows: ...
    def reduce(self, rows: Rows, agg: Mergeable[S]) -> S: ...
    def write(self, rows: Rows, target: Target) -> Written: ...


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one rank may use."""

    threads: int = 1
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a launch ended: the failed rank and its last words, or neither."""

    failed_rank: int | None = None
    message: str = ""


class Launcher(Protocol):
    """Starts N ranks with the torchrun variables, watches them, names the failed one, stops the rest."""

    def run(self, job: Any, ranks: int, resources: Resources) -> Outcome: ...


def memory_bytes(text: str) -> int:
    """Bytes that a size such as "2GiB", "512MB" or "1073741824" stands for.

    Raises:
        ConfigError: If it is no size, or not above zero.

    Example:
        >>> memory_bytes("2GiB")
        2147483648
    """
    import re

    from tidemill.core.errors import ConfigError

    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"engine.memory: must be a size such as 512MiB or 2GiB, got {text!r}")
    return int(float(match[1]) * units[match[2] or ""])
