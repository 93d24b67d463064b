"""What every data engine must do: subclass `DataEngineSuite` in a test module and let pytest collect it.

Example:
    ```python
    from tidemill.testing.engine import DataEngineSuite
    from my_company.engine import MyEngine

    class TestMyEngine(DataEngineSuite):
        engine_type = MyEngine
    ```
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import narwhals as nw
import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.feather as feather
import pyarrow.orc as orc
import pyarrow.parquet as pq

from tidemill.core.engine import DataEngine, EngineConfig, Format, Partitioning, Rows, Source, Target, row_hash
from tidemill.core.errors import TidemillError

ROWS = 150_000
FORMATS: list[Format] = ["parquet", "csv", "jsonl", "orc", "arrow"]


class SumOfLogs:
    """A mergeable float sum that comes out otherwise when its parts are added in another order."""

    def init(self) -> float:
        return 0.0

    def update(self, state: float, batch: pa.RecordBatch) -> float:
        return state + float(np.log(batch.column("number").to_numpy() + 2.0).sum())

    def merge(self, left: float, right: float) -> float:
        return left + right


class Order:
    """Collects a column in the order in which the parts are merged."""

    def init(self) -> list[int]:
        return []

    def update(self, state: list[int], batch: pa.RecordBatch) -> list[int]:
        return [*state, *batch.column("number").to_pylist()]

    def merge(self, left: list[int], right: list[int]) -> list[int]:
        return left + right


class DataEngineSuite:
    """The contract of `core.engine.DataEngine`, one test a promise."""

    engine_type: ClassVar[Any]
    """The engine's class, called with an `EngineConfig` and `scratch`."""

    @contextmanager
    def opened(self, scratch: Path, **config: Any) -> Iterator[DataEngine]:
        engine = self.engine_type(EngineConfig(**{"threads": 2, "memory": "512MiB", **config}), scratch=scratch)
        try:
            yield engine
        finally:
            engine.close()

    def test_scan_keeps_the_order_of_rows_and_files(self, tmp_path: Path) -> None:
        source = numbers(tmp_path)
        with self.opened(tmp_path) as engine:
            assert column(engine.scan(source, None), "number") == list(range(ROWS))

    def test_scan_gives_only_the_columns_asked_for_in_their_order(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            rows = engine.scan(numbers(tmp_path), ["text", "number"])
            assert rows.schema.names == ["text", "number"]
            assert next(rows.batches()).schema.names == ["text", "number"]

    def test_a_missing_column_is_named(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            message = error_of(lambda: engine.scan(numbers(tmp_path), ["numbr"]))
            assert "numbr" in message
            assert "number" in message.replace("numbr", "")

    def test_batches_have_the_size_asked_for_except_the_last(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            rows = engine.scan(numbers(tmp_path), None)
            for size in (1_000, 65_536):
                sizes = [batch.num_rows for batch in rows.batches(size)]
                assert sizes == [size] * (ROWS // size) + [ROWS % size] * (ROWS % size > 0)

    def test_rows_may_be_scanned_again_and_side_by_side(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            rows = engine.scan(numbers(tmp_path), ["number"])
            first, second = rows.batches(1_000), rows.batches(1_000)
            assert next(first).equals(next(second))
            assert next(first).equals(next(second))
            first.close()  # type: ignore[attr-defined]
            assert column(rows, "number") == list(range(ROWS))

    def test_every_format_gives_the_same_rows(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            for form in FORMATS:
                source = saved(tmp_path / form, {"part=2": mixed_rows(3_000, 5_000), "part=10": mixed_rows(0, 3_000)}, form)
                rows = engine.scan(source, None)
                expected = pa.concat_tables([mixed_rows(0, 5_000)]).append_column("part", pa.array([10] * 3_000 + [2] * 2_000))
                assert plain_types(rows.schema) == plain_types(expected.schema), form
                assert pa.Table.from_batches(list(rows.batches())).to_pydict() == expected.to_pydict(), form

    def test_every_format_gives_only_the_columns_asked_for(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            for form in FORMATS:
                source = saved(tmp_path / form, {".": mixed_rows(0, 100)}, form)
                rows = engine.scan(source, ["word", "whole"])
                assert rows.schema.names == ["word", "whole"], form
                assert pa.Table.from_batches(list(rows.batches())).to_pydict() == mixed_rows(0, 100).select(["word", "whole"]).to_pydict()

    def test_a_torn_file_of_any_format_is_named(self, tmp_path: Path) -> None:
        for form in FORMATS:
            source = saved(tmp_path / form, {".": mixed_rows(0, 5_000)}, form)
            file = next(Path(source.path).iterdir())
            whole = file.read_bytes()
            half = whole[: len(whole) // 2]
            file.write_bytes(half.rpartition(b",")[0] if form == "csv" else half)  # of a CSV, a row of fewer values can be told
            with self.opened(tmp_path / "scratch") as engine:
                message = error_of(lambda engine=engine, source=source: list(engine.scan(source, None).batches()))
                assert file.name in message, form

    def test_files_of_other_columns_are_refused_in_any_format(self, tmp_path: Path) -> None:
        for form in FORMATS:
            if form == "jsonl":  # its lines may lack keys: there such a file has nulls
                continue
            source = saved(tmp_path / form, {"a": mixed_rows(0, 10), "b": mixed_rows(0, 10).drop_columns(["word"])}, form)
            with self.opened(tmp_path / "scratch") as engine:
                assert "same columns" in error_of(lambda engine=engine, source=source: engine.scan(source, None)), form

    def test_a_file_under_another_formats_name_is_refused(self, tmp_path: Path) -> None:
        rows = mixed_rows(0, 100)
        for form, other in zip(FORMATS, [*FORMATS[1:], FORMATS[0]], strict=True):
            source = saved(tmp_path / form, {".": rows}, form)
            with self.opened(tmp_path / "scratch") as engine:
                as_other = Source(path=source.path, format=other)
                error_of(lambda engine=engine, as_other=as_other: list(engine.scan(as_other, None).batches()))

    def test_map_batches_keeps_order_and_may_drop_rows(self, tmp_path: Path) -> None:
        schema = pa.schema([pa.field("number", pa.int64())])

        def odd(batch: pa.RecordBatch) -> pa.RecordBatch:
            numbers = batch.column("number").to_numpy()
            return pa.record_batch([pa.array(numbers[numbers % 2 == 1])], schema=schema)

        with self.opened(tmp_path) as engine:
            rows = engine.map_batches(engine.scan(numbers(tmp_path), None), odd, schema)
            assert rows.schema == schema
            assert column(rows, "number") == list(range(1, ROWS, 2))
            assert [batch.num_rows for batch in rows.batches(10_000)] == [10_000] * 7 + [5_000]

    def test_an_error_in_a_batch_function_arrives_as_it_is(self, tmp_path: Path) -> None:
        def broken(batch: pa.RecordBatch) -> pa.RecordBatch:
            raise ZeroDivisionError(f"mine {batch.num_rows > 0}")

        with self.opened(tmp_path) as engine:
            rows = engine.map_batches(engine.scan(numbers(tmp_path), None), broken, pa.schema([]))
            said = ""
            try:
                list(rows.batches())
            except ZeroDivisionError as error:
                said = str(error)
            assert said == "mine True"

    def test_sort_puts_nulls_last_and_nan_before_them(self, tmp_path: Path) -> None:
        values = pa.array([2.0, None, math.nan, -math.inf, 1.0, math.inf])
        with self.opened(tmp_path) as engine:
            rows = engine.exchange(table(engine, tmp_path, {"x": values}), Partitioning(keys=("x",), kind="sort"))
            assert [str(value) for value in column(rows, "x")] == ["-inf", "1.0", "2.0", "inf", "nan", "None"]

    def test_sort_orders_text_by_its_bytes(self, tmp_path: Path) -> None:
        texts = ["b", "B", "ä", "a", "", "中", "\U0001f600", "\uffff", None]
        with self.opened(tmp_path) as engine:
            rows = engine.exchange(table(engine, tmp_path, {"x": texts}), Partitioning(keys=("x",), kind="sort"))
            assert column(rows, "x") == [*sorted((t for t in texts if t is not None), key=str.encode), None]

    def test_sort_by_several_keys_of_every_type(self, tmp_path: Path) -> None:
        at = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
        columns = {"b": [True, False, True, False], "t": [at, at, at - dt.timedelta(1), at], "n": [1, 3, 2, -(2**63)]}
        with self.opened(tmp_path) as engine:
            rows = engine.exchange(table(engine, tmp_path, columns), Partitioning(keys=("b", "t", "n"), kind="sort"))
            assert column(rows, "n") == [-(2**63), 3, 2, 1]

    def test_hash_exchange_brings_equal_keys_together_in_order_of_parts(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            rows = engine.exchange(engine.scan(numbers(tmp_path), ["text", "number"]), Partitioning(keys=("text",), parts=7))
            parts, found = [], []
            for batch in rows.batches():
                parts += (row_hash(batch, ["text"]) % np.uint64(7)).tolist()
                found += batch.column("number").to_pylist()
            assert parts == sorted(parts)
            assert sorted(found) == list(range(ROWS))

    def test_reduce_merges_in_row_group_order(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            assert engine.reduce(engine.scan(numbers(tmp_path), ["number"]), Order()) == list(range(ROWS))

    def test_reduce_gives_the_same_bits_for_any_number_of_threads(self, tmp_path: Path) -> None:
        source, sums = numbers(tmp_path), set()
        for threads in (1, 2, 4):
            with self.opened(tmp_path, threads=threads) as engine:
                sums |= {engine.reduce(engine.scan(source, None), SumOfLogs()).hex() for _ in range(2)}
        assert len(sums) == 1

    def test_reduce_of_no_rows_is_the_initial_state(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            rows = engine.map_batches(engine.scan(numbers(tmp_path), None), lambda batch: batch.slice(0, 0), numbers_schema())
            assert engine.reduce(rows, SumOfLogs()) == 0.0

    def test_write_reads_back_in_order_with_full_row_groups(self, tmp_path: Path) -> None:
        target = tmp_path / "written"
        with self.opened(tmp_path) as engine:
            written = engine.write(engine.scan(numbers(tmp_path), None), Target(path=target, rows_per_group=40_000))
            assert written.rows == ROWS
            assert all((target / name).is_file() for name in written.files)
            groups = [pq.ParquetFile(target / name) for name in written.files]
            sizes = [file.metadata.row_group(i).num_rows for file in groups for i in range(file.metadata.num_row_groups)]
            assert sizes == [40_000, 40_000, 40_000, 30_000]
            assert column(engine.scan(Source(path=str(target)), ["number"]), "number") == list(range(ROWS))

    def test_write_gives_the_same_bytes_for_any_number_of_threads(self, tmp_path: Path) -> None:
        source, contents = numbers(tmp_path), set()
        for threads in (1, 3):
            with self.opened(tmp_path, threads=threads) as engine:
                by_text = engine.exchange(engine.scan(source, None), Partitioning(keys=("text", "number"), kind="sort"))
                written = engine.write(by_text, Target(path=tmp_path / f"by{threads}"))
                contents.add(b"".join((tmp_path / f"by{threads}" / name).read_bytes() for name in written.files))
        assert len(contents) == 1

    def test_write_by_hash_puts_every_row_into_the_file_of_its_part(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            by = Partitioning(keys=("text",), parts=5)
            written = engine.write(engine.scan(numbers(tmp_path), None), Target(path=tmp_path / "out", partition=by))
            files = [pq.read_table(tmp_path / "out" / name) for name in written.files]
        assert files[0].schema.names == ["number", "text"]
        parts = [set((row_hash(file.combine_chunks().to_batches()[0], ["text"]) % np.uint64(5)).tolist()) for file in files]
        assert parts == [{0}, {1}, {2}, {3}, {4}]
        assert sorted(number for file in files for number in file["number"].to_pylist()) == list(range(ROWS))

    def test_write_in_turn_gives_files_of_one_size(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            by = Partitioning(kind="round_robin", parts=7)
            written = engine.write(engine.scan(numbers(tmp_path), None), Target(path=tmp_path / "out", partition=by))
            files = [pq.read_table(tmp_path / "out" / name)["number"].to_pylist() for name in written.files]
        assert files == [list(range(part, ROWS, 7)) for part in range(7)]

    def test_write_by_range_gives_files_that_follow_each_other(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            by = Partitioning(keys=("text",), kind="range", parts=6)
            written = engine.write(engine.scan(numbers(tmp_path), None), Target(path=tmp_path / "out", partition=by))
            files = [pq.read_table(tmp_path / "out" / name) for name in written.files]
        assert 2 <= len(files) <= 6
        texts = [file["text"].to_pylist() for file in files]
        assert all(last[-1].encode() < first[0].encode() for last, first in pairwise(texts))
        assert [text for part in texts for text in part] == sorted((text for part in texts for text in part), key=str.encode)
        assert sorted(number for file in files for number in file["number"].to_pylist()) == list(range(ROWS))
        assert max(map(len, texts)) < 1.2 * ROWS / 6

    def test_files_come_near_the_size_asked_for(self, tmp_path: Path) -> None:
        size = 100_000
        layouts = [None, *(Partitioning(**by, parts=0) for by in ({"keys": ("text",)}, {"kind": "round_robin"}))]
        layouts.append(Partitioning(keys=("number",), kind="range"))
        noise = np.random.default_rng(0).integers(0, 2**62, ROWS)

        def noisy(batch: pa.RecordBatch) -> pa.RecordBatch:
            return batch.set_column(0, "number", pa.array(noise[batch.column("number").to_numpy()]))

        for layout in layouts:
            contents = set()
            for threads in (1, 3):
                with self.opened(tmp_path / "scratch", threads=threads) as engine:
                    rows = engine.map_batches(engine.scan(numbers(tmp_path), None), noisy, numbers_schema())
                    target = Target(path=tmp_path / "out", partition=layout, file_bytes=size, codec="snappy")
                    written = engine.write(rows, target)
                sizes = [(tmp_path / "out" / name).stat().st_size for name in written.files]
                assert len(sizes) > 5
                assert sum(sizes) / len(sizes) > 0.5 * size
                assert max(sizes) < 1.5 * size
                assert pq.ParquetFile(tmp_path / "out" / written.files[0]).metadata.row_group(0).column(0).compression == "SNAPPY"
                read = pa.concat_tables([pq.read_table(tmp_path / "out" / name) for name in written.files])
                assert sorted(read["number"].to_pylist()) == sorted(noise.tolist())
                contents.add(b"".join((tmp_path / "out" / name).read_bytes() for name in written.files))
            assert len(contents) == 1

    def test_row_groups_of_large_files_hold_64_mebibytes(self, tmp_path: Path) -> None:
        wide = pa.schema([pa.field("number", pa.int64()), *(pa.field(f"x{i}", pa.float64()) for i in range(200))])

        def widened(batch: pa.RecordBatch) -> pa.RecordBatch:
            values = batch.column("number").to_numpy()
            return pa.record_batch([pa.array(values), *(pa.array(values + float(i)) for i in range(200))], schema=wide)

        with self.opened(tmp_path) as engine:
            rows = engine.map_batches(engine.scan(numbers(tmp_path), ["number"]), widened, wide)
            written = engine.write(rows, Target(path=tmp_path / "out", file_bytes=1 << 30))
            small = engine.write(engine.scan(numbers(tmp_path), None), Target(path=tmp_path / "small", file_bytes=1 << 30))
        assert len(written.files) == len(small.files) == 1
        metadata = pq.ParquetFile(tmp_path / "out" / written.files[0]).metadata
        sizes = [metadata.row_group(i).num_rows * 201 * 8 / 2**20 for i in range(metadata.num_row_groups)]
        assert all(64 <= size < 80 for size in sizes[:-1])
        assert pq.ParquetFile(tmp_path / "small" / small.files[0]).metadata.num_row_groups == 1

    def test_no_rows_in_parts_keep_the_columns(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            for by in (Partitioning(keys=("text",), parts=3), Partitioning(keys=("text",), kind="range", parts=3)):
                rows = engine.map_batches(engine.scan(numbers(tmp_path), None), lambda batch: batch.slice(0, 0), numbers_schema())
                assert engine.write(rows, Target(path=tmp_path / "none", partition=by)).rows == 0
                assert engine.scan(Source(path=str(tmp_path / "none")), None).schema.names == numbers_schema().names

    def test_a_failed_write_leaves_what_was_there(self, tmp_path: Path) -> None:
        target = tmp_path / "written"

        def fails_late(batch: pa.RecordBatch) -> pa.RecordBatch:
            if batch.column("number")[0].as_py() > 0:
                raise ZeroDivisionError
            return batch

        with self.opened(tmp_path / "scratch") as engine:
            rows = engine.scan(numbers(tmp_path), None)
            engine.write(rows, Target(path=target))
            before = {path.name: path.read_bytes() for path in target.iterdir()}
            try:
                engine.write(engine.map_batches(rows, fails_late, numbers_schema()), Target(path=target))
            except ZeroDivisionError:
                pass
            else:
                raise AssertionError("the error was lost")
            assert {path.name: path.read_bytes() for path in target.iterdir()} == before
            assert {path.name for path in tmp_path.iterdir()} == {"numbers", "scratch", "written"}

    def test_writing_no_rows_keeps_the_columns(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            rows = engine.map_batches(engine.scan(numbers(tmp_path), None), lambda batch: batch.slice(0, 0), numbers_schema())
            assert engine.write(rows, Target(path=tmp_path / "none")).rows == 0
            empty = engine.scan(Source(path=str(tmp_path / "none")), None)
            assert empty.schema.names == numbers_schema().names
            assert list(empty.batches()) == []

    def test_frames_lead_to_prepare_and_back(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            frame = engine.frame(engine.scan(numbers(tmp_path), None))
            assert isinstance(frame, nw.LazyFrame)
            small = frame.filter(nw.col("number") < 10).with_columns(twice=nw.col("number") * 2).select("twice")
            assert sorted(column(engine.rows(small), "twice")) == list(range(0, 20, 2))

    def test_mapped_rows_have_a_frame_too(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            rows = engine.map_batches(engine.scan(numbers(tmp_path), None), lambda batch: batch, numbers_schema())
            total = engine.rows(engine.frame(rows).select(nw.col("number").max()))
            assert column(total, "number") == [ROWS - 1]

    def test_a_sum_of_integers_stays_an_integer(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            total = engine.rows(engine.frame(engine.scan(numbers(tmp_path), None)).select(nw.col("number").sum()))
            assert pa.types.is_integer(total.schema.field("number").type)
            assert column(total, "number") == [ROWS * (ROWS - 1) // 2]

    def test_a_sort_larger_than_memory_spills_and_is_cleaned_up(self, tmp_path: Path) -> None:
        scratch = tmp_path / "scratch"
        names = [f"x{i}" for i in range(64)]
        wide = pa.schema([pa.field("key", pa.int64()), *(pa.field(name, pa.float64()) for name in names)])

        def widened(batch: pa.RecordBatch) -> pa.RecordBatch:
            keys = batch.column("number").to_numpy() * 7_919 % ROWS
            return pa.record_batch([pa.array(keys), *(pa.array(keys + float(i)) for i in range(64))], schema=wide)

        with self.opened(scratch, memory="96MiB") as engine:  # the rows take 78 MB, sorting them more
            rows = engine.map_batches(engine.scan(numbers(tmp_path), None), widened, wide)
            rows = engine.exchange(rows, Partitioning(keys=("key",), kind="sort"))
            seen = 0
            for batch in rows.batches(10_000):
                keys = batch.column("key").to_numpy()
                assert (keys == np.arange(seen, seen + len(keys))).all()
                assert (batch.column("x63").to_numpy() == keys + 63.0).all()
                seen += len(keys)
            assert seen == ROWS
        assert list(scratch.iterdir()) == []


def numbers_schema() -> pa.Schema:
    return pa.schema([pa.field("number", pa.int64()), pa.field("text", pa.string())])


def numbers(folder: Path) -> Source:
    """A folder of three Parquet files, 0 to 149,999 in order, with small row groups."""
    path = folder / "numbers"
    if not path.exists():
        path.mkdir(parents=True)
        for part, start in enumerate(range(0, ROWS, 50_000)):
            numbers = np.arange(start, start + 50_000)
            texts = [f"key {number % 1_013}" for number in numbers]
            batch = pa.table({"number": numbers, "text": texts}, schema=numbers_schema())
            pq.write_table(batch, path / f"{part}.parquet", row_group_size=10_000)
    return Source(path=str(path))


def mixed_rows(start: int, stop: int) -> pa.Table:
    """Rows of every type, with nulls in each column but the first."""
    places = range(start, stop)
    at = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    columns: dict[str, tuple[pa.DataType, list[Any]]] = {
        "whole": (pa.int64(), [place * 1_000_000_007 for place in places]),
        "broken": (pa.float64(), [place / 8 if place % 7 else None for place in places]),
        "word": (pa.string(), [f"wörd, {place % 13}" if place % 5 else None for place in places]),
        "yes": (pa.bool_(), [place % 2 == 0 if place % 3 else None for place in places]),
        "at": (pa.timestamp("us", tz="UTC"), [at + dt.timedelta(seconds=place) if place % 11 else None for place in places]),
    }
    return pa.table({name: pa.array(values, kind) for name, (kind, values) in columns.items()})


def saved(folder: Path, parts: dict[str, pa.Table], form: Format) -> Source:
    """A folder of one file in each of its folders `parts`."""
    for name, rows in parts.items():
        path = folder / name / f"rows.{form}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "parquet":
            pq.write_table(rows, path)
        elif form == "orc":
            orc.write_table(rows, path)
        elif form == "arrow":
            feather.write_feather(rows, path)
        elif form == "csv":
            pc_csv.write_csv(rows, path)
        else:
            lines = [json.dumps({key: value for key, value in row.items() if value is not None}, default=str) for row in rows.to_pylist()]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Source(path=str(folder))


def plain_types(schema: pa.Schema) -> dict[str, str]:
    """The types, whole numbers of any width and times of any unit and zone as one."""
    kinds = {field.name: str(field.type) for field in schema}
    return {name: "time" if kind.startswith("timestamp") else "int" if "int" in kind else kind for name, kind in kinds.items()}


def table(engine: DataEngine, folder: Path, columns: dict[str, Any]) -> Rows:
    """Rows of a small table."""
    pq.write_table(pa.table(columns), folder / "small.parquet")
    return engine.scan(Source(path=str(folder / "small.parquet")), None)


def column(rows: Rows, name: str) -> list[Any]:
    """One column of all rows."""
    return [value for batch in rows.batches() for value in batch.column(batch.schema.get_field_index(name)).to_pylist()]


def error_of(call: Any) -> str:
    """The message of the Tidemill error that the call raises."""
    try:
        call()
    except TidemillError as error:
        return str(error)
    raise AssertionError("nothing was raised")
