"""What the local engine reads, what it refuses and how it says so."""

from __future__ import annotations

import bz2
import datetime as dt
import gzip
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import narwhals as nw
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.core.engine import EngineConfig, Partitioning, Source, Target, open_engine
from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.engines.local.engine import LocalEngine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    with LocalEngine(EngineConfig(threads=2, memory="512MiB"), scratch=tmp_path / "scratch") as made:
        yield made


def csv(folder: Path, text: str, name: str = "rows.csv") -> Source:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return Source(path=str(path))


def read(engine: LocalEngine, source: Source, columns: list[str] | None = None) -> dict[str, list[Any]]:
    rows = engine.scan(source, columns)
    return pa.Table.from_batches(list(rows.batches()), schema=rows.schema).to_pydict()


def types(engine: LocalEngine, source: Source) -> dict[str, str]:
    return {field.name: str(field.type) for field in engine.scan(source, None).schema}


class TestCsvTypes:
    def test_each_type_is_told_from_its_values(self, engine: LocalEngine, tmp_path: Path) -> None:
        source = csv(tmp_path, "b,i,f,t,s,n\ntrue,-1,2.5,2013-01-02T03:04:05Z,x,\nFalse,2,1e3,2013-01-03,,NA\n")
        assert types(engine, source) == {
            "b": "bool", "i": "int64", "f": "double", "t": "timestamp[us, tz=UTC]", "s": "string", "n": "string",
        }  # fmt: skip
        assert read(engine, source)["t"] == [dt.datetime(2013, 1, 2, 3, 4, 5, tzinfo=dt.UTC), dt.datetime(2013, 1, 3, tzinfo=dt.UTC)]

    def test_a_late_fraction_is_not_rounded(self, engine: LocalEngine, tmp_path: Path) -> None:
        found = read(engine, csv(tmp_path, "x\n" + "1\n" * 30_000 + "2.5\n"))
        assert found["x"][-1] == 2.5

    def test_a_late_word_makes_text_of_the_column(self, engine: LocalEngine, tmp_path: Path) -> None:
        found = read(engine, csv(tmp_path, "x\n" + "1\n" * 30_000 + "one\n"))
        assert found["x"][-2:] == ["1", "one"]

    @pytest.mark.parametrize(
        "values",
        [["007", "12"], ["99999999999999999999", "1"], ["12", "+012"], ["yes", "no"], ["T", "F"], ["05:15", "06:00"], ["01/02/2013", "2"]],
        ids=["leading zeros", "beyond 64 bits", "signed zeros", "words", "letters", "clock", "day first"],
    )
    def test_what_a_number_would_change_stays_text(self, engine: LocalEngine, tmp_path: Path, values: list[str]) -> None:
        assert read(engine, csv(tmp_path, "x\n" + "\n".join(values) + "\n"))["x"] == values

    def test_integers_beyond_float_precision_keep_every_digit(self, engine: LocalEngine, tmp_path: Path) -> None:
        values = [2**53 + 1, 2**63 - 1, -(2**63)]
        assert read(engine, csv(tmp_path, "x\n" + "\n".join(map(str, values)) + "\n"))["x"] == values

    def test_offsets_are_turned_into_utc(self, engine: LocalEngine, tmp_path: Path) -> None:
        found = read(engine, csv(tmp_path, "t\n2024-01-01T08:00:00+08:00\n"))
        assert found["t"] == [dt.datetime(2024, 1, 1, tzinfo=dt.UTC)]

    def test_declared_types_win(self, engine: LocalEngine, tmp_path: Path) -> None:
        source = csv(tmp_path, "zip,n\n1234,1\n")
        found = read(engine, Source(path=source.path, types={"zip": "string", "n": "float64"}))
        assert found == {"zip": ["1234"], "n": [1.0]}

    def test_a_value_that_breaks_its_declared_type_is_shown(self, engine: LocalEngine, tmp_path: Path) -> None:
        source = csv(tmp_path, "n\n1\n2.5\n")
        with pytest.raises(DataError, match=r"column 'n' .* must be int64 as declared, got '2.5'"):
            engine.scan(Source(path=source.path, types={"n": "int64"}))

    def test_a_declared_type_of_no_column_is_refused(self, engine: LocalEngine, tmp_path: Path) -> None:
        source = csv(tmp_path, "number\n1\n")
        with pytest.raises(ConfigError, match="did you mean 'number'"):
            engine.scan(Source(path=source.path, types={"numbr": "int64"}))

    def test_null_markers_are_the_callers(self, engine: LocalEngine, tmp_path: Path) -> None:
        source = csv(tmp_path, "x,y\n?,NA\n1,NA\n")
        assert read(engine, Source(path=source.path, null=("?",))) == {"x": [None, 1], "y": ["NA", "NA"]}


class TestCsvForms:
    def test_quotes_newlines_and_unicode(self, engine: LocalEngine, tmp_path: Path) -> None:
        assert read(engine, csv(tmp_path, '\ufeffa,b\n"x, ""y""","line\nbreak"\n中文,\U0001f600\n')) == {
            "a": ['x, "y"', "中文"],
            "b": ["line\nbreak", "\U0001f600"],
        }

    @pytest.mark.parametrize("packed", ["rows.csv.gz", "rows.csv.bz2", "rows.csv.zip", "rows.zip"])
    def test_packed_files(self, engine: LocalEngine, tmp_path: Path, packed: str) -> None:
        text, path = b"a,b\n1,x\n2,y\n", tmp_path / packed
        if packed.endswith("zip"):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("rows.csv", text)
                archive.writestr("__MACOSX/rows.csv", b"junk")
        else:
            path.write_bytes(gzip.compress(text) if packed.endswith("gz") else bz2.compress(text))
        assert read(engine, Source(path=str(path))) == {"a": [1, 2], "b": ["x", "y"]}

    def test_without_header_and_with_names(self, engine: LocalEngine, tmp_path: Path) -> None:
        source = csv(tmp_path, "1;x\n2;y\n")
        assert read(engine, Source(path=source.path, header=False, delimiter=";")) == {"column0": [1, 2], "column1": ["x", "y"]}
        assert read(engine, Source(path=source.path, header=False, delimiter=";", names=("n", "t"))) == {"n": [1, 2], "t": ["x", "y"]}

    def test_tabs_by_suffix(self, engine: LocalEngine, tmp_path: Path) -> None:
        assert read(engine, csv(tmp_path, "a\tb\n1\tx,y\n", "rows.tsv")) == {"a": [1], "b": ["x,y"]}

    def test_a_glob_in_order_with_one_type_for_all(self, engine: LocalEngine, tmp_path: Path) -> None:
        csv(tmp_path, "x\n1\n", "part2.csv")
        csv(tmp_path, "x\n0.5\n", "part1.csv")
        assert read(engine, Source(path=str(tmp_path / "part*.csv"))) == {"x": [0.5, 1.0]}

    def test_a_hive_folder_gives_its_keys_as_columns(self, engine: LocalEngine, tmp_path: Path) -> None:
        for year in (2024, 2023):
            csv(tmp_path, f"x\n{year - 2020}\n", f"table/year={year}/rows.csv")
        assert read(engine, Source(path=str(tmp_path / "table"))) == {"x": [3, 4], "year": [2023, 2024]}


class TestParquet:
    def test_file_glob_and_hive_folder(self, engine: LocalEngine, tmp_path: Path) -> None:
        for day in (2, 1):
            folder = tmp_path / "table" / f"day={day}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"x": [day * 10, day * 10 + 1]}), folder / "rows.parquet")
        (tmp_path / "table" / "_SUCCESS").write_text("")
        expected = {"x": [10, 11, 20, 21], "day": [1, 1, 2, 2]}
        assert read(engine, Source(path=str(tmp_path / "table"))) == expected
        assert read(engine, Source(path=str(tmp_path / "table" / "**" / "*.parquet"))) == expected
        assert read(engine, Source(path=str(tmp_path / "table" / "day=1" / "rows.parquet"))) == {"x": [10, 11]}

    def test_projection_reaches_the_reader(self, engine: LocalEngine, tmp_path: Path) -> None:
        pq.write_table(pa.table({"used": [1], "filtered": [2], "untouched": [3]}), tmp_path / "wide.parquet")
        rows = engine.scan(Source(path=str(tmp_path / "wide.parquet")), None)
        plan = engine.frame(rows).filter(nw.col("filtered") > 1).select("used").to_native().explain()
        assert "READ_PARQUET" in plan
        assert "used" in plan
        assert "untouched" not in plan
        assert "untouched" not in engine.frame(engine.scan(Source(path=str(tmp_path / "wide.parquet")), ["used"])).to_native().explain()

    def test_folders_that_are_not_needed_are_not_read(self, engine: LocalEngine, tmp_path: Path) -> None:
        for day in (1, 2, 3):
            (tmp_path / "table" / f"day={day}").mkdir(parents=True)
            pq.write_table(pa.table({"x": [day]}), tmp_path / "table" / f"day={day}" / "rows.parquet")
        rows = engine.scan(Source(path=str(tmp_path / "table")), None)
        query = engine.frame(rows).filter(nw.col("day") == 2).select("x").to_native()
        assert "1/3" in query.explain()  # files
        assert query.fetchall() == [(2,)]

    def test_csv_projection_reaches_the_reader(self, engine: LocalEngine, tmp_path: Path) -> None:
        rows = engine.scan(csv(tmp_path, "used,untouched\n1,2\n"), None)
        plan = engine.frame(rows).select("used").to_native().explain()
        assert "READ_CSV" in plan
        assert "untouched" not in plan

    def test_files_of_different_columns_are_refused(self, engine: LocalEngine, tmp_path: Path) -> None:
        pq.write_table(pa.table({"x": [1]}), tmp_path / "1.parquet")
        pq.write_table(pa.table({"x": ["1"]}), tmp_path / "2.parquet")
        with pytest.raises(DataError, match=r"must have the same columns, .*2\.parquet and .*1\.parquet differ: x"):
            engine.scan(Source(path=str(tmp_path / "*.parquet")))

    def test_names_that_differ_by_case_only_are_refused(self, engine: LocalEngine, tmp_path: Path) -> None:
        pq.write_table(pa.table([[1], [2]], names=["a", "A"]), tmp_path / "1.parquet")
        with pytest.raises(DataError, match="differ by more than case, got 'a' and 'A'"):
            engine.scan(Source(path=str(tmp_path / "1.parquet")))


BAD = {
    "ragged, too many": ("rows.csv", "a,b\n1,2\n3,4,5\n", "every line must have 2 values, line 3 has 3"),
    "ragged, too few": ("rows.csv", "a,b,c\n1,2,3\n4,5\n", "every line must have 3 values, line 3 has 2"),
    "ragged, late": ("rows.csv", "a,b\n" + "1,2\n" * 50_000 + "3\n", "every line must have 2 values, line 50002 has 1"),
    "open quote": ("rows.csv", 'a,b\n1,"x\n2,y\n', "a quote must be closed, line 2"),
    "other delimiter": ("rows.csv", "a;b\n1;2\n", "must have values between ','"),
    "empty": ("rows.csv", "", r"must hold data, .*rows\.csv is empty"),
    "blank": ("rows.csv", "\n\n", "its first line is empty"),
    "one name twice": ("rows.csv", "a,b,a\n1,2,3\n", "got 'a' twice"),
    "wrong suffix": ("rows.xlsx", "a,b\n1,2\n", r"must be one of \.parquet, \.pq, \.csv, \.tsv, .*\.orc.* got rows\.xlsx"),
    "text as Parquet": ("rows.parquet", "a,b\n1,2\n", "must be a whole Parquet file"),
    "text as zip": ("rows.csv.zip", "a,b\n1,2\n", "must be a zip archive"),
    "text as gzip": ("rows.csv.gz", "a,b\n1,2\n", "must be readable CSV"),
}


@pytest.mark.parametrize(("name", "text", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named_with_what_is_wrong(engine: LocalEngine, tmp_path: Path, name: str, text: str, message: str) -> None:
    source = csv(tmp_path, text, name)
    with pytest.raises(DataError, match=message) as caught:
        engine.scan(source)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_the_nearest(engine: LocalEngine, tmp_path: Path) -> None:
    csv(tmp_path, "a\n1\n", "flights.csv")
    with pytest.raises(DataError, match=r"source must exist, got nothing at .*flight\.csv; did you mean .*flights\.csv"):
        engine.scan(Source(path=str(tmp_path / "flight.csv")))


def test_a_truncated_parquet_file_is_named(engine: LocalEngine, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": list(range(1_000))}), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"rows\.parquet must be a whole Parquet file, it is truncated"):
        engine.scan(Source(path=str(path)))


def test_a_parquet_file_without_columns_is_refused(engine: LocalEngine, tmp_path: Path) -> None:
    pq.write_table(pa.table({}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="must have columns, has none"):
        engine.scan(Source(path=str(tmp_path / "rows.parquet")))


def test_text_that_is_not_utf8_is_refused(engine: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a,b\n" + b"1,x\n" * 20_000 + "2,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"rows\.csv must be UTF-8 text, line 20002 is not"):
        engine.scan(Source(path=str(tmp_path / "rows.csv")))


def test_a_zip_of_several_files_is_refused(engine: LocalEngine, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.csv.zip", "w") as archive:
        archive.writestr("one.csv", "a\n1\n")
        archive.writestr("two.csv", "a\n1\n")
    with pytest.raises(DataError, match=r"must hold one file, holds 2: one\.csv, two\.csv"):
        engine.scan(Source(path=str(tmp_path / "two.csv.zip")))


def test_a_folder_of_two_formats_is_refused(engine: LocalEngine, tmp_path: Path) -> None:
    csv(tmp_path, "a\n1\n", "table/rows.csv")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "table" / "rows.parquet")
    with pytest.raises(DataError, match="must hold one format"):
        engine.scan(Source(path=str(tmp_path / "table")))


@pytest.mark.parametrize("path", ["postgresql://host/db", "https://host/rows.csv"])
def test_an_address_of_no_object_store_is_refused(engine: LocalEngine, path: str) -> None:
    with pytest.raises(Unsupported, match=r"must be a path or an object store's address \(s3://.*query = "):
        engine.scan(Source(path=path))


def test_the_scratch_folder_goes_with_the_engine(tmp_path: Path) -> None:
    with open_engine(EngineConfig(threads=1), scratch=tmp_path / "scratch") as engine:
        rows = engine.scan(csv(tmp_path, "k\n1\n2\n"), None)
        assert sum(batch.num_rows for batch in engine.exchange(rows, Partitioning(keys=("k",), parts=2)).batches()) == 2
        assert list((tmp_path / "scratch").iterdir())
    assert list((tmp_path / "scratch").iterdir()) == []


def test_memory_and_threads_are_the_projects(tmp_path: Path) -> None:
    with LocalEngine(EngineConfig(threads=3, memory="1GiB"), scratch=tmp_path) as engine:
        settings = dict(engine._connection.sql("SELECT name, value FROM duckdb_settings()").fetchall())
    assert settings["memory_limit"] == "416.0 MiB"  # what is left beside the interpreter and the batches of three threads
    assert settings["threads"] == "3"
    assert settings["enable_progress_bar"] == "false"
    assert settings["temp_directory"].startswith(str(tmp_path))


@pytest.mark.slow
def test_wide_rows_larger_than_memory_are_sorted_by_ranges(tmp_path: Path) -> None:
    width = 96
    schema = pa.schema([pa.field("key", pa.int64()), *(pa.field(f"x{i}", pa.float64()) for i in range(width))])

    def widened(batch: pa.RecordBatch) -> pa.RecordBatch:
        keys = batch.column("n").to_numpy() * 7_919 % 40_001
        return pa.record_batch([pa.array(keys), *(pa.array(keys + float(i)) for i in range(width))], schema=schema)

    pq.write_table(pa.table({"n": range(40_001)}), tmp_path / "n.parquet")
    with LocalEngine(EngineConfig(threads=2, memory="56MiB"), scratch=tmp_path / "scratch") as engine:
        rows = engine.map_batches(engine.scan(Source(path=str(tmp_path / "n.parquet"))), widened, schema)
        rows = engine.exchange(rows, Partitioning(keys=("key",), kind="sort"))
        assert [key for batch in rows.batches() for key in batch.column("key").to_pylist()] == list(range(40_001))


def test_a_full_disk_is_said_and_nothing_is_left(engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, on a small file system, is in the end-to-end tests; here the system's own error on a limit of file size."""
    import resource
    import signal

    from tidemill.core.errors import Unavailable

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = engine.scan(csv(tmp_path, "x\n" + "\n".join(map(str, range(200_000)))))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises((Unavailable, OSError)):
            engine.write(rows, Target(path=tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "scratch"}
