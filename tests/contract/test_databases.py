"""A query gives the same rows from SQLite and from PostgreSQL, and says what is wrong without saying the password."""

from __future__ import annotations

import datetime as dt
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tidemill import pipeline
from tidemill.core.engine import EngineConfig, Source
from tidemill.core.errors import ConfigError, DataError, Unavailable
from tidemill.core.project import from_tree
from tidemill.engines.local.engine import LocalEngine

pytest.importorskip("adbc_driver_manager")
TRIPS = "CREATE TABLE trips (id BIGINT, price DOUBLE PRECISION, word TEXT, bought TEXT, late INTEGER)"
Execute = Callable[[str], None]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Execute]:
    """The address of an empty database, and what executes a statement there."""
    if request.param == "sqlite":
        path = tmp_path / "shop.db"

        def on_sqlite(statement: str) -> None:
            with sqlite3.connect(path) as connection:
                connection.execute(statement)
            connection.close()

        return f"sqlite:///{path}", on_sqlite
    psycopg = pytest.importorskip("psycopg")
    server = request.getfixturevalue("postgresql")
    name = f"shop_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = f"{server.rpartition('/')[0]}/{name}"

    def on_postgresql(statement: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)

    return url, on_postgresql


def read(folder: Path, url: str, query: str) -> pa.Table:
    with LocalEngine(EngineConfig(threads=2, memory="512MiB"), scratch=folder / "scratch") as engine:
        rows = engine.scan(Source(query=query, url=url), None)
        return pa.Table.from_batches(list(rows.batches()), schema=rows.schema)


def test_rows_and_types(database: tuple[str, Execute], tmp_path: Path) -> None:
    url, execute = database
    execute(TRIPS)
    execute(
        "INSERT INTO trips VALUES (1, 0.5, 'é', '2024-01-02', 0), (9007199254740993, NULL, NULL, NULL, 1), (3, 2, 'x', '2024-02-03', 0)"
    )
    found = read(tmp_path, url, "SELECT id, price, word, late FROM trips ORDER BY late, id;")
    assert found.to_pydict() == {"id": [1, 3, 9007199254740993], "price": [0.5, 2.0, None], "word": ["é", "x", None], "late": [0, 0, 1]}
    assert [str(field.type) for field in found.schema][:3] == ["int64", "double", "string"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_begins_with_and_contains_nulls_and_many_rows(database: tuple[str, Execute], tmp_path: Path) -> None:
    url, execute = database
    execute(TRIPS)
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 70000) SELECT"
    execute(f"INSERT INTO trips {numbers} i, CASE WHEN i > 60000 THEN i / 2.0 END, CASE WHEN i > 60000 THEN 'late' END, NULL, 0 FROM n")
    found = read(tmp_path, url, "WITH few AS (SELECT * FROM trips) SELECT id, price, word FROM few")
    assert sorted(found["id"].to_pylist()) == list(range(1, 70_001))
    assert found["price"].null_count == found["word"].null_count == 60_000
    assert set(found["word"].to_pylist()) == {None, "late"}


def test_no_rows_keep_their_columns(database: tuple[str, Execute], tmp_path: Path) -> None:
    url, execute = database
    execute(TRIPS)
    assert read(tmp_path, url, "SELECT id, word FROM trips").to_pydict() == {"id": [], "word": []}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT nothing FROM trips", "nothing"),
        ("SELECT id, id AS \"ID\" FROM trips", "differ by more than case"),
        ("DELETE FROM trips", "DELETE|columns"),
    ],
    ids=["unknown column", "twice", "no select"],
)  # fmt: skip
def test_a_query_that_fails_says_why(database: tuple[str, Execute], tmp_path: Path, query: str, message: str) -> None:
    url, execute = database
    execute(TRIPS)
    execute("INSERT INTO trips VALUES (1, 0.5, 'x', NULL, 0)")
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, url, query)
    assert "\n" not in str(caught.value)
    assert len(read(tmp_path, url, "SELECT * FROM trips")) == 1


def test_a_project_is_run_again_when_the_rows_are_others(database: tuple[str, Execute], tmp_path: Path) -> None:
    url, execute = database
    execute(TRIPS)
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) SELECT"
    execute(f"INSERT INTO trips {numbers} i, i % 17, 'word', '2024-01-01', CASE WHEN i % 17 > 8 THEN 1 ELSE 0 END FROM n")
    tree = {
        "name": "trips",
        "data": {"source": {"query": "SELECT id, price, late FROM trips", "url": url}, "target": "late", "keys": ["id"]},
        "engine": {"threads": 1, "memory": "512MiB"},
    }
    project = from_tree(tree, folder=tmp_path)

    def data_stage() -> tuple[str, bool]:
        made = pipeline.run(project, to_stage="data")
        assert not (tmp_path / ".tidemill" / "queries").exists()
        return made.stages["data"].id, made.timings["data"]["cached"]

    first, _ = data_stage()
    assert data_stage() == (first, True)
    execute("UPDATE trips SET late = 1 - late WHERE id = 5")
    second, cached = data_stage()
    assert (second != first, cached) == (True, False)
    execute("DELETE FROM trips WHERE id = 5")
    execute("INSERT INTO trips VALUES (5, 5, 'word', '2024-01-01', 0)")  # the same rows in another order
    assert data_stage() == (first, True)


class TestSqlite:
    """Types are of values there, not of columns."""

    def made(self, folder: Path, *rows: tuple[Any, ...]) -> str:
        with sqlite3.connect(folder / "x.db") as connection:
            connection.execute("CREATE TABLE t (a, b)")
            connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
        connection.close()
        return f"sqlite:///{folder / 'x.db'}"

    def test_a_late_fraction_or_word_is_not_lost(self, tmp_path: Path) -> None:
        url = self.made(tmp_path, *[(1, 1)] * 5_000, (2.5, "x"))
        found = read(tmp_path, url, "SELECT * FROM t")
        assert found["a"].to_pylist()[-1] == 2.5
        assert found["b"].to_pylist()[-2:] == ["1", "x"]

    def test_iso_times_are_told_and_other_words_stay(self, tmp_path: Path) -> None:
        found = read(tmp_path, self.made(tmp_path, ("2024-01-02 03:04:05", "2024"), (None, "05")), "SELECT * FROM t")
        assert found["a"].to_pylist() == [dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC), None]
        assert found["b"].to_pylist() == ["2024", "05"]

    def test_a_blob_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"column 'a' of query .* holds a blob; cast it in the query"):
            read(tmp_path, self.made(tmp_path, (b"x", 1)), "SELECT * FROM t")

    def test_a_database_that_is_not_there_is_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"the database must exist, got nothing at .*y\.db"):
            read(tmp_path, f"sqlite:///{tmp_path / 'y.db'}", "SELECT 1")
        assert not (tmp_path / "y.db").exists()


class TestPostgresql:
    pytestmark = pytest.mark.server

    def test_its_own_types(self, postgresql: str, tmp_path: Path) -> None:
        query = """SELECT 1::smallint AS s, 1.25::numeric(9,4) AS n, 2.5::real AS r, true AS b, 'x'::varchar(9) AS v,
            timestamptz '2024-01-01 08:00+08' AS t, date '2024-01-02' AS d"""
        found = read(tmp_path, postgresql, query)
        at = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
        assert found.to_pylist() == [{"s": 1, "n": 1.25, "r": 2.5, "b": True, "v": "x", "t": at, "d": dt.date(2024, 1, 2)}]
        assert str(found.schema.field("n").type) == "double"

    @pytest.mark.parametrize("value", ["'{1,2}'::int[]", "interval '1 day'", "'\\x00'::bytea", "gen_random_uuid()"])
    def test_a_type_without_counterpart_is_named(self, postgresql: str, tmp_path: Path, value: str) -> None:
        with pytest.raises(DataError, match=r"column 'x' must be .*; cast it in the query"):
            read(tmp_path, postgresql, f"SELECT {value} AS x")

    def test_the_password_is_read_from_the_environment_and_said_nowhere(
        self, postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SHOP_PASSWORD", "se cret/1")
        url = postgresql.replace("tidemill@", "tidemill:${SHOP_PASSWORD}@")
        assert "${SHOP_PASSWORD}" in url
        assert read(tmp_path, url, "SELECT 1 AS x").to_pydict() == {"x": [1]}
        source = {"query": "SELECT i AS x, i % 2 AS y FROM generate_series(1, 100) i", "url": url}
        tree = {"name": "x", "data": {"source": source, "target": "y"}, "engine": {"threads": 1}}
        pipeline.run(from_tree(tree, folder=tmp_path), to_stage="data")
        for path in (tmp_path / ".tidemill").rglob("*"):
            assert not path.is_file() or (b"se cret" not in path.read_bytes() and b"se%20cret" not in path.read_bytes()), path

    def test_a_variable_that_is_not_set_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="the environment must have NOT_SET"):
            read(tmp_path, "postgresql://u:${NOT_SET}@127.0.0.1/x", "SELECT 1")

    def test_a_server_that_does_not_answer_is_unavailable(self, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHOP_PASSWORD", "secret")
        with pytest.raises(Unavailable, match=r"the database must answer, postgresql://127\.0\.0\.1") as caught:
            read(tmp_path, f"postgresql://u:${{SHOP_PASSWORD}}@127.0.0.1:{free_port}/x", "SELECT 1")
        assert "secret" not in str(caught.value)
