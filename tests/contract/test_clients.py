"""Both clients against a running server: every kind of rows, credentials, TLS, deadlines, many at once."""

from __future__ import annotations

import asyncio
import datetime as dt
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tidemill.client import AsyncClient, Client, frames
from tidemill.core.errors import ConfigError, DataError, Unavailable
from tidemill.serve.access import keys
from tidemill.serve.access.config import AuthConfig
from tidemill.serve.config import ServeConfig
from tidemill.serve.server import Running, serve
from tidemill.testing.packages import COLUMNS, EXAMPLE, tiny_package, tiny_probability

pytestmark = pytest.mark.server

ROWS = 250
RECORDS: list[dict[str, Any]] = [
    {**EXAMPLE, "distance": float(10 * i), "seats": i % 7, "carrier": ["UA", "DL", "航空", ""][i % 4], "weekend": i % 3 == 0}
    for i in range(ROWS)
]
RECORDS[3] |= {"carrier": None, "seats": None, "weekend": None, "distance": None, "departs": None}
EXPECTED = [tiny_probability(record) for record in RECORDS]


class Answering:
    """`Client` under the name of its calls, or `AsyncClient` through an event loop of its own."""

    def __init__(self, kind: str, url: str, **arguments: Any) -> None:
        self._loop = asyncio.Runner() if kind == "async" else None
        self.client: Any = AsyncClient(url, **arguments) if kind == "async" else Client(url, **arguments)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if self._loop is None:
            return getattr(self.client, name)  # type: ignore[no-any-return]
        return lambda *args, **more: self._loop.run(getattr(self.client, name)(*args, **more))

    def close(self) -> None:
        if self._loop is None:
            self.client.close()
        else:
            self._loop.run(self.client.close())
            self._loop.close()


@contextmanager
def serving(folder: Path, **config: Any) -> Iterator[str]:
    packages = [tiny_package(folder / "rows", name="rows", version="3"), tiny_package(folder / "texts", task="text", name="texts")]
    packages += [tiny_package(folder / "many", task="multiclass", name="many"), tiny_package(folder / "near", task="interval", name="near")]
    ready: queue.Queue[Running] = queue.Queue()
    thread = threading.Thread(target=serve, args=(packages,), kwargs={"config": ServeConfig(port=0, **config), "on_ready": ready.put})
    thread.start()
    running = ready.get(timeout=60)
    yield running.url
    running.stop()
    thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of four packages that takes at most 100 rows at once."""
    with serving(tmp_path_factory.mktemp("served"), max_batch_rows=100) as url:
        yield url


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, server: str) -> Iterator[Callable[..., Answering]]:
    """Makes a client of either kind, of the server or of another address."""
    made: list[Answering] = []

    def make(url: str = server, **arguments: Any) -> Answering:
        made.append(Answering(request.param, url, **arguments))
        return made[-1]

    yield make
    for client in made:
        client.close()


def table() -> pa.Table:
    rows = [{**record, "departs": record["departs"] and dt.datetime.fromisoformat(record["departs"])} for record in RECORDS]
    return pa.Table.from_pylist(rows, schema=COLUMNS.to_arrow())


def arrays() -> dict[str, np.ndarray]:
    """The rows as NumPy has them: nulls as NaN, None and NaT."""
    column = {name: [record[name] for record in RECORDS] for name in RECORDS[0]}
    times = [None if value is None else value.removesuffix("Z") for value in column["departs"]]
    return {
        "distance": np.array(column["distance"], float),
        "fare": np.array(column["fare"], np.float32),
        "seats": np.array(column["seats"], object),
        "carrier": np.array(column["carrier"], object),
        "weekend": np.array(column["weekend"], object),
        "departs": np.array(times, "datetime64[s]"),
    }


@pytest.mark.parametrize("gzip", [False, True])
def test_records(connect: Callable[..., Answering], gzip: bool) -> None:
    client = connect(gzip=gzip)
    answers = client.predict_batch(RECORDS)
    assert [row["probability"] for row in answers] == pytest.approx(EXPECTED, abs=1e-6)
    assert client.predict_batch(iter(RECORDS[:2])) == answers[:2]
    assert client.predict(RECORDS[1])["probability"] == answers[1]["probability"]


def test_arrow(connect: Callable[..., Answering]) -> None:
    answers = connect().predict_batch(table())
    assert isinstance(answers, pa.Table)
    assert answers.column_names == ["prediction", "probability"]
    assert answers["probability"].to_pylist() == pytest.approx(EXPECTED, abs=1e-6)
    batch = table().to_batches()[0]
    assert connect().predict_batch(batch).num_rows == ROWS


def test_pandas(connect: Callable[..., Answering]) -> None:
    frame = table().to_pandas()
    frame.index = pd.Index([f"row {i}" for i in range(ROWS)], name="key")
    answers = connect().predict_batch(frame)
    assert isinstance(answers, pd.DataFrame)
    assert answers.index.equals(frame.index)
    assert answers["probability"].tolist() == pytest.approx(EXPECTED, abs=1e-6)


def test_polars(connect: Callable[..., Answering]) -> None:
    answers = connect().predict_batch(pl.from_arrow(table()))
    assert isinstance(answers, pl.DataFrame)
    assert answers["probability"].to_list() == pytest.approx(EXPECTED, abs=1e-6)


def test_numpy_by_column(connect: Callable[..., Answering]) -> None:
    answers = connect().predict_batch(arrays())
    assert answers["probability"].shape == (ROWS, 2)
    assert answers["probability"][:, 1] == pytest.approx(EXPECTED, abs=1e-6)
    assert answers["prediction"].tolist() == [p > 0.5 for p in EXPECTED]


def test_numpy_matrices_take_the_models_columns_in_order(connect: Callable[..., Answering]) -> None:
    columns = arrays()
    matrix = np.empty((ROWS, 6), object)
    for i, name in enumerate(COLUMNS.names):
        matrix[:, i] = columns[name].astype("datetime64[us]").astype(np.int64) if name == "departs" else columns[name]
    client = connect()
    assert client.predict_batch(matrix)["probability"][:, 1] == pytest.approx(EXPECTED, abs=1e-6)
    with pytest.raises(DataError, match=r"must have the model's 6 columns \(distance, fare.*got 5"):
        client.predict_batch(matrix[:, :5])


def test_structured_arrays(connect: Callable[..., Answering]) -> None:
    columns = arrays()
    kinds = [(name, values.dtype) for name, values in columns.items()]
    rows = np.empty(ROWS, kinds)
    for name, values in columns.items():
        rows[name] = values
    assert connect().predict_batch(rows)["probability"][:, 1] == pytest.approx(EXPECTED, abs=1e-6)


@pytest.mark.parametrize("version", [None, "3"])
def test_a_model_by_name_and_version(connect: Callable[..., Answering], version: str | None) -> None:
    client = connect(model="rows", version=version)
    assert client.predict(EXAMPLE)["version"] == "3"
    assert client.predict_batch(arrays())["probability"][0, 1] == pytest.approx(EXPECTED[0], abs=1e-6)
    with pytest.raises(ConfigError, match="model 'none' is not known"):
        connect(model="none").predict(EXAMPLE)


def test_texts(connect: Callable[..., Answering]) -> None:
    client, texts = connect(model="texts"), ["great", "awful"] * 60
    assert client.predict("great")["sentiment"] == "POSITIVE"
    lists = client.predict_batch(texts)
    assert [row["prediction"] for row in lists[:2]] == ["POSITIVE", "NEGATIVE"]
    assert client.predict_batch(np.array(texts))["prediction"].tolist() == [row["prediction"] for row in lists]
    assert client.predict_batch(pl.DataFrame({"text": texts}))["prediction"].to_list() == [row["prediction"] for row in lists]


@pytest.mark.parametrize(("model", "names"), [("many", ["prediction", "probability_high", "probability_low", "probability_mid"]),
                                              ("near", ["prediction", "prediction_low", "prediction_high"])])  # fmt: skip
def test_frames_are_the_same_where_a_server_takes_no_arrow(
    connect: Callable[..., Answering], model: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, frame = connect(model=model), table().to_pandas()
    expected = client.predict_batch(frame)
    assert list(expected.columns) == names
    monkeypatch.setattr(frames, "ARROW", "application/x-unknown")
    plain = client.predict_batch(frame)
    assert list(plain.columns) == names
    for name in names[1:]:
        assert plain[name].tolist() == pytest.approx(expected[name].tolist(), abs=1e-6)
    assert client.predict_batch(table()).column_names == names
    assert client.predict_batch(pl.from_arrow(table())).columns == names


def test_a_wrong_value_names_its_field_and_row(connect: Callable[..., Answering]) -> None:
    wrong = [*RECORDS[:210], {**EXAMPLE, "distance": "far"}]
    client = connect()
    with pytest.raises(
        DataError, match=r"field 'distance' must be a number or null, got 'far' in row ([0-9]+), counted from row ([0-9]+)"
    ) as caught:
        client.predict_batch(wrong)
    assert caught.value.field == "distance"
    row, start = (int(word.strip(",")) for word in str(caught.value).split() if word.strip(",").isdecimal())
    assert row + start == 210
    with pytest.raises(DataError, match="fare"):
        client.predict_batch(table().drop_columns(["fare"]))
    with pytest.raises(DataError, match="at least one row"):
        client.predict_batch([])
    with pytest.raises(DataError, match="rows must be a list of records, texts or images"):
        client.predict_batch(7)


def test_many_calls_at_once_share_few_connections(server: str) -> None:
    with Client(server, max_connections=3) as client:
        answers: list[float] = [0.0] * 60

        def ask(caller: int) -> None:
            for i in range(caller, 60, 6):
                answers[i] = client.predict(RECORDS[i])["probability"]

        threads = [threading.Thread(target=ask, args=(caller,)) for caller in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == pytest.approx(EXPECTED[:60], abs=1e-6)
        assert len(client._pool._idle) <= 3

    async def all_at_once() -> list[float]:
        async with AsyncClient(server, max_connections=3) as client:
            found = await asyncio.gather(*(client.predict(record) for record in RECORDS[:60]))
            assert len(client._pool._idle) <= 3
            return [row["probability"] for row in found]

    assert asyncio.run(all_at_once()) == pytest.approx(EXPECTED[:60], abs=1e-6)


def test_a_call_comes_back_over_a_connection_that_was_closed(connect: Callable[..., Answering]) -> None:
    client = connect()
    client.health()
    (kept,) = client.client._pool._idle
    plain = kept.socket if hasattr(kept, "socket") else kept._writer.get_extra_info("socket")
    plain.shutdown(socket.SHUT_RDWR)
    assert client.health()["status"] == "healthy"


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_time_ends_a_call(connect: Callable[..., Answering]) -> None:
    with silent() as url:
        client = connect(url, timeout_s=0.2)
        with pytest.raises(Unavailable, match=r"must answer within 0\.2 s"):
            client.predict(EXAMPLE)
        with pytest.raises(Unavailable, match=r"within 0\.05 s"):
            client.predict(EXAMPLE, timeout_s=0.05)
    with pytest.raises(Unavailable, match=r"must answer: .*; is it running"):
        connect("http://127.0.0.1:1", retries=1).health()


def test_a_cancelled_call_closes_its_connection() -> None:
    async def cancelled(url: str, listening: socket.socket) -> bytes:
        async with AsyncClient(url) as client:
            call = asyncio.create_task(client.health())
            taken, _ = await asyncio.get_running_loop().sock_accept(listening)
            await asyncio.get_running_loop().sock_recv(taken, 4096)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with taken:
                return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(taken, 4096), 10)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        assert asyncio.run(cancelled(f"http://127.0.0.1:{listening.getsockname()[1]}", listening)) == b""


def test_keys(connect: Callable[..., Answering], tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys.json", "alice", scopes=["predict"])
    with serving(tmp_path, auth=AuthConfig(keys=tmp_path / "keys.json")) as url:
        assert connect(url, api_key=key).predict(EXAMPLE)["prediction"] is True
        assert connect(url, token=lambda: key).predict(EXAMPLE)["prediction"] is True
        with pytest.raises(ConfigError, match=r"key|credential"):
            connect(url).predict(EXAMPLE)
        with pytest.raises(ConfigError, match="read"):
            connect(url, api_key=key).model_info()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_tables_go_in_parts_that_a_small_server_takes(kind: str, tmp_path: Path) -> None:
    many = {name: np.tile(values, 40) for name, values in arrays().items()}
    with serving(tmp_path, max_body_mb=0.05) as url:
        client = Answering(kind, url)
        assert client.predict_batch(many)["probability"][:, 1] == pytest.approx(EXPECTED * 40, abs=1e-6)
        assert len(client.predict_batch(RECORDS * 8)) == 8 * ROWS
        client.close()
