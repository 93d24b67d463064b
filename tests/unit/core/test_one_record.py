"""One record is converted as a batch of one is, whatever it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.core.errors import DataError
from tidemill.core.graph import Arrays, RowSignature, column_inputs
from tidemill.core.schema import Column, Schema

NO_NULLS = "the data that the model was made from has no nulls there, so what it would answer was never measured"
TYPES = ("boolean", "int64", "float32", "float64", "string", "timestamp")
SIGNATURE = RowSignature(
    Schema(tuple(Column(name=f"{kind}_{i}", type=kind, nullable=i != 1) for i in range(3) for kind in TYPES))  # type: ignore[arg-type]
)
GOOD: dict[str, Any] = {
    "boolean": st.booleans(),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32) | st.integers(-(2**70), 2**70),
    "float64": st.floats() | st.integers(-(2**70), 2**70),
    "string": st.text() | st.sampled_from(["", "a\0", "\uffff", "航空", "\ud800", "x" * 65]),
    "timestamp": st.integers(-(2**62), 2**62) | st.datetimes().map(lambda moment: moment.isoformat()),
}
ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=1) | st.just(10**400)
FULL = st.fixed_dictionaries({name: GOOD[name.partition("_")[0]] for name in SIGNATURE.schema.names})
HOLED = st.fixed_dictionaries({name: GOOD[name.partition("_")[0]] | st.none() for name in SIGNATURE.schema.names})
WRONG = st.fixed_dictionaries({name: GOOD[name.partition("_")[0]] | ANY for name in SIGNATURE.schema.names})
BLANK: dict[str, Any] = dict.fromkeys(SIGNATURE.schema.names)


@given(FULL | HOLED | WRONG)
@example({**BLANK, "int64_1": 0, "float32_0": 1e300})
@example({**BLANK, "int64_1": 0, "float64_0": 2**53 + 1})
@example({**BLANK, "int64_1": 0, "timestamp_0": 2**63})
@example({**BLANK, "int64_1": 2**63})
def test_one_record_is_a_batch_of_one(record: dict[str, Any]) -> None:
    one, many = outcome(SIGNATURE.from_record, record), outcome(lambda given: SIGNATURE.from_records([given]), record)
    if isinstance(one, DataError) or isinstance(many, DataError):
        assert isinstance(one, DataError)
        assert isinstance(many, DataError)
        return
    assert one.keys() == many.keys()
    for name, expected in many.items():
        assert one[name].shape == (1, 1)
        if expected.dtype.kind in "OU":
            assert one[name].tolist() == expected.tolist()
        else:
            assert one[name].dtype == expected.dtype, name
            np.testing.assert_array_equal(one[name], expected)


def outcome(convert: Callable[[Any], Arrays], record: Any) -> Arrays | DataError:
    with np.errstate(over="ignore"):
        try:
            return convert(record)
        except DataError as error:
            return error


@pytest.mark.parametrize("record", [{}, {**BLANK, "x": 1, "int64_1": None}, [], 5, None])
def test_what_is_missing_is_named_as_in_a_batch(record: Any) -> None:
    with pytest.raises(DataError) as one:
        SIGNATURE.from_record(record)
    with pytest.raises(DataError) as many:
        SIGNATURE.from_records([record])
    assert (str(one.value), one.value.field) == (str(many.value), many.value.field)


@given(st.lists(FULL | HOLED, min_size=1, max_size=5) | st.lists(FULL | HOLED | WRONG, min_size=1, max_size=3))
def test_columns_converted_together_are_as_each_by_itself(records: list[dict[str, Any]]) -> None:
    together, apart = outcome(SIGNATURE.from_records, records), outcome(column_by_column, records)
    if isinstance(together, DataError) or isinstance(apart, DataError):
        assert str(together) == str(apart)
        return
    assert together.keys() == apart.keys()
    for name, expected in apart.items():
        assert together[name].shape == expected.shape == (len(records), 1)
        assert together[name].flags.c_contiguous
        if expected.dtype.kind in "OU":
            assert together[name].tolist() == expected.tolist()
        else:
            assert together[name].dtype == expected.dtype, name
            np.testing.assert_array_equal(together[name], expected)


def column_by_column(records: list[dict[str, Any]]) -> Arrays:
    inputs: Arrays = {}
    for column in SIGNATURE.schema:
        values = [record[column.name] for record in records]
        if not column.nullable and None in values:
            raise DataError(f"field {column.name!r} must not be null, is in row {values.index(None)}", hint=NO_NULLS)
        column_inputs(column, values, inputs)
    return inputs
