"""`tidemill bench` as it is typed: a package here, a server on loopback, with tables, JSON, pages and evidence."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tidemill import cli
from tidemill.core.package import Package
from tidemill.serve.access import keys
from tidemill.serve.access.config import AuthConfig
from tidemill.serve.config import ServeConfig
from tidemill.serve.server import Running, serve
from tidemill.testing.packages import COLUMNS, EXAMPLE, tiny_package

pytestmark = pytest.mark.server

SHORT = ["--seconds", "0.1", "--repeats", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIDEMILL_API_KEY", raising=False)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[tuple[str, str]]:
    """The address of a server of two packages, and a key of it."""
    folder = tmp_path_factory.mktemp("served")
    key = keys.add(key_file, "alice", scopes=["predict", "read"])
    packages = [tiny_package(folder / "rows", name="rows", version="3"), tiny_package(folder / "texts", task="text", name="texts")]
    ready: queue.Queue[Running] = queue.Queue()
    config = ServeConfig(port=0, auth=AuthConfig(keys=key_file))
    thread = threading.Thread(target=serve, args=(packages,), kwargs={"config": config, "on_ready": ready.put})
    thread.start()
    running = ready.get(timeout=60)
    yield running.url, key
    running.stop()
    thread.join()


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = cli.main(["bench", *arguments, "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return dict(json.loads(shown.out))


def rows_file(folder: Path) -> Path:
    import datetime as dt

    import pyarrow as pa

    departs = dt.datetime.fromisoformat(str(EXAMPLE["departs"]))
    rows = [{**EXAMPLE, "departs": departs, "seats": i} for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS.to_arrow()), folder / "rows.parquet")
    return folder / "rows.parquet"


def test_a_package_gets_what_was_measured_as_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tiny_package(tmp_path / "tiny")
    found = bench(capsys, "./tiny", *SHORT, "--batch", "1,16,64", "--rows", str(rows_file(tmp_path)))
    again = Package.open(tmp_path / "tiny")
    assert again.identity == package.identity
    kept = again.evidence()["bench"]
    assert kept["best"] == found["best"]
    assert kept["hardware"]["fingerprint"]
    assert found["rows"] == 40
    page = Path(found["report"])
    assert page.name == "bench-package-tiny-folder.html"
    assert "Sessions, threads and rows" in page.read_text(encoding="utf-8")


def test_a_package_is_told_of_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_package(tmp_path / "tiny")
    assert cli.main(["bench", "./tiny", *SHORT, "--batch", "1", "--threads", "1", "--output", "page.html"]) == 0
    out = capsys.readouterr().out
    assert out.split()[:11] == ["sessions", "threads", "rows", "rows/s", "mean", "std", "min", "p50", "p95", "p99", "max"]
    assert "rows/s with" in out
    assert "page: page.html" in out
    assert Path("page.html").is_file()


def test_a_server_is_swept(server: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    url, key = server
    rows = str(rows_file(tmp_path))
    found = bench(capsys, "--url", url, "--key", key, "--seconds", "0.3", "--concurrency", "1,2,4", "--batch", "1,8,32", "--rows", rows)
    assert [(p["concurrency"], p["batch"]) for p in found["points"][:3]] == [(1, 1), (2, 1), (4, 1)]
    assert [p["batch"] for p in found["points"][3:]] == [8, 32]
    assert set(found["knee"]) == {"concurrency", "batch"}
    assert {p["concurrency"] for p in found["points"][3:]} == {found["knee"]["concurrency"]["at"]}
    assert found["points"][0]["answers"] > 0
    assert not any(p["refused"] or p["lost"] for p in found["points"])
    assert (found["name"], found["version"], found["bodies"]) == ("rows", "3", 40)
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert '<section id="connections">' in page
    assert '<section id="rows">' in page
    assert key not in page + json.dumps(found)


def test_a_server_is_loaded_at_a_rate(server: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    url, key = server
    monkeypatch.setenv("TIDEMILL_API_KEY", key)
    found = bench(capsys, "--url", url, *SHORT, "--rate", "50,100", "--concurrency", "8", "--name", "texts")
    assert [p["rate"] for p in found["points"]] == [50, 100]
    assert found["name"] == "texts"
    assert '<section id="rates">' in Path(found["report"]).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a package or --url must be named"),
        (["./tiny", "--url", "http://a"], "a package or --url must be named, and not both"),
        (["./tiny", "--rate", "5"], "--rate: must go with --url, got '5'"),
        (["./tiny", "--batch", "many"], "--batch: must be numbers such as 1,8,64, got 'many'"),
        (["--url", "http://127.0.0.1:1", "--sessions", "2"], "--sessions: must go with NAME"),
        (["--url", "http://127.0.0.1:1", "--rate", "-3"], "rate: must be > 0, got -3"),
    ],
)
def test_a_wrong_call(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tiny_package(tmp_path / "tiny")
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_server_that_cannot_be_measured(server: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--url", server[0], *SHORT]) == 2
    assert "key" in capsys.readouterr().err
