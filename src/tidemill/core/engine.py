"""Where data work runs: five verbs over rows, and the launcher that starts ranks.

Everything the platform itself does to data is said in these verbs, so that an engine can be swapped by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

if TYPE_CHECKING:
    import narwhals as nw
    import numpy as np
    import pyarrow as pa

S = TypeVar("S")
Format = Literal["parquet", "csv", "jsonl", "orc", "arrow"]
BatchFn = Callable[["pa.RecordBatch"], "pa.RecordBatch"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where each kind of work runs, and with how much."""

    data: str = "local"
    """Engine for data work: a name or `module:attribute`."""
    train: str = "local"
    """What starts the ranks of a training that has several: local, ray, the name of an installed launcher or `module:attribute`;
    spark is not built in this version."""
    memory: str = "2GiB"
    """Memory that data work may take, such as 512MiB or 8GiB."""
    threads: int = field(default=0, metadata={"min": 0, "max": 1024})
    """Threads for data work and training; 0 takes every core."""

    def check(self) -> None:
        from tidemill.core.errors import NotFound, Unsupported
        from tidemill.core.load import names

        memory_bytes(self.memory)
        if self.data in ("spark", "ray"):
            raise Unsupported(f"engine.data: {self.data!r} is not built in this version", hint='"local" is')
        if self.train == "spark":
            raise Unsupported(f"engine.train: {self.train!r} is not built in this version", hint='"local" and "ray" are')
        if ":" not in self.train and self.train not in names("launcher"):
            raise NotFound("engine.train: launcher", self.train, names("launcher"))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table to read: a file, a glob or a Hive folder, the format told by the suffix; or the rows of a database's query."""

    path: str = ""
    """File, glob or folder, also in an object store (`s3://bucket/...`); relative ones are resolved by the caller."""
    format: Format | None = None
    """Overrides what the suffix says."""
    endpoint: str | None = None
    """Object stores: address of the server, where it is not the provider's own."""
    query: str | None = None
    """A SELECT of the database at `url`, instead of a path."""
    url: str | None = None
    """Address of the database; `${NAME}` in it is read from the environment only when it is opened."""
    null: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
    """CSV: texts that stand for null, quoted or not."""
    delimiter: str | None = None
    """CSV: one character between values; a comma, or a tab where the suffix is .tsv."""
    header: bool = True
    """CSV: whether the first line names the columns."""
    names: tuple[str, ...] | None = None
    """CSV: names of the columns, instead of the first line's or where there is none."""
    types: Mapping[str, str] = field(default_factory=dict)
    """CSV and JSON lines: types of columns that must not be guessed, such as `zip = "string"`, one of the six of `Schema`."""

    @property
    def shown(self) -> str:
        """What stands for the source in a message."""
        return self.path if self.query is None else f"query {' '.join(self.query.split())[:60]!r}"


@dataclass(frozen=True, kw_only=True)
class Partitioning:
    """How rows are laid out in parts, one after the other."""

    keys: tuple[str, ...] = ()
    """Columns that decide; none for round_robin."""
    kind: Literal["hash", "range", "round_robin", "sort"] = "hash"
    """hash: part p holds the rows whose `row_hash` of the keys is p modulo `parts`; range: rows ascend by the keys, and rows of equal
    keys are in one part; round_robin: row i goes to part i modulo `parts`; sort: rows ascend by the keys, in one part."""
    parts: int = 1
    """Number of parts, above 0; in `write`, 0 takes as many as the target's file size asks for. For range the most there may be."""

    def __post_init__(self) -> None:
        from tidemill.core.errors import ConfigError

        if self.kind == "round_robin" and self.keys:
            raise ConfigError(f"partitioning: round_robin takes no keys, got {', '.join(self.keys)}")
        if self.kind != "round_robin" and not self.keys:
            raise ConfigError(f"partitioning: {self.kind} must have keys, has none")
        if self.parts < 0 or (self.kind == "sort" and self.parts != 1):
            raise ConfigError(f"partitioning: parts must be at least 0, and 1 to sort, got {self.parts}")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A folder of Parquet files to write, all of it or nothing."""

    path: Path
    rows_per_group: int = 131_072
    """Rows of a row group, fewer where they take 64 MiB; has no effect with `file_bytes`."""
    partition: Partitioning | None = None
    """Which rows share a file; in the order in which they come where None. No file holds rows of two parts."""
    file_bytes: int | None = None
    """Size that a file should have on the disk; a part that is larger has several files. Row groups then hold 64 MiB before they are
    packed, or the whole file where it is smaller."""
    codec: Literal["zstd", "snappy"] = "zstd"
    """How pages are packed: zstd is smaller, snappy is read by anything."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write` left: file names relative to the target, and rows in all."""

    files: tuple[str, ...]
    rows: int


class Mergeable(Protocol[S]):
    """An aggregation that can be computed in pieces.

    `merge` is associative; the engine merges in row-group order, so that floating sums come out the same every time.
    `update` may change and return the state it is given; `merge` may change and return its first argument.
    States are plain data (picklable), since they travel between processes.

    It may have `columns`, the names of those that it looks at: an engine may then leave out the others, and hand over text as
    Arrow dictionaries.
    """

    def init(self) -> S: ...
    def update(self, state: S, batch: pa.RecordBatch) -> S: ...
    def merge(self, left: S, right: S) -> S: ...


class Rows(Protocol):
    """A lazy table, owned by the engine that made it; may be scanned more than once, but not after the engine's `close`.

    `batches` yields batches of exactly `batch_rows` rows, the last one excepted, in row-group order, however many threads work.
    """

    @property
    def schema(self) -> pa.Schema: ...
    def batches(self, batch_rows: int = 65_536) -> Iterator[pa.RecordBatch]: ...


class DataEngine(Protocol):
    """Five verbs. Safe to use from one thread; lazy except `reduce` and `write`.

    Made by calling its class with an `EngineConfig` and `scratch`, the folder under which it may spill. What it spilled goes
    with `close`. `frame` and `rows` lead to a user's Narwhals `prepare` and back; they are not verbs of the platform's own work.

    `scan` and `map_batches` keep the order of rows; `fn` is pure, row by row, and may be called from several threads at once, as
    may an aggregation's `update`, each time with a state of its own. `exchange` by sort is ascending, strings by their UTF-8
    bytes, NaN after every number, nulls last, rows of equal keys by their other columns; range gives the same order. By hash and in
    turn, the parts come one after the other, each in the order in which its rows came.
    """

    def scan(self, source: Source, columns: Sequence[str] | None) -> Rows: ...
    def map_batches(self, rows: Rows, fn: BatchFn, schema: pa.Schema) -> Rows: ...
    def exchange(self, rows: Rows, by: Partitioning) -> Rows: ...
    def reduce(self, rows: Rows, agg: Mergeable[S]) -> S: ...
    def write(self, rows: Rows, target: Target) -> Written: ...
    def frame(self, rows: Rows) -> nw.LazyFrame[Any]: ...
    def rows(self, frame: Any) -> Rows: ...
    def close(self) -> None: ...


@contextmanager
def open_engine(config: EngineConfig, *, scratch: Path | None = None) -> Iterator[DataEngine]:
    """The data engine that `config.data` names, closed at the end.

    Args:
        scratch: Folder under which it may spill; the system's temporary folder when absent.
    """
    from tidemill.core.load import load

    made = load("engine", config.data)
    engine = cast(DataEngine, made(config, scratch=scratch) if isinstance(made, type) else made)
    try:
        yield engine
    finally:
        engine.close()


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


def row_hash(batch: pa.RecordBatch, columns: Sequence[str], *, salt: str = "") -> np.ndarray:
    """Low 64 bits of the MD5 of each row's canonical text, uint64 of shape (rows,): the same on every engine.

    The canonical text of a value: a string itself; an integer in decimal; a boolean `true` or `false`; a timestamp its
    microseconds since 1970 UTC; a float its 64 IEEE 754 bits as a signed integer, -0.0 as 0.0; null and NaN the noncharacter
    U+FFFF. The salt, if any, and the values are joined by U+001F. So one text column without salt hashes as its text: the low
    64 bits are the last 16 of the MD5's 32 hexadecimal digits.

    Example:
        >>> import pyarrow as pa
        >>> hex(row_hash(pa.record_batch({"key": ["abc"]}), ["key"])[0])
        '0xd6963f7d28e17f72'
    """
    import hashlib

    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    digests = []
    for start in range(0, batch.num_rows, 8_192):  # the texts of more rows would take more memory than the rows
        rows = batch.slice(start, 8_192)
        parts = [_canonical_text(rows.column(rows.schema.get_field_index(name))) for name in columns]
        if salt:
            parts.insert(0, pa.scalar(salt))
        text = parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "\x1f")
        digests += [hashlib.md5(value, usedforsecurity=False).digest() for value in text.cast(pa.binary()).to_pylist()]
    return np.frombuffer(b"".join(digests), dtype=">u8")[1::2].astype(np.uint64)


def _canonical_text(column: pa.Array) -> pa.Array:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = column.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False) + 0.0
        column = pa.array(numbers.view(np.int64), mask=np.isnan(numbers))
    return pc.fill_null(column.cast(pa.string()), "\uffff")
