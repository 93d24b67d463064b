"""`[data]`: where rows come from, what must hold of them and how they are split."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tidemill.core.engine import Format, Source
from tidemill.core.errors import ConfigError
from tidemill.core.objects import is_address
from tidemill.core.project import build

ONE = "table"


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One table to read: files, or the rows of a database's query."""

    path: str = ""
    """File, glob or Hive folder of Parquet, CSV, JSON lines (.jsonl, .ndjson), ORC or Arrow (.arrow, .feather), plain or packed (.gz,
    .bz2, .zip, .zst, .snappy); relative to the project file, or in an object store (s3://, gs://, az://)."""
    format: Format | None = None
    """Overrides what the suffix says: parquet, csv, jsonl, orc or arrow."""
    endpoint: str | None = None
    """Object stores: address of the server, where it is not the provider's own; AWS_ENDPOINT_URL says the same."""
    query: str | None = None
    """A SELECT of the database at `url`, instead of a path. Needs `tidemill[database]`."""
    url: str | None = None
    """Address of the database: sqlite:///file.db, relative to the project file, or postgresql://user:${PASSWORD}@host/name, where
    ${NAME} is read from the environment. A password as such is refused."""
    null: tuple[str, ...] = Source.null
    """CSV: texts that stand for null."""
    delimiter: str | None = None
    """CSV: one character between values; a comma, or a tab where the suffix is .tsv."""
    header: bool = True
    """CSV: whether the first line names the columns."""
    names: tuple[str, ...] | None = None
    """CSV: names of the columns, instead of the first line's or where there is none."""
    types: dict[str, Literal["boolean", "int64", "float32", "float64", "string", "timestamp"]] = field(default_factory=dict)
    """CSV and JSON lines: types of columns that must not be told from their values, such as `zip = "string"`."""

    def check(self) -> None:
        if (self.query is None) != (self.url is None):
            raise ConfigError("data.source: query and url go together", hint='source = { query = "select ...", url = "sqlite:///x.db" }')
        if self.query is not None:
            self._check_query()
        elif not self.path:
            raise ConfigError("data.source: a path must not be empty")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(f"data.source: delimiter must be one character, got {self.delimiter!r}")
        if self.endpoint is not None and not self.path.startswith("s3://") and not self.path.startswith("gs://"):
            raise ConfigError(f"data.source.endpoint: has an effect on s3:// and gs:// alone, the path is {self.path!r}")

    def _check_query(self) -> None:
        files = [item.name for item in fields(self) if item.name not in ("query", "url") and getattr(self, item.name) != _default(item)]
        if files:
            raise ConfigError(f"data.source.{files[0]}: has no effect on a query", hint="cast and rename in the query")
        url = self.url or ""
        if not re.match(r"sqlite:///.|postgres(ql)?://", url):
            raise ConfigError(
                "data.source.url: must be sqlite:///file.db or postgresql://host/name", hint="see docs/reference/project-file.md"
            )
        secret = re.search(r"://[^:/@]*:([^@]+)@|[?&]password=([^&]+)", url)
        if secret and not re.fullmatch(r"\$\{\w+\}", secret[1] or secret[2]):
            raise ConfigError(
                "data.source.url: must not hold a password, which would be kept with every run",
                hint="write ${PGPASSWORD} in its place, or leave it out and set PGPASSWORD or a ~/.pgpass",
            )

    def resolved(self, folder: Path) -> Source:
        """The source with its path under the project's folder."""
        path, url = self.path, self.url
        if path and not is_address(path):
            path = str((folder / Path(path).expanduser()).absolute())
        if url and url.startswith("sqlite:///"):
            url = f"sqlite:///{(folder / Path(url.removeprefix('sqlite:///')).expanduser()).absolute()}"
        return Source(
            path=path, format=self.format, endpoint=self.endpoint, query=self.query, url=url,
            null=self.null, delimiter=self.delimiter, header=self.header, names=self.names, types=self.types,
        )  # fmt: skip


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if callable(item.default_factory) else item.default


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How rows are divided into train, valid and test.

    Each way orders rows, or groups of rows, by one number, and cuts that order at the fractions: test first, then valid, the rest
    is train. Rows with the same number are never parted, so the sizes are exact up to such ties.
    """

    by: Literal["random", "stratified", "time", "group"] = "random"
    """random: by a seeded hash of `keys`, or of the whole row where there are none; stratified: the same within each class;
    time: the newest rows are test, those before them valid; group: by a seeded hash of `column`, so that a group is never parted."""
    column: str | None = None
    """The column of time or group; of strata for stratified, the target where absent."""
    valid: float = field(default=0.1, metadata={"min": 0.0, "max": 1.0})
    """Share of rows that tuning and early stopping look at, above 0."""
    test: float = field(default=0.1, metadata={"min": 0.0, "max": 1.0})
    """Share of rows that only the gate looks at, above 0."""

    def check(self) -> None:
        if self.by in ("time", "group") and not self.column:
            raise ConfigError(f'data.split: by = "{self.by}" must name its column', hint=f'split = {{ by = "{self.by}", column = "..." }}')
        if self.by == "random" and self.column:
            raise ConfigError(
                f'data.split.column: has no effect with by = "random", got {self.column!r}',
                hint="did you mean by group, time or stratified?",
            )
        if min(self.valid, self.test) <= 0 or self.valid + self.test >= 1:
            raise ConfigError(
                f"data.split: valid and test must be above 0 and leave rows to train on, got valid {self.valid} + test {self.test}"
                f" = {self.valid + self.test:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which rows to work on. A number in its place is the share of a random sample."""

    share: float = field(default=1.0, metadata={"min": 0.0, "max": 1.0})
    """Share of the rows, above 0; with by = "progressive" that of the first fit, below 1."""
    by: Literal["random", "stratified", "progressive"] = "random"
    """random: by a seeded hash of `keys`, or of the whole row where there are none; stratified: the same share within each class;
    progressive: all rows are prepared, and training starts with `share` of them and takes more while that pays."""
    column: str | None = None
    """stratified: the column of strata, the target where absent."""
    gain: float = field(default=0.01, metadata={"min": 0.0, "max": 1.0})
    """progressive: the least improvement of the validation metric, relative to it, that the next, larger sample must bring."""
    growth: float = field(default=2.0, metadata={"min": 1.1, "max": 100.0})
    """progressive: how many times the rows of one fit the next one has."""

    def check(self) -> None:
        if not self.share > 0:
            raise ConfigError(f"data.sample.share: must be above 0 and at most 1, got {self.share}")
        if self.column is not None and self.by != "stratified":
            raise ConfigError(f'data.sample.column: has an effect with by = "stratified" alone, by is "{self.by}"')
        for name in ("gain", "growth"):
            if self.by != "progressive" and getattr(self, name) != getattr(Sampling, name):
                raise ConfigError(f'data.sample.{name}: has an effect with by = "progressive" alone, by is "{self.by}"')
        if self.by == "progressive" and self.share >= 1:
            raise ConfigError(
                f"data.sample.share: must be below 1 to begin with, got {self.share:g}", hint='sample = { by = "progressive", share = 0.1 }'
            )


@dataclass(frozen=True, kw_only=True)
class CheckFields:
    """What must hold of one column, for every value that is not null."""

    min: Any = None
    """Smallest value allowed: a number, or a time as ISO text."""
    max: Any = None
    """Largest value allowed: a number, or a time as ISO text."""
    not_null: bool = False
    """No value may be null."""
    unique: bool = False
    """No value may occur twice."""
    allowed: tuple[Any, ...] | None = None
    """The values allowed; written `in = [...]` in the project file."""
    regex: str | None = None
    """Pattern that each whole text must match (RE2 syntax)."""
    max_null_share: float | None = field(default=None, metadata={"min": 0.0, "max": 1.0})
    """Largest share of nulls, 0..1."""
    severity: Literal["error", "warn"] = "error"
    """error: a breach stops the run; warn: it is reported."""

    def check(self) -> None:
        for bound in (self.min, self.max):
            if isinstance(bound, bool) or not isinstance(bound, (int, float, str, type(None))):
                raise ConfigError(f"data.checks: min and max must be numbers or times as ISO text, got {bound!r}")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ConfigError(f"data.checks: regex must be a pattern, got {self.regex!r}: {error}") from error


class CheckConfig(CheckFields):
    """The checks of one column, with `in` for `allowed`, which Python keeps for itself."""

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], path: str, where: str) -> CheckConfig:
        known = {("allowed" if key == "in" else key): _plain(value) for key, value in tree.items()}
        return cls(**vars(build(CheckFields, known, path=path, where=where)))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where rows come from, what must hold of them and how they are split."""

    source: Any
    """One path, or a table of name = path; a path may be a table { path, format, endpoint, null, delimiter, header, names, types },
    or { query, url } for a database."""
    target: str
    """The column to predict."""
    prepare: Any = None
    """`module:function` beside the project file, or a function: Narwhals lazy frames, matched to its parameters by source name,
    to one lazy frame. Needed where there are several sources."""
    columns: tuple[str, ...] | None = None
    """Columns to keep of the table, after `prepare`; all where absent."""
    keys: tuple[str, ...] = ()
    """Columns that identify a row: copied through to predictions, no features."""
    weight: str | None = None
    """Column of row weights, at least 0, no feature."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """How rows are divided into train, valid and test."""
    checks: dict[str, CheckConfig] = field(default_factory=dict)
    """What must hold of the table, by column."""
    sample: Any = 1.0
    """Share of rows to work on, above 0, chosen by a hash; or a table { share, by, column, gain, growth }: see `Sampling`."""
    leakage: float = field(default=0.98, metadata={"min": 0.5, "max": 1.0})
    """A column that alone predicts the target this well (ROC AUC or R2 on rows not looked at) is reported as a leak."""

    def check(self) -> None:
        self.sources()
        self.split.check()
        sampling = self.sampling()
        if isinstance(self.prepare, str) and not re.fullmatch(r"[\w.]+:\w+", self.prepare):
            raise ConfigError(f'data.prepare: must be "module:function", got {self.prepare!r}')
        if self.prepare is not None and not isinstance(self.prepare, str) and not callable(self.prepare):
            raise ConfigError(f'data.prepare: must be "module:function" or a function, got {self.prepare!r}')
        if self.prepare is None and len(self.sources()) > 1:
            raise ConfigError(
                f"data.prepare: must join the {len(self.sources())} sources into one table", hint='prepare = "module:function"'
            )
        roles = [("target", self.target), *(("keys", key) for key in self.keys), *([("weight", self.weight)] if self.weight else [])]
        for position, (role, name) in enumerate(roles):
            for other, taken in roles[:position]:
                if name == taken:
                    raise ConfigError(f"data.{role}: a column has one role, {name!r} is in {other} too")
        if self.columns is not None:
            others = [name for name in (self.split.column, sampling.column) if name]
            needed = [name for _, name in roles] + others + list(self.checks)
            missing = [name for name in needed if name not in self.columns]
            if missing:
                raise ConfigError(f"data.columns: must list {missing[0]!r}, which the target, keys, weight, split, sample or checks need")

    def sampling(self) -> Sampling:
        """Which rows to work on.

        Raises:
            ConfigError: If the value is neither a share nor a table of `Sampling`'s keys.
        """
        if isinstance(self.sample, bool) or not isinstance(self.sample, (int, float, Mapping, Sampling)):
            raise ConfigError(f"data.sample: must be a share such as 0.1, or a table {{ share, by, ... }}, got {self.sample!r}")
        if isinstance(self.sample, (int, float)):
            if not 0 < self.sample <= 1:
                raise ConfigError(f"data.sample: must be above 0 and at most 1, got {self.sample}")
            return Sampling(share=float(self.sample))
        made: Sampling = build(Sampling, self.sample, path="data.sample")
        return made

    def sources(self) -> dict[str, SourceConfig]:
        """The tables by name; a single unnamed one is called `table`.

        Raises:
            ConfigError: If the value is neither a path nor a table of them.
        """
        source = self.source
        if isinstance(source, (str, Path, SourceConfig)) or (isinstance(source, Mapping) and ("path" in source or "query" in source)):
            return {ONE: _source(source, "data.source")}
        if not isinstance(source, Mapping) or not source:
            raise ConfigError(f"data.source: must be a path or a table of name = path, got {source!r}")
        for name in source:
            if not str(name).isidentifier():
                raise ConfigError(f"data.source.{name}: a source's name must be usable as a parameter of prepare")
        return {str(name): _source(value, f"data.source.{name}") for name, value in source.items()}


def _source(value: Any, path: str) -> SourceConfig:
    if isinstance(value, (str, Path)):
        value = {"path": str(value)}
    made: SourceConfig = build(SourceConfig, value, path=path)
    made.check()
    return made


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, (dt.date, dt.time)) else value
