"""What an import starts from and what it makes: the sample that came with a model, and the graphs that answer for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.engine import EngineConfig, Source, open_engine
from tidemill.core.errors import DataError, NotFound
from tidemill.core.events import Events
from tidemill.core.graph import narrow
from tidemill.core.load import need
from tidemill.core.schema import Column, Schema, column_type
from tidemill.packaging.merge import is_label
from tidemill.packaging.parity import Native

if TYPE_CHECKING:
    import pyarrow as pa

MAX_CLASSES = 1_000


@dataclass(frozen=True, kw_only=True)
class Given:
    """The sample that came with a model, narrowed to the six types, and what was said about it."""

    table: pa.Table
    target: str | None
    task: str | None
    keys: tuple[str, ...]
    trust_pickle: bool
    events: Events

    @property
    def features(self) -> Schema:
        """Columns that may go into the model: all but the target and the keys."""
        return Schema.from_arrow(self.table.schema).drop([*self.keys, *([self.target] if self.target else [])])

    def columns(self, names: Sequence[str], what: str) -> list[Column]:
        """The sample's columns of these names.

        Raises:
            DataError: If some are missing; names them all.
        """
        known = self.features
        missing = [name for name in names if name not in known]
        if missing:
            shown = ", ".join(repr(name) for name in missing[:10]) + (", ..." if len(missing) > 10 else "")
            raise DataError(
                f"the data must hold the columns of {what}: {shown} missing", field=missing[0], hint=f"it has {', '.join(known.names)}"
            )
        return [known[name] for name in names]

    def numbers(self, count: int | None, what: str) -> list[Column]:
        """The sample's numeric and boolean columns in their order, `count` of them.

        Raises:
            DataError: If there are more or fewer.
        """
        found = [column for column in self.features if column.is_number or column.type == "boolean"]
        if count is not None and len(found) != count:
            names = ", ".join(column.name for column in found) or "none"
            raise DataError(
                f"{what} takes {count} numbers and names none of them; the data has {len(found)} numeric columns: {names}",
                hint="give exactly those columns, in the model's order; --target and --key leave columns out",
            )
        return found

    def labels(self) -> list[Any] | None:
        """The target's distinct values in order, as labels; None where there is no target or its values are no labels."""
        if self.target is None:
            return None
        values = self.table[self.target].unique().drop_null().to_pylist()
        if all(isinstance(value, float) and value.is_integer() for value in values):
            values = [int(value) for value in values]
        if not values or len(values) > MAX_CLASSES or not all(is_label(value) for value in values):
            return None
        return sorted(values)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A model as graphs, with the path of its own library beside them."""

    model: str
    """What it is, for people."""
    task: str
    schema: Schema
    """Raw columns."""
    outputs: list[dict[str, Any]]
    graphs: Mapping[str, bytes]
    """Graphs by file name."""
    graph: str
    """The one that answers."""
    native: Native
    classes: list[Any] | None = None
    kind: str = "row"
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    preprocess: str | None = None
    preprocess_config: Mapping[str, Any] | None = None
    limits: tuple[str, ...] = ()


def read_sample(data: Any, *, binary: bool = False) -> pa.Table:
    """The sample as a table of the six types; columns of other types are left out.

    Args:
        data: A Parquet or CSV file, or a frame of pandas, Polars or Arrow.
        binary: Whether to keep columns of bytes, which are of no type of the six.

    Raises:
        DataError: If it cannot be read, or holds no rows.
    """
    import pyarrow as pa

    if isinstance(data, (str, Path)):
        with open_engine(EngineConfig()) as engine:
            rows = engine.scan(Source(path=str(data)), None)
            table = pa.Table.from_batches(list(rows.batches()), schema=rows.schema)
    elif isinstance(data, pa.Table):
        table = data
    else:
        narwhals = need("narwhals", "reading a frame")
        try:
            table = narwhals.from_native(data, eager_only=True).to_arrow()
        except TypeError:
            raise DataError(f"data must be a Parquet or CSV file, or a pandas, Polars or Arrow frame, got {type(data).__name__}") from None
    if not table.num_rows:
        raise DataError("the data must hold rows, holds none" + (f" ({data})" if isinstance(data, (str, Path)) else ""))
    columns = {}
    for given in table.schema:
        if binary and (pa.types.is_binary(given.type) or pa.types.is_large_binary(given.type)):
            columns[given.name] = table[given.name]
            continue
        try:
            column = Column(name=given.name, type=column_type(given))
        except DataError:
            continue
        array = narrow(table[given.name].combine_chunks(), column)
        columns[given.name] = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    if not columns:
        raise DataError("the data must hold a column of numbers, text, times or booleans, holds none")
    return pa.table(columns)


def known_truth(given: Given) -> Given:
    """The same without the rows whose target is null.

    Raises:
        NotFound: If the target or a key is no column.
        DataError: If every target is null.
    """
    import dataclasses

    names = given.table.schema.names
    for name in [*given.keys, *([given.target] if given.target else [])]:
        if name not in names:
            raise NotFound("column", name, names)
    if given.target is None or not given.table[given.target].null_count:
        return given
    table = given.table.filter(given.table[given.target].is_valid())
    if not table.num_rows:
        raise DataError(f"target {given.target!r} must have values, is null in every row", field=given.target)
    given.events.warn("import.null_targets", f"{given.table.num_rows - table.num_rows} rows without a target are left out")
    return dataclasses.replace(given, table=table)


def to_numpy(batch: pa.RecordBatch, columns: Sequence[Column], kind: Any) -> np.ndarray:
    """Raw columns side by side, [N, F] of one NumPy type; a null number or boolean is NaN, a null string None."""
    import pyarrow as pa

    made = []
    for column in columns:
        array = batch[column.name]
        if column.type == "string":
            made.append(array.to_numpy(zero_copy_only=False).astype(object))
        elif column.type == "timestamp":
            made.append(array.cast(pa.int64()).to_numpy(zero_copy_only=False))
        elif np.dtype(kind).kind == "f" and array.null_count:
            made.append(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        else:
            made.append(array.to_numpy(zero_copy_only=False))
    return np.stack([values.astype(kind) for values in made], axis=1)
