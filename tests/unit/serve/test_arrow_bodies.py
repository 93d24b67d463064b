"""Arrow bodies: streams and files, packed or not, are read whole; none is unpacked or spread beyond the limit."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest

from tidemill.serve import arrow
from tidemill.serve.http import ARROW_FILE, ARROW_STREAM, Refused

MEGABYTE = 10**6


def ipc(table: pa.Table, kind: str, compression: str | None, rows: int | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (pa.ipc.new_file if kind == ARROW_FILE else pa.ipc.new_stream)(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rng = np.random.default_rng(3)
    texts = pa.array(rng.choice(["UA", "DL", "航空"], 5000).tolist())
    return pa.table({"a": rng.normal(size=5000), "b": texts, "c": texts.dictionary_encode(), "d": texts.cast(pa.string_view())})


@pytest.mark.parametrize("kind", [ARROW_STREAM, ARROW_FILE])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("rows", [None, 700])
def test_what_is_written_is_read(table: pa.Table, kind: str, compression: str | None, rows: int | None) -> None:
    assert arrow.read(ipc(table, kind, compression, rows), kind, max_bytes=MEGABYTE).equals(table.combine_chunks())


@pytest.mark.parametrize("kind", [ARROW_STREAM, ARROW_FILE])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("coded", [False, True])
def test_a_bomb_is_refused_before_it_is_unpacked(kind: str, compression: str, coded: bool) -> None:
    bomb = pa.table({"a": pa.array(["0" * 50 * MEGABYTE]).dictionary_encode()} if coded else {"a": np.zeros(50 * MEGABYTE // 8)})
    body = ipc(bomb, kind, compression)
    assert len(body) < MEGABYTE
    before = pa.total_allocated_bytes()
    with pytest.raises(Refused, match="must hold at most 1000000 bytes when they are unpacked, they say 5000") as caught:
        arrow.read(body, kind, max_bytes=MEGABYTE)
    assert caught.value.status == 413
    assert pa.total_allocated_bytes() <= before


@pytest.mark.parametrize("view", [False, True])
def test_a_long_text_of_many_rows_is_counted_in_each(view: bool) -> None:
    rows, text = 100_000, pa.array(["x" * 10_000])
    if view:
        _, places, content = text.cast(pa.string_view()).buffers()
        column = pa.Array.from_buffers(pa.string_view(), rows, [None, pa.py_buffer(bytes(places)[:16] * rows), content])
    else:
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), text)
    body = ipc(pa.table({"a": column}), ARROW_STREAM, None)
    with pytest.raises(Refused, match=r"texts of all rows must be at most 10000000 bytes together, are 1000000000"):
        arrow.read(body, ARROW_STREAM, max_bytes=10 * MEGABYTE)


def test_numbers_by_code_are_taken() -> None:
    coded = pa.array([1.5, 2.5, 1.5]).dictionary_encode()
    read = arrow.read(ipc(pa.table({"a": coded}), ARROW_STREAM, None), ARROW_STREAM, max_bytes=MEGABYTE)
    assert read.column("a").to_pylist() == [1.5, 2.5, 1.5]


@pytest.mark.parametrize("cut", [0, 3, 8, 20, 400, -1, -7, -40])
@pytest.mark.parametrize("kind", [ARROW_STREAM, ARROW_FILE])
def test_what_is_cut_is_refused(table: pa.Table, kind: str, cut: int) -> None:
    body = ipc(table, kind, "zstd")[: cut if cut >= 0 or kind == ARROW_FILE else cut * 10]
    with pytest.raises(Refused, match="the body must be") as caught:
        arrow.read(body, kind, max_bytes=MEGABYTE)
    assert caught.value.status == 400
