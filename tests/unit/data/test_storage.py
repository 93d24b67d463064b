"""Types of the files: as narrow as every value allows, and every value comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.schema import Column, Schema
from tidemill.data.storage import Extents, Together, stored_schema

SCHEMA = Schema((Column(name="whole", type="int64"), Column(name="real", type="float64"), Column(name="text", type="string")))


def stored(whole: list[int | None], real: list[float | None], *, pieces: int = 1) -> pa.Schema:
    rows = max(len(whole), len(real))
    table = pa.table(
        {"whole": whole + [None] * (rows - len(whole)), "real": real + [None] * (rows - len(real)), "text": ["a"] * rows},
        schema=SCHEMA.to_arrow(),
    )
    extents = Extents(SCHEMA)
    state = extents.init()
    for batch in table.to_batches(max_chunksize=max(1, rows // pieces)):
        state = extents.merge(state, extents.update(extents.init(), batch))
    return stored_schema(SCHEMA, state)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([], pa.int8()), ([None], pa.int8()), ([127, -128], pa.int8()), ([128], pa.int16()), ([-129], pa.int16()), ([32_768], pa.int32()),
        ([2**31 - 1, -(2**31)], pa.int32()), ([2**31], pa.int64()), ([-(2**63)], pa.int64()),
    ],
)  # fmt: skip
def test_whole_numbers(values: list[Any], kind: pa.DataType) -> None:
    assert stored(values, [1.0]).field("whole").type == kind


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.5, -0.0, float("inf"), float("nan"), None], pa.float32()),
        ([0.1], pa.float64()), ([2.0**24, 2.0**24 + 1], pa.float64()), ([1e300], pa.float64()), ([1e-300], pa.float64()), ([], pa.float32()),
    ],
)  # fmt: skip
def test_floats(values: list[Any], kind: pa.DataType) -> None:
    assert stored([1], values).field("real").type == kind


def test_what_else_there_is_stays() -> None:
    schema = Schema((Column(name="flag", type="boolean"), Column(name="at", type="timestamp"), Column(name="single", type="float32")))
    assert stored_schema(schema, Extents(schema).init()).types == schema.to_arrow().types


@given(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(-200, 200)), max_size=30),
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False), st.floats(width=32, allow_nan=False)), max_size=30),
    st.integers(1, 4),
)
def test_every_value_comes_back(whole: list[int | None], real: list[float | None], pieces: int) -> None:
    kinds = stored(whole, real, pieces=pieces)
    back = pa.array(whole, pa.int64()).cast(kinds.field("whole").type).cast(pa.int64())
    assert back.to_pylist() == whole
    floats = pa.array(real, pa.float64()).cast(kinds.field("real").type, safe=False).cast(pa.float64())
    assert [None if v is None else np.float64(v).tobytes() for v in floats.to_pylist()] == [
        None if v is None else np.float64(v).tobytes() for v in real
    ]


def test_several_aggregations_in_one_pass() -> None:
    together = Together((Extents(SCHEMA), Extents(SCHEMA)))
    batch = pa.record_batch({"whole": [300], "real": [0.1], "text": ["a"]}, schema=SCHEMA.to_arrow())
    one, other = together.merge(together.init(), together.update(together.init(), batch))
    assert one == other
    assert (one[0].high, one[1].single) == (300, False)
