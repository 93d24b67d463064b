from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.serve import tensors
from tidemill.serve.http import Refused, Response
from tidemill.testing.packages import EXAMPLE, tiny_probability, tiny_score

Ask = Callable[..., tuple[int, Any]]
Send = Callable[..., Response]

# 2013-06-01T19:30:00Z
DEPARTS = 1_370_115_000_000_000

COLUMNS: dict[str, dict[str, Any]] = {
    "distance": {"datatype": "FP64", "data": [1400.0, 0.0]},
    "fare": {"datatype": "FP32", "data": [12.5, None]},
    "seats": {"datatype": "INT64", "data": [3, 4]},
    "carrier": {"datatype": "BYTES", "data": ["UA", "DL"]},
    "weekend": {"datatype": "BOOL", "data": [True, False]},
    "departs": {"datatype": "INT64", "data": [DEPARTS, DEPARTS]},
}
RECORDS = [EXAMPLE, {**EXAMPLE, "distance": 0.0, "fare": None, "seats": 4, "carrier": "DL", "weekend": False}]


def request(**changes: Any) -> dict[str, Any]:
    """A whole request of two rows; `changes` replace a column's tensor, or leave it out where None."""
    columns = {**COLUMNS, **changes}
    inputs = [{"name": name, "shape": [2], **tensor} for name, tensor in columns.items() if tensor is not None]
    return {"inputs": inputs}


def infer(ask: Ask, body: dict[str, Any], model: str = "binary") -> dict[str, np.ndarray]:
    status, answer = ask("POST", f"/v2/models/{model}/infer", body)
    assert status == 200, answer
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer["outputs"]}


def test_columns_come_as_tensors_and_answers_go_as_tensors(ask: Ask) -> None:
    status, answer = ask("POST", "/v2/models/binary/infer", request())
    assert status == 200
    assert (answer["model_name"], answer["model_version"]) == ("binary", "3")
    assert "id" not in answer
    prediction, probability = answer["outputs"]
    expected = [tiny_probability(record) for record in RECORDS]
    assert prediction == {"name": "prediction", "datatype": "BOOL", "shape": [2], "data": [p > 0.5 for p in expected]}
    assert (probability["name"], probability["datatype"], probability["shape"]) == ("probability", "FP32", [2, 2])
    assert np.array(probability["data"]).reshape(2, 2)[:, 1] == pytest.approx(expected, abs=1e-6)


def test_the_protocol_agrees_with_plain_rest(ask: Ask) -> None:
    plain = ask("POST", "/models/multiclass/predict_batch", {"records": RECORDS})[1]["predictions"]
    answer = infer(ask, request(), "multiclass")
    assert answer["prediction"].tolist() == [row["prediction"] for row in plain]
    assert answer["probability"] == pytest.approx(np.array([list(row["probability"].values()) for row in plain]))
    assert infer(ask, request(), "regression")["prediction"] == pytest.approx([tiny_score(record) for record in RECORDS], abs=1e-5)


def test_an_id_comes_back_and_outputs_may_be_chosen(ask: Ask) -> None:
    body = {
        **request(),
        "id": "request-7",
        "outputs": [{"name": "probability", "parameters": {"classification": 0}}],
        "parameters": {"a": 1},
    }
    _, answer = ask("POST", "/v2/models/binary/versions/3/infer", body)
    assert answer["id"] == "request-7"
    assert [output["name"] for output in answer["outputs"]] == ["probability"]


@pytest.mark.parametrize(
    "same",
    [
        {"distance": {"datatype": "FP32", "data": [1400.0, 0.0]}},
        {"distance": {"datatype": "INT32", "data": [1400, 0]}},
        {"distance": {"datatype": "FP64", "data": [[1400.0], [0.0]], "shape": [2, 1]}},
        {"fare": {"datatype": "FP64", "data": [12.5, None]}},
        {"seats": {"datatype": "UINT8", "data": [3, 4]}},
        {"weekend": {"datatype": "UINT8", "data": [1, 0]}},
        {"weekend": {"datatype": "BOOL", "data": [1, 0]}},
        {"seats__valid": {"datatype": "BOOL", "data": [True, True]}},
        {"surplus": {"datatype": "FP32", "data": [1, 2]}},
    ],
)
def test_other_forms_of_the_same_rows_give_the_same_answers(ask: Ask, same: dict[str, Any]) -> None:
    assert infer(ask, request(**same))["probability"].tolist() == infer(ask, request())["probability"].tolist()


@pytest.mark.parametrize("column", list(COLUMNS))
def test_null_stands_for_a_missing_value(ask: Ask, column: str) -> None:
    body = request(**{column: {**COLUMNS[column], "data": [None, COLUMNS[column]["data"][1]]}})
    assert infer(ask, body)["probability"][0, 1] == pytest.approx(tiny_probability({**EXAMPLE, column: None}), abs=1e-6)


def test_a_tensor_may_say_which_whole_numbers_are_given(ask: Ask) -> None:
    body = request(seats__valid={"datatype": "BOOL", "data": [False, True]})
    assert infer(ask, body)["probability"][0, 1] == pytest.approx(tiny_probability({**EXAMPLE, "seats": None}), abs=1e-6)


def test_texts_go_to_a_text_package(ask: Ask) -> None:
    body = {"inputs": [{"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": ["great", "awful"]}]}
    assert infer(ask, body, "text")["prediction"].tolist() == ["POSITIVE", "NEGATIVE"]
    assert infer(ask, body, "embedding")["prediction"].tolist() == [[3, 0, -3, 1.5], [-3, 0, 3, -1.5]]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "must be JSON, got none"),
        (b"{", 400, "must be JSON"),
        ([], 422, "Expected `object`, got `array`"),
        ({}, 422, "missing required field `inputs`"),
        ({"inputs": [{"name": "distance"}]}, 422, "missing required field `shape`"),
        ({"inputs": [], "id": 5}, 422, "Expected `str | null`, got `int`"),
        ({"inputs": []}, 422, "field 'distance' must be given"),
        (request(fare=None), 422, "field 'fare' must be given"),
        (request(fare={"datatype": "FP8", "data": [1, 2]}), 422, "must have a datatype of BOOL"),
        (request(fare={"datatype": "FP32", "data": [1]}), 422, "of shape [2] must hold 2 values, got 1"),
        (request(fare={"datatype": "FP32", "data": [1], "shape": [1]}), 422, "must hold 2 rows like the others, got 1"),
        (request(fare={"datatype": "FP32", "data": [1, 2], "shape": [1, 2]}), 422, "must have shape [N] or [N, 1]"),
        (request(fare={"datatype": "FP32", "data": [1, 2], "shape": [1, 1, 2]}), 422, "must have shape [N] or [N, 1]"),
        (request(fare={"datatype": "FP32", "data": [1, 2], "shape": [-1]}), 422, "must have shape [N] or [N, 1]"),
        (request(fare={"datatype": "FP32", "data": [1, 2], "shape": [2**62]}), 422, "must have shape [N] or [N, 1]"),
        (request(fare={"datatype": "FP32", "data": ["1", "2"]}), 422, "must hold numbers"),
        (request(fare={"datatype": "FP32", "data": [True, False]}), 422, "must hold numbers"),
        (request(fare={"datatype": "FP32", "data": [10**400, 1]}), 422, "must hold FP32 values"),
        (request(fare={"datatype": "FP32", "data": {"a": 1}}), 422, "in a list under 'data'"),
        (request(fare={"datatype": "FP32"}), 422, "in a list under 'data'"),
        (request(fare={"datatype": "FP32", "data": [[1], 2]}), 422, "nested evenly"),
        (request(fare={"datatype": "FP32", "data": [[[1]], [[2]]]}), 422, "must hold numbers"),
        (request(fare={"datatype": "BYTES", "data": ["1", "2"]}), 422, "must be float32"),
        (request(seats={"datatype": "FP32", "data": [1, 2]}), 422, "must be int64"),
        (request(seats={"datatype": "INT8", "data": [1, 200]}), 422, "must hold INT8 values, -128 to 127"),
        (request(seats={"datatype": "INT64", "data": [1, 2**63]}), 422, "must hold INT64 values"),
        (request(seats={"datatype": "UINT64", "data": [1, 2**63]}), 422, "must fit in int64"),
        (request(weekend={"datatype": "BOOL", "data": [2, 1]}), 422, "must hold true or false"),
        (request(weekend={"datatype": "UINT8", "data": [3, 1]}), 422, "must be 0, 1 or 2"),
        (request(carrier={"datatype": "BYTES", "data": [1, 2]}), 422, "must hold texts"),
        (request(carrier={"datatype": "FP32", "data": [1, 2]}), 422, "must be text"),
        ({"inputs": [*request()["inputs"], request()["inputs"][0]]}, 422, "must be given once"),
        ({**request(), "outputs": [{"name": "logits"}]}, 422, "output 'logits' is not known (known: prediction, probability)"),
        (
            {"inputs": [{"name": n, "shape": [0], "datatype": t["datatype"], "data": []} for n, t in COLUMNS.items()]},
            422,
            "at least one row",
        ),
    ],
)
def test_bad_requests_are_refused_with_one_text(ask: Ask, seen: list[Any], body: Any, status: int, reason: str) -> None:
    got, answer = ask("POST", "/v2/models/binary/infer", body)
    assert got == status
    assert reason in answer["error"]
    assert not [event for event in seen if event.level == "error"]


# The binary tensor extension.


def binary(body: dict[str, Any], raw: bytes, **headers: str) -> dict[str, Any]:
    head = json.dumps(body).encode()
    return {"body": head + raw, "inference_header_content_length": str(len(head)), **headers}


RAW = {
    "distance": np.array([1400.0, 0.0]).tobytes(),
    "fare": np.array([12.5, np.nan], np.float32).tobytes(),
    "seats": np.array([3, 4]).tobytes(),
    "carrier": b"".join(struct.pack("<I", len(text)) + text for text in (b"UA", b"DL")),
    "weekend": bytes([1, 0]),
    "departs": np.array([DEPARTS, DEPARTS]).tobytes(),
}


def raw_request(**changes: bytes) -> tuple[dict[str, Any], bytes]:
    raw = {**RAW, **changes}
    inputs = [
        {"name": n, "shape": [2, 1], "datatype": t["datatype"], "parameters": {"binary_data_size": len(raw[n])}} for n, t in COLUMNS.items()
    ]  # fmt: skip
    return {"inputs": inputs}, b"".join(raw[name] for name in COLUMNS)


def test_raw_tensors_give_the_answers_of_json(ask: Ask, send: Send) -> None:
    body, raw = raw_request()
    asked = binary({**body, "parameters": {"binary_data_output": True}, "id": "7"}, raw)
    response = send("POST", "/v2/models/binary/infer", asked.pop("body"), **asked)
    assert response.status == 200, response.body
    length = int(dict(response.headers)["inference-header-content-length"])
    head, rest = json.loads(response.body[:length]), response.body[length:]
    assert head["id"] == "7"
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert sizes == [2, 16]
    expected = infer(ask, request())
    assert np.frombuffer(rest[:2], bool).tolist() == expected["prediction"].tolist()
    assert np.frombuffer(rest[2:], np.float32).reshape(2, 2) == pytest.approx(expected["probability"])


def test_raw_and_json_tensors_may_be_mixed(ask: Ask, send: Send) -> None:
    body = request(fare={"datatype": "FP32", "parameters": {"binary_data_size": 8}})
    body["outputs"] = [
        {"name": "probability", "parameters": {"binary_data": False}},
        {"name": "prediction", "parameters": {"binary_data": True}},
    ]
    asked = binary(body, RAW["fare"])
    response = send("POST", "/v2/models/binary/infer", asked.pop("body"), **asked)
    head = json.loads(response.body[: int(dict(response.headers)["inference-header-content-length"])])
    assert "data" in head["outputs"][0]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 2}
    assert response.body.endswith(bytes([1, 0]))


@pytest.mark.parametrize(
    ("changes", "extra", "reason"),
    [
        ({"fare": b"1234"}, b"", "must hold 8 bytes, got 4"),
        ({"carrier": b"\xff\xff\xff\xff" + b"a" * 8}, b"", "must hold 2 texts, each after its length"),
        ({"carrier": struct.pack("<I", 2) + b"UA"}, b"", "must hold 2 texts, each after its length"),
        ({"carrier": RAW["carrier"] + b"1"}, b"", "must hold 2 texts and no more"),
        ({"carrier": struct.pack("<I", 1) + b"\xff" + struct.pack("<I", 0)}, b"", "must be UTF-8"),
        ({}, b"left", "4 bytes are left"),
    ],
)
def test_bad_raw_tensors_are_refused(ask: Ask, changes: dict[str, bytes], extra: bytes, reason: str) -> None:
    body, raw = raw_request(**changes)
    status, answer = ask("POST", "/v2/models/binary/infer", **binary(body, raw + extra))
    assert status in (400, 422)
    assert reason in answer["error"]


@pytest.mark.parametrize("stated", ["-1", "1e3", "999999", "", "a", "²"])
def test_a_wrong_length_of_the_json_part_is_refused(ask: Ask, stated: str) -> None:
    status, _ = ask("POST", "/v2/models/binary/infer", json.dumps(request()).encode(), inference_header_content_length=stated)
    assert status == 400


@pytest.mark.parametrize("size", [-1, 10**9, 2.5, "8", True])
def test_a_wrong_size_of_a_raw_tensor_is_refused(ask: Ask, size: Any) -> None:
    body = request(fare={"datatype": "FP32", "parameters": {"binary_data_size": size}})
    status, answer = ask("POST", "/v2/models/binary/infer", **binary(body, RAW["fare"]))
    assert status == 400
    assert "binary_data_size" in answer["error"]


@given(st.lists(st.text(), min_size=1, max_size=8))
def test_texts_survive_the_raw_form(texts: list[str]) -> None:
    raw = tensors.to_bytes(np.array(texts, object))
    assert [value.decode() for value in tensors.from_bytes("a", "BYTES", [len(texts)], memoryview(raw))] == texts


def test_half_precision_and_bfloat16_are_read() -> None:
    assert tensors.from_bytes("a", "FP16", [2], memoryview(np.array([1.5, -2], np.float16).tobytes())).tolist() == [1.5, -2.0]
    bf16 = (np.array([1.5, -2], np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    assert tensors.from_bytes("a", "BF16", [2], memoryview(bf16)).tolist() == [1.5, -2.0]


def test_a_shape_of_many_values_takes_no_memory() -> None:
    with pytest.raises(Refused, match="must hold"):
        tensors.from_bytes("a", "BYTES", [2**31 - 1], memoryview(b"\0\0\0\0"))


# Metadata.


def test_metadata_names_the_tensors(ask: Ask) -> None:
    _, answer = ask("GET", "/v2/models/binary")
    assert (answer["name"], answer["versions"], answer["platform"]) == ("binary", ["3"], "onnxruntime_onnx")
    assert {tensor["name"]: tensor["datatype"] for tensor in answer["inputs"]} == {name: t["datatype"] for name, t in COLUMNS.items()}
    assert answer["outputs"] == [
        {"name": "prediction", "datatype": "BOOL", "shape": [-1]},
        {"name": "probability", "datatype": "FP32", "shape": [-1, 2]},
    ]
    assert ask("GET", "/v2/models/embedding")[1]["outputs"] == [{"name": "prediction", "datatype": "FP32", "shape": [-1, 4]}]


def test_the_server_says_what_it_is(ask: Ask) -> None:
    _, answer = ask("GET", "/v2")
    assert answer["name"] == "tidemill"
    assert answer["extensions"] == ["binary_tensor_data"]
    assert ask("GET", "/v2/health/live") == (200, {"live": True})
    assert ask("GET", "/v2/health/ready") == (200, {"ready": True})
    assert ask("GET", "/v2/models/binary/ready") == (200, {"name": "binary", "ready": True})


# KServe v1.


def test_the_first_protocol_takes_instances(ask: Ask) -> None:
    plain = ask("POST", "/predict_batch", {"records": RECORDS})[1]["predictions"]
    assert ask("POST", "/v1/models/binary:predict", {"instances": RECORDS}) == (200, {"predictions": plain})
    _, answer = ask("POST", "/v1/models/regression:predict", {"instances": RECORDS})
    assert answer["predictions"] == pytest.approx([tiny_score(record) for record in RECORDS], abs=1e-5)
    _, answer = ask("POST", "/v1/models/text:predict", {"instances": ["great", {"text": "awful"}]})
    assert [row["prediction"] for row in answer["predictions"]] == ["POSITIVE", "NEGATIVE"]
    assert ask("GET", "/v1/models")[1]["models"][0] == "binary"
    assert ask("GET", "/v1/models/binary") == (200, {"name": "binary", "ready": True})


@pytest.mark.parametrize("body", [{}, {"instances": []}, {"instances": {}}, {"instances": [5]}, [], {"inputs": {}}])
def test_bad_instances_are_refused_with_one_text(ask: Ask, body: Any) -> None:
    status, answer = ask("POST", "/v1/models/binary:predict", body)
    assert status == 422
    assert isinstance(answer["error"], str)
