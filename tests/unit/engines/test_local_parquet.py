"""Aggregations that name their columns are handed row groups; they come to what the others come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tidemill.core.engine import EngineConfig, Source, open_engine
from tidemill.core.errors import DataError
from tidemill.engines.local import parquet


class Seen:
    """Texts by how often they occur, the sum of numbers, and what the batches looked like."""

    def init(self) -> dict[str, Any]:
        return {"counts": {}, "sum": 0.0, "rows": 0, "types": set()}

    def update(self, state: dict[str, Any], batch: pa.RecordBatch) -> dict[str, Any]:
        texts = batch.column("text")
        state["types"].add((str(texts.type), tuple(batch.schema.names)))
        texts = texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts
        for pair in pc.value_counts(texts).to_pylist():
            state["counts"][pair["values"]] = state["counts"].get(pair["values"], 0) + pair["counts"]
        state["sum"] += pc.sum(batch.column("number")).as_py() or 0
        state["rows"] += batch.num_rows
        return state

    def merge(self, left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
        for text, count in right["counts"].items():
            left["counts"][text] = left["counts"].get(text, 0) + count
        return {**left, "sum": left["sum"] + right["sum"], "rows": left["rows"] + right["rows"], "types": left["types"] | right["types"]}


class SeenInColumns(Seen):
    columns = ("text", "number")


def table(rows: int, first: int = 0) -> pa.Table:
    numbers = range(first, first + rows)
    texts = [None if i % 11 == 0 else f"text {i % 7}" for i in numbers]
    return pa.table({"other": list(numbers), "text": texts, "number": [i % 5 for i in numbers]})


def reduced(folder: Path, aggregate: Seen, threads: int = 2) -> dict[str, Any]:
    with open_engine(EngineConfig(memory="512MiB", threads=threads), scratch=folder.parent / "scratch") as engine:
        return engine.reduce(engine.scan(Source(path=str(folder)), None), aggregate)


@pytest.mark.parametrize("threads", [1, 3])
def test_row_groups_come_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    pq.write_table(table(5_000), folder / "a.parquet", row_group_size=1_700)
    pq.write_table(table(3_000, 5_000), folder / "b.parquet", row_group_size=10_000)
    pq.write_table(table(2).slice(0, 0), folder / "c.parquet")
    monkeypatch.setattr(parquet, "PIECE_ROWS", 1_024)
    plain, quick = reduced(folder, Seen(), threads), reduced(folder, SeenInColumns(), threads)
    assert quick["types"] == {("dictionary<values=string, indices=int32, ordered=0>", ("text", "number"))}
    assert plain["types"] == {("string", ("other", "text", "number"))}
    for name in ("counts", "sum", "rows"):
        assert quick[name] == plain[name], name


def test_folders_that_are_columns_are_left_to_duckdb(tmp_path: Path) -> None:
    for day in ("1", "2"):
        (tmp_path / "rows" / f"day={day}").mkdir(parents=True)
        pq.write_table(table(100), tmp_path / "rows" / f"day={day}" / "a.parquet")
    assert reduced(tmp_path / "rows", SeenInColumns())["types"] == {("string", ("other", "text", "number", "day"))}


def test_a_broken_page_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    pq.write_table(table(50_000).drop(["other"]), folder / "a.parquet")
    content = bytearray((folder / "a.parquet").read_bytes())
    content[200:4_000] = b"\xff" * 3_800
    (folder / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet must be a whole Parquet file"):
        reduced(folder, SeenInColumns())
