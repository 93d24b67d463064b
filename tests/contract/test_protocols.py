"""Whatever protocol a caller speaks, and whichever client, the same rows get the same answers from a running server."""

from __future__ import annotations

import io
import json
import queue
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tidemill.client import Client
from tidemill.core.errors import ConfigError, DataError, Unavailable
from tidemill.serve.config import ServeConfig
from tidemill.serve.server import Running, serve
from tidemill.testing.packages import COLUMNS, EXAMPLE, tiny_package, tiny_probability

pytestmark = pytest.mark.server

# 2013-06-01T19:30:00Z, in the form of each protocol.
DEPARTS = 1_370_115_000_000_000
RECORDS: list[dict[str, Any]] = [
    EXAMPLE,
    {**EXAMPLE, "carrier": "航空", "weekend": False, "seats": 9},
    {**EXAMPLE, "carrier": None, "distance": None, "fare": None, "weekend": None},
    {**EXAMPLE, "seats": None, "departs": None, "carrier": ""},
]
EXPECTED = [tiny_probability(record) for record in RECORDS]

TYPES = {"distance": "FP64", "fare": "FP32", "seats": "INT64", "carrier": "BYTES", "weekend": "BOOL", "departs": "INT64"}
ONLY_IN_FULL = [0, 1]  # rows without a null, for clients that cannot say one


# Where a server takes gRPC, by its address.
GRPC: dict[str, str] = {}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of tiny packages, `rows` the default and `texts` beside it."""
    folder = tmp_path_factory.mktemp("served")
    packages = [tiny_package(folder / "rows", name="rows", version="3"), tiny_package(folder / "texts", task="text", name="texts")]
    ready: queue.Queue[Running] = queue.Queue()
    thread = threading.Thread(target=serve, args=(packages,), kwargs={"config": ServeConfig(port=0, grpc_port=0), "on_ready": ready.put})
    thread.start()
    running = ready.get(timeout=60)
    GRPC[running.url] = str(running.grpc)
    yield running.url
    running.stop()
    thread.join()


def call(url: str, body: bytes, **headers: str) -> tuple[Any, bytes]:
    """Headers and body of a POST."""
    request = urllib.request.Request(url, body, {key.replace("_", "-"): value for key, value in headers.items()})
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.headers, response.read()


def asked(url: str, value: Any) -> Any:
    return json.loads(call(url, json.dumps(value).encode(), content_type="application/json")[1])


def plain(server: str) -> list[float]:
    return [asked(f"{server}/predict", record)["probability"] for record in RECORDS]


def plain_batch(server: str) -> list[float]:
    return [row["probability"] for row in asked(f"{server}/predict_batch", {"records": RECORDS})["predictions"]]


def by_name_and_version(server: str) -> list[float]:
    return [row["probability"] for row in asked(f"{server}/models/rows/versions/3/predict_batch", {"records": RECORDS})["predictions"]]


def arrow(server: str) -> list[float]:
    rows = [{**record, "departs": None if record["departs"] is None else DEPARTS} for record in RECORDS]
    table = pa.Table.from_pylist(rows, schema=COLUMNS.to_arrow())
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    _, body = call(f"{server}/predict_batch", sink.getvalue(), content_type="application/vnd.apache.arrow.stream")
    return list(pa.ipc.open_stream(body).read_all().column("probability").to_pylist())


def kserve_v1(server: str) -> list[float]:
    return [row["probability"] for row in asked(f"{server}/v1/models/rows:predict", {"instances": RECORDS})["predictions"]]


def column(name: str) -> list[Any]:
    values = [record[name] for record in RECORDS]
    return [None if value is None else DEPARTS for value in values] if name == "departs" else values


def v2(server: str) -> list[float]:
    inputs = [{"name": name, "shape": [len(RECORDS), 1], "datatype": kind, "data": column(name)} for name, kind in TYPES.items()]
    answer = asked(f"{server}/v2/models/rows/infer", {"inputs": inputs, "outputs": [{"name": "probability"}]})
    return [float(p) for p in np.array(answer["outputs"][0]["data"]).reshape(answer["outputs"][0]["shape"])[:, 1]]


def raw_tensors() -> dict[str, tuple[str, bytes]]:
    """Datatype and bytes of every input, nulls as the package format writes them."""
    texts = [("\uffff" if value is None else value).encode() for value in column("carrier")]
    return {
        "distance": ("FP64", np.array([np.nan if v is None else v for v in column("distance")]).tobytes()),
        "fare": ("FP32", np.array([np.nan if v is None else v for v in column("fare")], np.float32).tobytes()),
        "seats": ("INT64", np.array([v or 0 for v in column("seats")]).tobytes()),
        "seats__valid": ("BOOL", np.array([v is not None for v in column("seats")]).tobytes()),
        "carrier": ("BYTES", b"".join(struct.pack("<I", len(text)) + text for text in texts)),
        "weekend": ("UINT8", np.array([2 if v is None else v for v in column("weekend")], np.uint8).tobytes()),
        "departs": ("INT64", np.array([-(2**63) if v is None else v for v in column("departs")]).tobytes()),
    }


def v2_raw(server: str) -> list[float]:
    """The binary extension, nulls as the package format writes them."""
    n = len(RECORDS)
    raw = raw_tensors()
    inputs = [
        {"name": name, "shape": [n, 1], "datatype": kind, "parameters": {"binary_data_size": len(content)}} for name, (kind, content) in raw.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "probability", "parameters": {"binary_data": True}}]}).encode()
    body = head + b"".join(content for _, content in raw.values())
    headers, answer = call(f"{server}/v2/models/rows/infer", body, inference_header_content_length=str(len(head)))
    content = answer[int(headers["inference-header-content-length"]) :]
    return [float(p) for p in np.frombuffer(content, np.float32).reshape(n, 2)[:, 1]]


def v2_grpc(server: str) -> list[float]:
    import grpc

    from tidemill.serve.grpc.messages import messages

    made = messages()
    raw = raw_tensors()
    request = made["ModelInferRequest"](
        model_name="rows",
        inputs=[{"name": name, "datatype": kind, "shape": [len(RECORDS), 1]} for name, (kind, _) in raw.items()],
        outputs=[{"name": "probability"}],
        raw_input_contents=[content for _, content in raw.values()],
    )
    with grpc.insecure_channel(GRPC[server]) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=made["ModelInferRequest"].SerializeToString,
            response_deserializer=made["ModelInferResponse"].FromString,
        )
        answer = infer(request, timeout=30)
    return [float(p) for p in np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(-1, 2)[:, 1]]


def own_client(server: str) -> list[float]:
    with Client(server) as client:
        singles = [client.predict(record)["probability"] for record in RECORDS]
        assert [row["probability"] for row in client.predict_batch(RECORDS)] == singles
        return singles


@pytest.mark.parametrize("speak", [plain, plain_batch, by_name_and_version, arrow, kserve_v1, v2, v2_raw, v2_grpc, own_client])
def test_the_answers_are_the_same_in_every_protocol(server: str, speak: Callable[[str], list[float]]) -> None:
    assert speak(server) == pytest.approx(EXPECTED, abs=1e-6)


def in_full() -> dict[str, tuple[str, list[Any]]]:
    """Datatype and values of the columns, in rows without a null."""
    return {name: (kind, [column(name)[row] for row in ONLY_IN_FULL]) for name, kind in TYPES.items()}


@pytest.mark.parametrize("over", ["http", "grpc", "http.aio", "grpc.aio"])
def test_tritons_clients_work_unchanged(server: str, ask_client: Callable[..., Any], over: str) -> None:
    address = server.removeprefix("http://") if over.startswith("http") else GRPC[server]
    found = ask_client(
        "ask_triton.py", what="walk", over=over, address=address, model="rows", version="3", columns=in_full(), text_model="texts",
        texts=["great", "awful", "航空"],
    )  # fmt: skip
    assert found["states"] == [True] * 4
    assert (found["server"]["name"], found["name"], found["versions"]) == ("tidemill", "rows", ["3"])
    assert found["inputs"] == TYPES
    assert (found["outputs"], found["shapes"]) == ({"prediction": "BOOL", "probability": "FP32"}, [[-1], [-1, 2]])
    ways = [f"{way}, {form}" for form in (("raw", "JSON") if "http" in over else ("raw",)) for way in ("plain", "by version", "compressed")]
    assert sorted(found["answers"]) == sorted(ways)
    for given_id, version, probability in found["answers"].values():
        assert (given_id, version) == ("7", "3")
        assert probability == pytest.approx([EXPECTED[row] for row in ONLY_IN_FULL], abs=1e-6)
    assert found["prediction"] == [EXPECTED[row] > 0.5 for row in ONLY_IN_FULL]
    assert found["texts"][:2] == ["POSITIVE", "NEGATIVE"]
    assert len(found["texts"]) == 3
    for said, expected in zip(found["errors"], ["model 'none' is not known", "must be given", "model 'none' is not known"], strict=True):
        assert expected in said


def test_kserves_client_works_unchanged(server: str, ask_client: Callable[..., Any]) -> None:
    records = [RECORDS[row] for row in ONLY_IN_FULL]
    found = ask_client("ask_kserve.py", url=server, grpc=GRPC[server], model="rows", records=records, columns=in_full())
    assert found["states"] == {"v1": [True, True], "v2": [True, True, True, False], "grpc": [True, True, True]}
    assert sorted(found["answers"]) == ["grpc", "v1", "v2, JSON", "v2, raw"]
    for way, probability in found["answers"].items():
        assert probability == pytest.approx([EXPECTED[row] for row in ONLY_IN_FULL], abs=1e-6), way
    assert found["id"] == "7"
    for said, expected in zip(found["errors"], ["must be given", "model 'none' is not known", "model 'none' is not known"], strict=True):
        assert expected in said


def test_texts_are_answered_alike(server: str) -> None:
    expected = tiny_probability({"text": "great"})
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["great"]}
    with Client(server, model="texts") as client:
        assert client.predict("great")["sentiment"] == "POSITIVE"
        assert client.predict_batch(["great", "awful"])[0]["confidence"] == pytest.approx(expected)
    assert asked(f"{server}/v1/models/texts:predict", {"instances": ["great"]})["predictions"][0]["probability"] == pytest.approx(expected)
    assert asked(f"{server}/v2/models/texts/infer", {"inputs": [tensor]})["outputs"][1]["data"][1] == pytest.approx(expected)


def test_the_client_tells_what_was_wrong(server: str) -> None:
    with Client(server) as client:
        assert client.health()["status"] == "healthy"
        assert client.model_info()["name"] == "rows"
        with pytest.raises(DataError, match="must be a number") as caught:
            client.predict({**EXAMPLE, "distance": "far"})
        assert caught.value.field == "distance"
        assert client.predict(EXAMPLE)["probability"] == pytest.approx(EXPECTED[0])
    with Client(server, model="none") as client, pytest.raises(ConfigError, match="model 'none' is not known"):
        client.predict(EXAMPLE)
    with pytest.raises(Unavailable, match="must answer"):
        Client("http://127.0.0.1:1").health()


@pytest.mark.parametrize(
    ("path", "status"),
    [("/predict", 422), ("/v2/models/rows/infer", 422), ("/v2/models/none/infer", 404), ("/nowhere", 404), ("/health", 405)],
)
def test_errors_are_json_of_their_protocol(server: str, path: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        asked(server + path, {})
    with caught.value as answer:
        assert answer.code == status
        assert isinstance(json.loads(answer.read())["error"], str if path.startswith("/v2") else dict)
