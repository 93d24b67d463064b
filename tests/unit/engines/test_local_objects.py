"""Object stores: a real server of the S3 protocol in a process of its own, and what is asked of it."""

from __future__ import annotations

import bz2
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.fs as fs
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest

from tidemill import pipeline
from tidemill.core.engine import EngineConfig, Source
from tidemill.core.errors import ConfigError, DataError, Unavailable
from tidemill.core.project import from_tree
from tidemill.engines.local.engine import LocalEngine

pytestmark = pytest.mark.server
PATIENCE_S = 60
# A server in front of moto's, which notes the bytes of every answer.
SERVER = """
import sys
from werkzeug.serving import run_simple, WSGIRequestHandler
from moto.server import DomainDispatcherApplication, create_backend_app
application = DomainDispatcherApplication(create_backend_app)
def counted(environ, start_response):
    def start(status, headers, *rest):
        size = dict((name.lower(), value) for name, value in headers).get("content-length", "0")
        with open(sys.argv[2], "a") as log:
            log.write(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {size}\\n")
        return start_response(status, headers, *rest)
    return application(environ, start)
class Quiet(WSGIRequestHandler):
    def log(self, *arguments):
        pass
run_simple("127.0.0.1", int(sys.argv[1]), counted, threaded=True, request_handler=Quiet)
"""


class Store:
    """A bucket, and what was asked of it."""

    def __init__(self, endpoint: str, log: Path) -> None:
        self.endpoint = endpoint
        self.log = log
        self.files = fs.S3FileSystem(
            access_key="a", secret_key="b", endpoint_override=endpoint, region="us-east-1", allow_bucket_creation=True
        )

    def put(self, name: str, rows: pa.Table | bytes) -> str:
        path = f"shop/{name}"
        if isinstance(rows, bytes):
            with self.files.open_output_stream(path) as out:
                out.write(rows)
        elif name.endswith(".parquet"):
            pq.write_table(rows, path, filesystem=self.files, row_group_size=100_000, compression="none", use_dictionary=False)
        else:
            with self.files.open_output_stream(path) as out:
                (orc.write_table if name.endswith(".orc") else feather.write_feather)(rows, out)
        return f"s3://{path}"

    def answered_bytes(self, method: str = "GET") -> int:
        entries = [line.split(" ") for line in self.log.read_text().splitlines()] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return sum(int(entry[-1]) for entry in entries if entry[0] == method)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    pytest.importorskip("moto.server")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("moto")
    with (folder / "output").open("w") as output:
        process = subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(folder / "log")], stdout=output, stderr=output, cwd=folder)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "output").read_text()
                assert time.monotonic() < deadline, (folder / "output").read_text()
                time.sleep(0.1)
        yield endpoint, folder / "log"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def store(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server[0])
    urllib.request.urlopen(urllib.request.Request(f"{server[0]}/moto-api/reset", method="POST")).close()
    made = Store(*server)
    made.files.create_dir("shop")
    made.answered_bytes()
    return made


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    with LocalEngine(EngineConfig(threads=2, memory="512MiB"), scratch=tmp_path / "scratch") as made:
        yield made


def read(engine: LocalEngine, path: str, **source: Any) -> dict[str, list[Any]]:
    rows = engine.scan(Source(path=path, **source), None)
    return pa.Table.from_batches(list(rows.batches()), schema=rows.schema).to_pydict()


@pytest.mark.parametrize("form", ["parquet", "orc", "arrow"])
def test_object_folder_glob_and_hive(engine: LocalEngine, store: Store, form: str) -> None:
    for day in (2, 1):
        store.put(f"t/day={day}/rows.{form}", pa.table({"x": [day * 10, day * 10 + 1]}))
    store.put("t/_SUCCESS", b"")
    expected = {"x": [10, 11, 20, 21], "day": [1, 1, 2, 2]}
    assert read(engine, "s3://shop/t") == expected
    assert read(engine, "s3://shop/t/") == expected
    assert read(engine, f"s3://shop/t/**/*.{form}") == expected
    assert read(engine, f"s3://shop/t/day=?/rows.{form}") == expected
    assert read(engine, f"s3://shop/t/day=1/rows.{form}") == {"x": [10, 11]}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.csv", b"x,y\n1,a\n2,b\n"),
        ("rows.jsonl", b'{"x": 1, "y": "a"}\n{"x": 2, "y": "b"}\n'),
        ("rows.csv.bz2", bz2.compress(b"x,y\n1,a\n2,b\n")),
    ],
    ids=["csv", "jsonl", "packed"],
)
def test_text_and_packed_objects(engine: LocalEngine, store: Store, name: str, data: bytes) -> None:
    store.put(f"t/day=1/{name}", data)
    assert read(engine, "s3://shop/t") == {"x": [1, 2], "y": ["a", "b"], "day": [1, 1]}


def test_the_endpoint_may_be_in_the_source(engine: LocalEngine, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("x.parquet", pa.table({"x": [1]}))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert read(engine, "s3://shop/x.parquet", endpoint=store.endpoint) == {"x": [1]}


def test_only_the_needed_columns_and_folders_are_asked_for(engine: LocalEngine, store: Store) -> None:
    numbers = np.arange(300_000)
    for year in (2023, 2024):
        store.put(f"t/year={year}/rows.parquet", pa.table({"used": numbers, **{f"untouched{i}": numbers + i for i in range(9)}}))
    whole = store.files.get_file_info("shop/t/year=2024/rows.parquet").size
    rows = engine.scan(Source(path="s3://shop/t"), None)
    assert store.answered_bytes() < 500_000  # the footers
    query = engine.frame(rows).filter(nw.col("year") == 2024).select("used").to_native()
    plan = query.explain()
    assert "untouched" not in plan
    assert '"year" = 2024' in plan
    assert sum(value for (value,) in query.fetchall()) == numbers.sum()
    one_column = whole / 10
    assert 0.9 * one_column < store.answered_bytes() < 1.3 * one_column
    assert len(engine.frame(rows).collect().to_native()) == 600_000
    assert store.answered_bytes() > 1.9 * whole


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://shop/nothing", "source must exist, got no .* objects at s3://shop/nothing"),
        ("s3://shop/t/*.orc", "source must exist"),
        ("s3://no-such-bucket/x.parquet", "no-such-bucket"),
        ("s3://shop/torn.parquet", r"s3://shop/torn\.parquet must be a whole Parquet file"),
        ("s3://shop/empty.csv", r"must hold data, s3://shop/empty\.csv is empty"),
        ("s3://shop/mixed", "must hold one format, holds s3://shop/mixed/a.csv and s3://shop/mixed/b.orc"),
    ],
    ids=["nothing", "no match", "no bucket", "torn", "empty", "mixed"],
)  # fmt: skip
def test_what_cannot_be_read_is_named(engine: LocalEngine, store: Store, path: str, message: str) -> None:
    store.put("t/x.parquet", pa.table({"x": [1]}))
    store.put("torn.parquet", b"PAR1 and no more")
    store.put("empty.csv", b"")
    store.put("mixed/a.csv", b"x\n1\n")
    store.put("mixed/b.orc", pa.table({"x": [1]}))
    with pytest.raises(DataError, match=message) as caught:
        engine.scan(Source(path=path), None)
    assert "\n" not in str(caught.value)


def test_a_store_that_does_not_answer_is_unavailable(engine: LocalEngine, store: Store, free_port: int) -> None:
    with pytest.raises(Unavailable, match="the object store must answer, s3://shop/x"):
        engine.scan(Source(path="s3://shop/x", endpoint=f"http://127.0.0.1:{free_port}"), None)


def test_a_project_is_run_again_when_an_object_is_another(store: Store, tmp_path: Path) -> None:
    def rows(shift: int) -> pa.Table:
        numbers = np.arange(500)
        return pa.table({"x": numbers, "y": (numbers + shift) % 2 == 0})

    store.put("t/a.parquet", rows(0))
    tree = {"name": "shop", "data": {"source": "s3://shop/t", "target": "y"}, "engine": {"threads": 1}}
    project = from_tree(tree, folder=tmp_path)

    def cached() -> bool:
        return bool(pipeline.run(project, to_stage="data").timings["data"]["cached"])

    assert [cached(), cached()] == [False, True]
    store.put("t/a.parquet", rows(0))  # written again, the same bytes
    assert cached()
    store.put("t/a.parquet", rows(1))
    assert not cached()


def test_an_account_must_be_named_for_azure(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME must name the storage account"):
        engine.scan(Source(path="az://shop/x"), None)
