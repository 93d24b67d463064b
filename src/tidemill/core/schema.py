"""What a table looks like: columns of six types, each nullable or not.

Arrow's many types are narrowed to six without changing a value:

| here        | from Arrow                                              | null in the graph            |
|-------------|---------------------------------------------------------|------------------------------|
| `boolean`   | bool                                                    | 2 (uint8)                    |
| `int64`     | every integer that fits                                 | bool input `<name>__valid`   |
| `float32`   | float16, float32                                        | NaN                          |
| `float64`   | float64, decimal                                        | NaN                          |
| `string`    | string, large string, string view, dictionary of those  | the single noncharacter U+FFFF |
| `timestamp` | date32, date64, timestamp in any unit and zone          | int64 minimum (microseconds UTC) |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from tidemill.core.errors import DataError, NotFound

if TYPE_CHECKING:
    import pyarrow as pa

ColumnType = Literal["boolean", "int64", "float32", "float64", "string", "timestamp"]

NULL_STRING = "\uffff"
NULL_BOOLEAN = 2
NULL_TIMESTAMP = -(2**63)
VALID_SUFFIX = "__valid"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    type: ColumnType
    nullable: bool = True

    @property
    def is_number(self) -> bool:
        return self.type in ("int64", "float32", "float64")

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "nullable": self.nullable}


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in order."""

    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __contains__(self, name: object) -> bool:
        return any(column.name == name for column in self.columns)

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise NotFound("column", name, self.names)

    def select(self, names: Iterable[str]) -> Schema:
        return Schema(tuple(self[name] for name in names))

    def drop(self, names: Iterable[str]) -> Schema:
        gone = set(names)
        return Schema(tuple(column for column in self if column.name not in gone))

    def to_json(self) -> list[dict[str, Any]]:
        return [column.to_json() for column in self]

    @classmethod
    def from_json(cls, columns: Sequence[Mapping[str, Any]]) -> Schema:
        known = get_args(ColumnType)
        for column in columns:
            if column["type"] not in known:
                raise NotFound("column type", column["type"], known)
        return cls(tuple(Column(**column) for column in columns))

    @classmethod
    def from_arrow(cls, schema: pa.Schema) -> Schema:
        """The narrowed schema of an Arrow one.

        Raises:
            DataError: If a column's type (list, struct, binary, duration, ...) has no counterpart; names the column.
        """
        return cls(tuple(Column(name=field.name, type=column_type(field), nullable=field.nullable) for field in schema))

    def to_arrow(self) -> pa.Schema:
        import pyarrow as pa

        types = {
            "boolean": pa.bool_(), "int64": pa.int64(), "float32": pa.float32(), "float64": pa.float64(),
            "string": pa.string(), "timestamp": pa.timestamp("us", tz="UTC"),
        }  # fmt: skip
        return pa.schema([pa.field(column.name, types[column.type], nullable=column.nullable) for column in self])


def column_type(field: pa.Field) -> ColumnType:
    """The narrowed type of one Arrow field.

    Raises:
        DataError: If the type has no counterpart.
    """
    import pyarrow.types as t

    kind = field.type.value_type if t.is_dictionary(field.type) else field.type
    if t.is_boolean(kind):
        return "boolean"
    if t.is_integer(kind):
        return "int64"
    if t.is_float16(kind) or t.is_float32(kind):
        return "float32"
    if t.is_float64(kind) or t.is_decimal(kind):
        return "float64"
    if t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind):
        return "string"
    if t.is_date(kind) or t.is_timestamp(kind):
        return "timestamp"
    if t.is_null(kind):
        return "float64"
    raise DataError(
        f"column {field.name!r} must be boolean, integer, float, string, date or timestamp, got {field.type}",
        field=field.name,
        hint="cast or drop it in prepare",
    )
