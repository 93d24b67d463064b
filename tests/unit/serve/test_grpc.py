"""The inference protocol over gRPC: the same answers, refusals, credentials and limits as over HTTP."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.core.errors import Conflict
from tidemill.core.package import Package
from tidemill.serve.access import keys
from tidemill.serve.access.config import AuthConfig
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.grpc.messages import METHODS, PACKAGE, SERVICE, messages
from tidemill.serve.grpc.server import CALLS
from tidemill.serve.http import Request
from tidemill.serve.limits import LimitsConfig, Rate
from tidemill.serve.model import Model
from tidemill.testing.packages import EXAMPLE, tiny_package, tiny_probability

RECORDS = [EXAMPLE, {**EXAMPLE, "carrier": "DL", "distance": 10.0}, {**EXAMPLE, "carrier": "航空", "weekend": False}]
TIMES = [1_370_115_000_000_000] * 3
COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "distance": ("FP64", [1400.0, 10.0, 1400.0]),
    "fare": ("FP32", [12.5] * 3),
    "seats": ("INT64", [3] * 3),
    "carrier": ("BYTES", [b"UA", b"DL", "航空".encode()]),
    "weekend": ("BOOL", [True, True, False]),
    "departs": ("INT64", TIMES),
}
CONTENTS = {"FP64": "fp64_contents", "FP32": "fp32_contents", "INT64": "int64_contents", "BYTES": "bytes_contents", "BOOL": "bool_contents"}
NUMPY = {"FP64": np.float64, "FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_}


Serve = Callable[..., AbstractContextManager[int]]


class Caller:
    """Calls methods by name."""

    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.port = port
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def __call__(self, method: str, metadata: Any = (), **fields: Any) -> Any:
        request, _ = METHODS[method]
        return self.send(method, messages()[request](**fields), metadata)

    def send(self, method: str, message: Any, metadata: Any = ()) -> Any:
        _, response = METHODS[method]
        call = self.channel.unary_unary(
            f"/{PACKAGE}.{SERVICE}/{method}",
            request_serializer=lambda sent: sent if isinstance(sent, bytes) else sent.SerializeToString(),
            response_deserializer=messages()[response].FromString,
        )
        return call(message, metadata=metadata, timeout=20)

    def refused(self, method: str, metadata: Any = (), **fields: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self(method, metadata, **fields)
        return caught.value.code().name, caught.value.details()  # type: ignore[attr-defined]


@contextmanager
def caller(app: App, served: Serve) -> Iterator[Caller]:
    with served(app) as port:
        made = Caller(app, port)
        yield made
        made.channel.close()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("packages") / "tiny", version="3")


@pytest.fixture(scope="module")
def ask(package: Package, grpc_served: Serve) -> Iterator[Caller]:
    with caller(App([Model(package)], config=ServeConfig(max_body_mb=0.5)), grpc_served) as made:
        yield made


def tensors(*, raw: bool) -> dict[str, Any]:
    """Three rows, typed or raw."""
    inputs = []
    content = []
    for name, (kind, values) in COLUMNS.items():
        tensor: dict[str, Any] = {"name": name, "datatype": kind, "shape": [3, 1]}
        if not raw:
            tensor["contents"] = {CONTENTS[kind]: values}
        inputs.append(tensor)
        packed = b"".join(struct.pack("<I", len(v)) + v for v in values) if kind == "BYTES" else np.array(values, NUMPY[kind]).tobytes()
        content.append(packed)
    return {"inputs": inputs, **({"raw_input_contents": content} if raw else {})}


def probabilities(answer: Any) -> list[float]:
    place = [output.name for output in answer.outputs].index("probability")
    assert answer.outputs[place].datatype == "FP32"
    assert list(answer.outputs[place].shape) == [3, 2]
    return np.frombuffer(answer.raw_output_contents[place], np.float32).reshape(3, 2)[:, 1].tolist()


def test_what_the_server_says_of_itself(ask: Caller) -> None:
    assert ask("ServerLive").live
    assert ask("ServerReady").ready
    assert ask("ModelReady", name="tiny").ready
    assert ask("ModelReady", name="tiny", version="3").ready
    assert ask("ServerMetadata").name == "tidemill"
    described = ask("ModelMetadata", name="tiny")
    assert list(described.versions) == ["3"]
    assert {tensor.name: tensor.datatype for tensor in described.inputs} == {name: kind for name, (kind, _) in COLUMNS.items()}
    assert [tensor.name for tensor in described.outputs] == ["prediction", "probability"]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("version", ["", "3"])
def test_answers(ask: Caller, raw: bool, version: str) -> None:
    answer = ask("ModelInfer", model_name="tiny", model_version=version, id="order-17", **tensors(raw=raw))
    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "3", "order-17")
    assert probabilities(answer) == pytest.approx([tiny_probability(record) for record in RECORDS], abs=1e-6)
    place = [output.name for output in answer.outputs].index("prediction")
    predicted = np.frombuffer(answer.raw_output_contents[place], np.bool_).tolist()
    assert predicted == [tiny_probability(record) > 0.5 for record in RECORDS]


def test_only_the_outputs_that_are_asked_for(ask: Caller) -> None:
    answer = ask("ModelInfer", model_name="tiny", outputs=[{"name": "probability"}], **tensors(raw=True))
    assert [output.name for output in answer.outputs] == ["probability"]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"model_name": "none"}, "NOT_FOUND", "model 'none' is not known"),
        ({"model_version": "9"}, "NOT_FOUND", "version of 'tiny' '9' is not known"),
        ({"inputs": []}, "INVALID_ARGUMENT", "one entry for each of 0 inputs"),
        ({"raw_input_contents": []}, "INVALID_ARGUMENT", "distance"),
        ({"outputs": [{"name": "none"}]}, "INVALID_ARGUMENT", "output 'none' is not known"),
    ],
)
def test_refusals(ask: Caller, change: dict[str, Any], code: str, said: str) -> None:
    found, details = ask.refused("ModelInfer", **{"model_name": "tiny", **tensors(raw=True), **change})
    assert found == code
    assert said in details


def test_contents_of_one_kind_only(ask: Caller) -> None:
    both = {**tensors(raw=False), "raw_input_contents": tensors(raw=True)["raw_input_contents"]}
    assert ask.refused("ModelInfer", model_name="tiny", **both) == (
        "INVALID_ARGUMENT", "inputs must hold their values in contents or in raw_input_contents, not both",
    )  # fmt: skip
    half = {"name": "x", "datatype": "FP16", "shape": [1], "contents": {}}
    assert "or come raw" in ask.refused("ModelInfer", model_name="tiny", inputs=[half])[1]
    small = {"name": "x", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [300]}}
    assert ask.refused("ModelInfer", model_name="tiny", inputs=[small])[0] == "INVALID_ARGUMENT"


def test_a_message_above_the_limit_is_refused_by_the_transport(ask: Caller) -> None:
    large = {"name": "x", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [bytes(600_000)]}}
    assert ask.refused("ModelInfer", model_name="tiny", inputs=[large])[0] == "RESOURCE_EXHAUSTED"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_message_breaks_the_server(ask: Caller, data: Any) -> None:
    whole = messages()["ModelInferRequest"](model_name="tiny", **tensors(raw=data.draw(st.booleans()))).SerializeToString()
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(broken) - 1))
        broken[place] = data.draw(st.integers(0, 255))
    try:
        ask.send("ModelInfer", bytes(broken[: data.draw(st.integers(0, len(broken)))]))
    except grpc.RpcError as error:
        details = error.details()  # type: ignore[attr-defined]
        code = error.code().name  # type: ignore[attr-defined]
        assert code in ("INVALID_ARGUMENT", "NOT_FOUND"), (code, details)


def test_credentials_and_limits_hold_as_over_http(package: Package, tmp_path: Path, grpc_served: Serve) -> None:
    key = keys.add(tmp_path / "keys.json", "alice", scopes=["predict"])
    config = ServeConfig(auth=AuthConfig(keys=Path("keys.json")), limits=LimitsConfig(per_key=Rate(per_day=1)))
    with caller(App([Model(package)], config=config, folder=tmp_path), grpc_served) as ask:
        sent = {"model_name": "tiny", **tensors(raw=True)}
        assert ask("ServerLive").live
        assert ask.refused("ModelInfer", **sent)[0] == "UNAUTHENTICATED"
        with_key = (("authorization", f"Bearer {key}"),)
        assert ask.refused("ModelMetadata", with_key, name="tiny")[0] == "PERMISSION_DENIED"
        assert len(probabilities(ask("ModelInfer", with_key, **sent))) == 3
        assert ask.refused("ModelInfer", with_key, **sent)[0] == "RESOURCE_EXHAUSTED"


def test_calls_are_counted_with_the_others(ask: Caller) -> None:
    ask("ModelInfer", model_name="tiny", **tensors(raw=True))
    text = ask.app.handle(Request("GET", "/metrics")).body.decode()
    assert 'tidemill_requests_total{route="/v2/models/{model}/infer",status="200"}' in text


def test_while_it_stops_it_is_not_ready(package: Package, grpc_served: Serve) -> None:
    with caller(App([Model(package)]), grpc_served) as ask:
        ask.app.draining = True
        assert not ask("ServerReady").ready
        assert not ask("ModelReady", name="tiny").ready


def test_a_taken_port(ask: Caller, grpc_served: Serve) -> None:
    with pytest.raises(Conflict, match="must be free for gRPC"), grpc_served(ask.app, ask.port):
        pass


def test_calls_without_their_message_hold_up_nobody_and_end(package: Package, grpc_served: Serve) -> None:
    """More than a connection may have under way, on several connections: the first are refused when their time is over, and all the while others are answered."""
    config = ServeConfig(body_timeout_s=2.0)
    with caller(App([Model(package)], config=config), grpc_served) as ask:
        sent = {"model_name": "tiny", **tensors(raw=True)}
        ask("ModelInfer", **sent)
        ending = threading.Event()

        def nothing() -> Iterator[bytes]:
            yield from iter(lambda: ending.wait() and b"", b"")

        began = time.monotonic()
        channels = [grpc.insecure_channel(f"127.0.0.1:{ask.port}", [("grpc.use_local_subchannel_pool", 1)]) for _ in range(3)]
        held = [
            channel.stream_unary(f"/{PACKAGE}.{SERVICE}/ModelInfer").future(nothing()) for channel in channels for _ in range(CALLS // 2)
        ]
        assert len(probabilities(ask("ModelInfer", **sent))) == 3
        assert time.monotonic() - began < config.body_timeout_s  # while all of them were held
        codes = {call.code().name for call in held}
        ending.set()
        for channel in channels:
            channel.close()
        assert codes == {"DEADLINE_EXCEEDED"}
        assert all("within 2 s" in call.details() for call in held)


def test_a_call_that_ends_without_a_message(ask: Caller) -> None:
    call = ask.channel.stream_unary(f"/{PACKAGE}.{SERVICE}/ServerLive")
    with pytest.raises(grpc.RpcError) as caught:
        call(iter(()), timeout=20)
    assert caught.value.code().name == "INVALID_ARGUMENT"  # type: ignore[attr-defined]
    assert ask("ServerLive").live


def test_the_messages_are_the_protocols() -> None:
    """Field numbers are what two sides must agree on: one message by hand, byte by byte."""
    made = messages()["ModelInferRequest"](
        model_name="m", id="7", inputs=[{"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"p": {"bool_param": True}}}],
        outputs=[{"name": "y"}], raw_input_contents=[b"\x01"],
    )  # fmt: skip
    parameters = bytes([0x22, 7, 0x0A, 1]) + b"p" + bytes([0x12, 2, 0x08, 1])
    tensor = bytes([0x0A, 1]) + b"x" + bytes([0x12, 4]) + b"FP32" + bytes([0x1A, 1, 1]) + parameters
    expected = bytes([0x0A, 1]) + b"m" + bytes([0x1A, 1]) + b"7" + bytes([0x2A, len(tensor)]) + tensor
    expected += bytes([0x32, 3, 0x0A, 1]) + b"y" + bytes([0x3A, 1, 1])
    assert made.SerializeToString(deterministic=True) == expected


def test_typed_and_json_agree(ask: Caller) -> None:
    body = {"inputs": [
        {"name": name, "datatype": kind, "shape": [3, 1], "data": [v.decode() if isinstance(v, bytes) else v for v in values]}
        for name, (kind, values) in COLUMNS.items()
    ]}  # fmt: skip
    told = json.loads(ask.app.handle(Request("POST", "/v2/models/tiny/infer", body=json.dumps(body).encode())).body)
    rest = next(output["data"] for output in told["outputs"] if output["name"] == "probability")[1::2]
    assert probabilities(ask("ModelInfer", model_name="tiny", **tensors(raw=False))) == pytest.approx(rest, abs=1e-7)
