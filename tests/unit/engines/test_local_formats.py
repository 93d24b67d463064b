"""JSON lines, ORC, Arrow files and packed files: what is told, what is refused and how it is said."""

from __future__ import annotations

import bz2
import datetime as dt
import gzip
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import narwhals as nw
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest

from tidemill.core.engine import EngineConfig, Source
from tidemill.core.errors import DataError
from tidemill.engines.local.engine import LocalEngine
from tidemill.engines.local.snappy import IDENTIFIER, crc32c, masked_crc32c


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    with LocalEngine(EngineConfig(threads=2, memory="512MiB"), scratch=tmp_path / "scratch") as made:
        yield made


def read(engine: LocalEngine, source: Source | Path) -> dict[str, list[Any]]:
    rows = engine.scan(source if isinstance(source, Source) else Source(path=str(source)), None)
    return pa.Table.from_batches(list(rows.batches()), schema=rows.schema).to_pydict()


def lines(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def framed(data: bytes, *, packed: bool = True) -> bytes:
    """Snappy's framing format, written from its description."""
    out = IDENTIFIER + b"\xfe\x03\x00\x00pad"
    for start in range(0, len(data), 65_536):
        plain = data[start : start + 65_536]
        body = pa.compress(plain, codec="snappy", asbytes=True) if packed else plain
        body = masked_crc32c(plain).to_bytes(4, "little") + body
        out += bytes([0 if packed else 1]) + len(body).to_bytes(3, "little") + body
    return out


class TestJsonLines:
    def test_each_type_is_told_from_its_values(self, engine: LocalEngine, tmp_path: Path) -> None:
        rows = [
            {"b": True, "i": -1, "f": 2, "t": "2024-01-02T03:04:05Z", "s": "12", "m": 1, "n": None},
            {"b": None, "i": 2**62, "f": 2.5, "t": "2024-01-03", "s": "x", "m": "one"},
        ]
        path = lines(tmp_path, *rows)
        types = {field.name: str(field.type) for field in engine.scan(Source(path=str(path)), None).schema}
        assert types == {
            "b": "bool", "i": "int64", "f": "double", "t": "timestamp[us, tz=UTC]", "s": "string", "m": "string", "n": "string",
        }  # fmt: skip
        found = read(engine, path)
        assert found["i"] == [-1, 2**62]
        assert found["s"] == ["12", "x"]
        assert found["m"] == ["1", "one"]
        assert found["t"] == [dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC), dt.datetime(2024, 1, 3, tzinfo=dt.UTC)]

    def test_words_in_quotes_stay_words(self, engine: LocalEngine, tmp_path: Path) -> None:
        assert read(engine, lines(tmp_path, {"x": "1", "y": "true"})) == {"x": ["1"], "y": ["true"]}

    def test_a_late_fraction_is_not_rounded(self, engine: LocalEngine, tmp_path: Path) -> None:
        assert read(engine, lines(tmp_path, *[{"x": 1}] * 30_000, {"x": 2.5}))["x"][-1] == 2.5

    def test_numbers_beyond_64_bits_keep_every_digit(self, engine: LocalEngine, tmp_path: Path) -> None:
        assert read(engine, lines(tmp_path, {"x": 2**64, "y": 2**53 + 1}, {"x": 1, "y": 0})) == {
            "x": [str(2**64), "1"],
            "y": [2**53 + 1, 0],
        }

    def test_a_key_that_a_line_or_a_file_lacks_is_null(self, engine: LocalEngine, tmp_path: Path) -> None:
        lines(tmp_path, {"a": 1}, {"b": "x"}, name="t/1.jsonl")
        lines(tmp_path, {"b": "y", "c": 0.5}, name="t/2.ndjson")
        assert read(engine, tmp_path / "t") == {"a": [1, None, None], "b": [None, "x", "y"], "c": [None, None, 0.5]}

    def test_numbers_of_one_file_and_words_of_another_are_words(self, engine: LocalEngine, tmp_path: Path) -> None:
        lines(tmp_path, {"a": 1}, name="t/1.jsonl")
        lines(tmp_path, {"a": "x"}, name="t/2.jsonl")
        assert read(engine, tmp_path / "t") == {"a": ["1", "x"]}

    def test_declared_types_win(self, engine: LocalEngine, tmp_path: Path) -> None:
        path = lines(tmp_path, {"zip": 1234, "n": 1})
        assert read(engine, Source(path=str(path), types={"zip": "string", "n": "float64"})) == {"zip": ["1234"], "n": [1.0]}
        with pytest.raises(DataError, match=r"column 'zip' .* must be boolean as declared, got '1234'"):
            engine.scan(Source(path=str(path), types={"zip": "boolean"}))

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"a": 1}, {"a": 1, "tags": ["x"]}], "column 'tags' .* holds a list or an object"),
            ([{"a": {"b": 1}}], "column 'a' .* holds a list or an object"),
            ([{"a": 1}, {"a": {"b": 1}}], "column 'a' .* holds a list or an object"),
            ([[1, 2]], "must hold one JSON object a line, 1 of 1 lines are something else; .*jq"),
            ([{"a": 1}, '{"a": '], "must hold one JSON object a line, line 2: unexpected end"),
            (['{"a": 1', '"b": 2}'], "must hold one JSON object a line, line 1: unexpected end"),
            ([{"a": 1, "A": 2}], "differ by more than case, got 'a' and 'A'"),
            (["", ""], "must hold JSON objects with keys, holds none"),
            (["{}"], "must hold JSON objects with keys, holds none"),
        ],
        ids=["list", "object", "sometimes an object", "array", "torn", "over two lines", "case", "blank", "no keys"],
    )
    def test_what_cannot_be_a_row_is_refused(self, engine: LocalEngine, tmp_path: Path, rows: list[Any], message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            engine.scan(Source(path=str(lines(tmp_path, *rows))))
        assert "rows.jsonl" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_projection_reaches_the_reader(self, engine: LocalEngine, tmp_path: Path) -> None:
        rows = engine.scan(Source(path=str(lines(tmp_path, {"used": 1, "untouched": 2}))))
        plan = engine.frame(rows).select("used").to_native().explain()
        assert "READ_PARQUET" in plan  # where the rows lie as text
        assert "untouched" not in plan


class TestArrowReads:
    @pytest.mark.parametrize("form", ["orc", "arrow"])
    def test_columns_and_folders_are_pruned(self, engine: LocalEngine, tmp_path: Path, form: str) -> None:
        for year in (2023, 2024):
            path = tmp_path / "t" / f"year={year}" / f"rows.{form}"
            path.parent.mkdir(parents=True)
            rows = pa.table({"used": [year], "untouched": ["x"]})
            orc.write_table(rows, path) if form == "orc" else feather.write_feather(rows, path)
        frame = engine.frame(engine.scan(Source(path=str(tmp_path / "t"))))
        query = frame.filter(nw.col("year") == 2024).select("used").to_native()
        plan = query.explain()
        assert "ARROW_SCAN" in plan
        assert "untouched" not in plan
        assert '"year" = 2024' in plan
        whole = (tmp_path / "t" / "year=2023" / f"rows.{form}").read_bytes()
        (tmp_path / "t" / "year=2023" / f"rows.{form}").write_bytes(b"x" * len(whole))  # what is not needed is not opened again
        assert query.fetchall() == [(2024,)]

    def test_dates_and_words_in_names_of_folders(self, engine: LocalEngine, tmp_path: Path) -> None:
        for day, shop in (("2024-01-02", "b c"), ("2024-01-01", "007")):
            path = tmp_path / "t" / f"day={day}" / f"shop={shop}" / "rows.orc"
            path.parent.mkdir(parents=True)
            orc.write_table(pa.table({"x": [1]}), path)
        found = read(engine, tmp_path / "t")
        assert found == {"x": [1, 1], "day": [dt.date(2024, 1, 1), dt.date(2024, 1, 2)], "shop": ["007", "b c"]}

    def test_a_dictionary_of_an_arrow_file_is_text(self, engine: LocalEngine, tmp_path: Path) -> None:
        feather.write_feather(pa.table({"x": pa.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "x.feather")
        assert read(engine, tmp_path / "x.feather") == {"x": ["a", "b", "a"]}

    def test_a_stream_is_no_file(self, engine: LocalEngine, tmp_path: Path) -> None:
        rows = pa.table({"x": [1]})
        with pa.ipc.new_stream(tmp_path / "x.arrow", rows.schema) as writer:
            writer.write_table(rows)
        with pytest.raises(DataError, match=r"x\.arrow must be a whole Arrow file.* streams"):
            engine.scan(Source(path=str(tmp_path / "x.arrow")))

    def test_other_types_than_its_siblings_are_refused(self, engine: LocalEngine, tmp_path: Path) -> None:
        orc.write_table(pa.table({"x": [1]}), tmp_path / "1.orc")
        orc.write_table(pa.table({"x": ["1"]}), tmp_path / "2.orc")
        with pytest.raises(DataError, match=r"must have the same columns, .*2\.orc and .*1\.orc differ: x"):
            engine.scan(Source(path=str(tmp_path / "*.orc")))


def _zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return bytes(out.getvalue())


PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": _zstd,
    ".snappy": framed,
}


def pack(data: bytes, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, data)
    else:
        path.write_bytes(PACKERS[path.suffix](data))
    return path


class TestPacked:
    @pytest.mark.parametrize("suffix", [*PACKERS, ".zip"])
    @pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
    def test_any_file_may_be_packed(self, engine: LocalEngine, tmp_path: Path, form: str, suffix: str) -> None:
        numbers = list(range(30_000))
        if form == "parquet":
            out = pa.BufferOutputStream()
            pq.write_table(pa.table({"x": numbers}), out)
            data = bytes(out.getvalue())
        else:
            texts = [str(number) if form == "csv" else f'{{"x": {number}}}' for number in numbers]
            data = "\n".join([*(["x"] if form == "csv" else []), *texts, ""]).encode()
        path = pack(data, tmp_path / f"t/day=3/rows.{form}{suffix}")
        assert read(engine, path) == {"x": numbers}
        assert read(engine, tmp_path / "t") == {"x": numbers, "day": [3] * len(numbers)}

    @pytest.mark.parametrize("suffix", [*PACKERS, ".zip"])
    @pytest.mark.parametrize("share", [0.002, 0.5, 0.999])
    def test_a_torn_file_is_refused(self, engine: LocalEngine, tmp_path: Path, suffix: str, share: float) -> None:
        path = pack(b"x,y\n" + b"".join(b"%d,%d\n" % (i, i * i % 977) for i in range(60_000)), tmp_path / f"rows.csv{suffix}")
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=rf"rows\.csv\{suffix}"):
            engine.scan(Source(path=str(path)))

    def test_a_changed_byte_in_snappy_is_noticed(self, engine: LocalEngine, tmp_path: Path) -> None:
        data = bytearray(framed(b"x\n1\n22\n333\n", packed=False))
        data[-2] ^= 1
        (tmp_path / "rows.csv.snappy").write_bytes(data)
        with pytest.raises(DataError, match="a chunk does not match its checksum"):
            engine.scan(Source(path=str(tmp_path / "rows.csv.snappy")))

    def test_raw_snappy_has_no_frames(self, engine: LocalEngine, tmp_path: Path) -> None:
        (tmp_path / "rows.csv.snappy").write_bytes(pa.compress(b"x\n1\n", codec="snappy", asbytes=True))
        with pytest.raises(DataError, match="raw Snappy, without frames, is not read"):
            engine.scan(Source(path=str(tmp_path / "rows.csv.snappy")))

    def test_packed_text_keeps_its_folders(self, engine: LocalEngine, tmp_path: Path) -> None:
        for day in (1, 2):
            pack(b"x\n%d\n" % (day * 10), tmp_path / f"t/day={day}/rows.csv.zst")
        assert read(engine, tmp_path / "t") == {"x": [10, 20], "day": [1, 2]}

    @pytest.mark.parametrize("codec", ["snappy", "zstd", "gzip", "none"])
    def test_parquet_codecs(self, engine: LocalEngine, tmp_path: Path, codec: str) -> None:
        pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "x.parquet", compression=codec)
        assert read(engine, tmp_path / "x.parquet") == {"x": [1, 2]}


def test_the_checksum_is_castagnolis() -> None:
    """Test vectors of RFC 3720, appendix B.4."""
    assert crc32c(b"\x00" * 32) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"123456789" * 1_000) == crc32c_slowly(b"123456789" * 1_000)


def crc32c_slowly(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
