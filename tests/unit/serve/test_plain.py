from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.serve.http import ARROW_FILE, ARROW_STREAM, Response
from tidemill.testing.packages import COLUMNS, EXAMPLE, tiny_probability, tiny_score

Ask = Callable[..., tuple[int, Any]]
Send = Callable[..., Response]

NULLS = dict.fromkeys(EXAMPLE)


def test_one_record_is_answered_with_the_common_fields(ask: Ask) -> None:
    status, answer = ask("POST", "/predict", EXAMPLE)
    assert status == 200
    assert list(answer) == ["prediction", "probability", "model", "version"]
    assert answer["prediction"] is True
    assert answer["probability"] == pytest.approx(tiny_probability(EXAMPLE), abs=1e-6)
    assert (answer["model"], answer["version"]) == ("binary", "3")


def test_probability_is_that_of_the_second_class_also_when_the_first_wins(ask: Ask) -> None:
    record = {**NULLS, "seats": 40}
    _, answer = ask("POST", "/predict", record)
    assert answer["prediction"] is False
    assert answer["probability"] == pytest.approx(tiny_probability(record), abs=1e-6)


@pytest.mark.parametrize("field", list(EXAMPLE))
def test_a_null_is_a_missing_value_in_every_type(ask: Ask, field: str) -> None:
    record = {**EXAMPLE, field: None}
    status, answer = ask("POST", "/predict", record)
    assert status == 200
    assert answer["probability"] == pytest.approx(tiny_probability(record), abs=1e-6)


def test_a_multiclass_answer_names_every_class(ask: Ask) -> None:
    _, answer = ask("POST", "/models/multiclass/predict", EXAMPLE)
    score = tiny_score(EXAMPLE)
    total = math.exp(score) + math.exp(-score) + 1
    assert answer["prediction"] == "high"
    assert answer["probability"] == pytest.approx(
        {"high": math.exp(score) / total, "low": math.exp(-score) / total, "mid": 1 / total}, abs=1e-6
    )


def test_a_regression_answers_a_number_and_no_probability(ask: Ask) -> None:
    status, answer = ask("POST", "/models/regression/predict", EXAMPLE)
    assert status == 200
    assert answer["prediction"] == pytest.approx(tiny_score(EXAMPLE), abs=1e-5)
    assert "probability" not in answer


def test_a_sentiment_package_answers_in_the_words_of_tutorials(ask: Ask) -> None:
    status, answer = ask("POST", "/models/text/predict", {"text": "awful"})
    assert status == 200
    assert answer["sentiment"] == answer["prediction"] == "NEGATIVE"
    assert answer["confidence"] == pytest.approx(1 - tiny_probability({"text": "awful"}), abs=1e-6)
    assert answer["probability"] == pytest.approx(tiny_probability({"text": "awful"}), abs=1e-6)
    status, answer = ask("POST", "/models/text/predict_batch", {"texts": ["great", "awful", "neither"]})
    assert [row["sentiment"] for row in answer["predictions"]][:2] == ["POSITIVE", "NEGATIVE"]
    assert answer["predictions"][2]["confidence"] == pytest.approx(0.5)


def test_an_embedding_is_a_list_of_numbers(ask: Ask) -> None:
    assert ask("POST", "/models/embedding/predict", {"text": "great"})[1]["prediction"] == [3.0, 0.0, -3.0, 1.5]
    assert ask("POST", "/models/embedding/predict_batch", {"texts": ["great"]})[1]["predictions"] == [{"prediction": [3.0, 0.0, -3.0, 1.5]}]


def test_a_batch_answers_in_order_as_single_records_do(ask: Ask) -> None:
    records = [{**EXAMPLE, "carrier": carrier, "seats": i} for i, carrier in enumerate(["UA", "DL", "航空", "", None, "no such"])]
    status, answer = ask("POST", "/predict_batch", {"records": records})
    assert status == 200
    assert (answer["model"], answer["version"]) == ("binary", "3")
    singles = [ask("POST", "/predict", record)[1] for record in records]
    assert answer["predictions"] == [{key: single[key] for key in ("prediction", "probability")} for single in singles]


def test_unknown_fields_are_ignored(ask: Ask) -> None:
    assert ask("POST", "/predict", {**EXAMPLE, "surplus": [1, {"a": 2}]}) == ask("POST", "/predict", EXAMPLE)


@pytest.mark.parametrize("media", ["application/json; charset=utf-8", "application/x-www-form-urlencoded", "application/vnd.api+json", ""])
def test_json_is_read_under_the_names_it_comes_with(ask: Ask, media: str) -> None:
    assert ask("POST", "/predict", EXAMPLE, content_type=media)[0] == 200


BAD = [
    ("no body", b"", 400, None, "must be JSON, got none"),
    ("cut", b'{"distance": 1', 400, None, "must be JSON"),
    ("not utf-8", b'{"distance": "\xff"}', 400, None, "UTF-8"),
    ("lone surrogate", b'{"carrier": "\\ud800"}', 400, None, "JSON"),
    ("surrogate bytes", b'{"carrier": "\xed\xa0\x80"}', 400, None, "UTF-8"),
    ("nan", b'{"distance": NaN}', 400, None, "JSON"),
    ("number beyond double", b'{"distance": 1e999}', 400, None, "out of range"),
    ("deep", b'{"a":' * 100_000, 400, None, "nests too deep"),
    ("digits without end", b'{"seats": ' + b"9" * 10_000 + b"}", 400, None, "out of range"),
    ("trailing", b"{} {}", 400, None, "JSON"),
    ("list", b"[]", 422, None, "one record, an object of fields, got a list"),
    ("number", b"1", 422, None, "got a number"),
    ("null", b"null", 422, None, "got null"),
    (
        "missing field",
        json.dumps({**EXAMPLE, "seats": None} | {"fare": 1.0}).replace('"seats"', '"seat"').encode(),
        422,
        "seats",
        "must be given",
    ),
    ("text for a number", {**EXAMPLE, "distance": "far"}, 422, "distance", "must be a number or null, got 'far'"),
    ("number for a text", {**EXAMPLE, "carrier": 7}, 422, "carrier", "must be text or null"),
    ("fraction for a whole number", {**EXAMPLE, "seats": 1.5}, 422, "seats", "whole number"),
    ("whole number beyond 64 bits", {**EXAMPLE, "seats": 2**63}, 422, "seats", "64 bits"),
    ("number beyond double as digits", {**EXAMPLE, "distance": 10**400}, 422, "distance", "float64"),
    ("number for a boolean", {**EXAMPLE, "weekend": 1}, 422, "weekend", "true, false or null"),
    ("boolean for a number", {**EXAMPLE, "distance": True}, 422, "distance", "a number"),
    ("no time", {**EXAMPLE, "departs": "yesterday"}, 422, "departs", "ISO 8601"),
    ("object for a number", {**EXAMPLE, "distance": {"a": 1}}, 422, "distance", "a number"),
    ("list for a text", {**EXAMPLE, "carrier": ["UA"]}, 422, "carrier", "text"),
]


@pytest.mark.parametrize(("body", "status", "field", "reason"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_refused_with_field_and_reason(
    ask: Ask, seen: list[Any], body: bytes | dict[str, Any], status: int, field: str | None, reason: str
) -> None:
    refused(ask("POST", "/predict", body), status, field, reason)
    if isinstance(body, dict):
        refused(ask("POST", "/predict_batch", {"records": [EXAMPLE, body]}), status, field, reason)
    elif status == 400:
        refused(ask("POST", "/predict_batch", body), status, field, reason)
    assert not [event for event in seen if event.level == "error"]


def refused(answered: tuple[int, Any], status: int, field: str | None, reason: str) -> None:
    got, answer = answered
    assert got == status
    assert answer["error"]["field"] == field
    assert reason in answer["error"]["reason"]
    assert set(answer["error"]) == {"field", "reason", "hint"}


def test_a_misspelt_field_gets_the_nearest_name(ask: Ask) -> None:
    record = {("distanse" if key == "distance" else key): value for key, value in EXAMPLE.items()}
    assert ask("POST", "/predict", record)[1]["error"] == {
        "field": "distance",
        "reason": "field 'distance' must be given",
        "hint": "did you mean 'distanse'?",
    }


@pytest.mark.parametrize(
    ("body", "status", "field", "reason"),
    [
        ({"records": []}, 422, None, "at least one row"),
        ({"records": [EXAMPLE] * 51}, 413, None, "at most 50 rows"),
        ({"rows": [EXAMPLE]}, 422, "records", "must be a list, got no such field"),
        ({"records": EXAMPLE}, 422, "records", "must be a list, got an object"),
        ({"records": [EXAMPLE, 5]}, 422, None, "every record must be an object"),
        ({"records": [EXAMPLE, None]}, 422, None, "every record must be an object"),
        ({"records": [EXAMPLE, "text"]}, 422, None, "every record must be an object"),
        ({"records": [[1]]}, 422, None, "every record must be an object"),
        ([EXAMPLE], 422, None, "an object with 'records', got a list"),
    ],
)
def test_a_bad_batch_is_refused(ask: Ask, body: Any, status: int, field: str | None, reason: str) -> None:
    got, answer = ask("POST", "/predict_batch", body)
    assert (got, answer["error"]["field"]) == (status, field)
    assert reason in answer["error"]["reason"]


@pytest.mark.parametrize("body", [{"text": 5}, {}, {"texts": ["a"]}])
def test_a_text_must_be_a_text(ask: Ask, body: dict[str, Any]) -> None:
    status, answer = ask("POST", "/models/text/predict", body)
    assert (status, answer["error"]["field"]) == (422, "text")


def test_another_media_type_is_refused(ask: Ask) -> None:
    status, answer = ask("POST", "/predict", b"<a/>", content_type="application/xml")
    assert status == 415
    assert "must be application/json, got application/xml" in answer["error"]["reason"]


# Arrow.


def batch() -> pa.Table:
    records = [{**EXAMPLE, "seats": i or None, "carrier": name} for i, name in enumerate(["UA", "DL", None, "UA"])]
    table = pa.Table.from_pylist([{**record, "departs": None} for record in records], schema=COLUMNS.to_arrow())
    return table.append_column("surplus", pa.array([1, 2, 3, 4]))


def ipc(table: pa.Table, kind: str) -> bytes:
    sink = io.BytesIO()
    with (pa.ipc.new_file if kind == ARROW_FILE else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue()


def opened(body: bytes, kind: str) -> pa.Table:
    return pa.ipc.open_file(body).read_all() if kind == ARROW_FILE else pa.ipc.open_stream(body).read_all()


@pytest.mark.parametrize("kind", [ARROW_STREAM, ARROW_FILE])
def test_arrow_comes_back_as_arrow_with_the_answers_of_json(ask: Ask, send: Send, kind: str) -> None:
    table = batch()
    response = send("POST", "/predict_batch", ipc(table, kind), content_type=kind)
    assert (response.status, dict(response.headers)["content-type"]) == (200, kind)
    answers = opened(response.body, kind)
    assert answers.column_names == ["prediction", "probability"]
    rows = [{name: row[name] for name in COLUMNS.names} for row in table.to_pylist()]
    expected = ask("POST", "/predict_batch", {"records": rows})[1]["predictions"]
    assert answers.column("prediction").to_pylist() == [row["prediction"] for row in expected]
    assert answers.column("probability").to_pylist() == pytest.approx([row["probability"] for row in expected])


def test_arrow_may_be_answered_in_json_and_json_in_arrow(ask: Ask, send: Send) -> None:
    status, answer = ask("POST", "/predict_batch", ipc(batch(), ARROW_STREAM), content_type=ARROW_STREAM, accept="application/json")
    assert status == 200
    assert len(answer["predictions"]) == 4
    response = send("POST", "/models/multiclass/predict_batch", {"records": [EXAMPLE]}, accept=ARROW_STREAM)
    assert opened(response.body, ARROW_STREAM).column_names == ["prediction", "probability_high", "probability_low", "probability_mid"]
    response = send("POST", "/models/embedding/predict_batch", {"texts": ["great"]}, accept=ARROW_STREAM)
    assert opened(response.body, ARROW_STREAM).to_pylist() == [{"prediction": [3.0, 0.0, -3.0, 1.5]}]


@pytest.mark.parametrize("kind", [ARROW_STREAM, ARROW_FILE])
def test_what_is_not_arrow_is_refused(ask: Ask, kind: str) -> None:
    whole = ipc(batch(), kind)
    for body in (b"", b"{}", whole[: len(whole) // 2], b"ARROW1" + b"\0" * 40):
        status, answer = ask("POST", "/predict_batch", body, content_type=kind)
        assert status in (400, 422), body[:20]
        assert answer["error"]["reason"]


def test_an_arrow_column_of_another_type_is_named(ask: Ask) -> None:
    table = batch().set_column(0, "distance", pa.array(["a"] * 4))
    status, answer = ask("POST", "/predict_batch", ipc(table, ARROW_STREAM), content_type=ARROW_STREAM)
    assert (status, answer["error"]["field"]) == (422, "distance")


def test_arrow_without_a_row_is_refused(ask: Ask) -> None:
    status, answer = ask("POST", "/predict_batch", ipc(batch().slice(0, 0), ARROW_STREAM), content_type=ARROW_STREAM)
    assert status == 422
    assert "at least one row" in answer["error"]["reason"]


def test_arrow_where_pyarrow_is_missing_is_415_and_says_so(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    body = ipc(batch(), ARROW_STREAM)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, answer = ask("POST", "/predict_batch", body, content_type=ARROW_STREAM)
    assert status == 415
    assert "pyarrow" in answer["error"]["reason"]
    assert "application/json" in answer["error"]["hint"]
    assert ask("POST", "/predict_batch", {"records": [EXAMPLE]}, accept=ARROW_STREAM)[0] == 415
    assert ask("POST", "/predict_batch", {"records": [EXAMPLE]})[0] == 200


# Whatever comes, the answer is a status below 500.

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.fixed_dictionaries(dict.fromkeys(EXAMPLE, JSON_VALUES))


@given(
    body=JSON_VALUES | RECORDS | st.fixed_dictionaries({"records": st.lists(RECORDS, max_size=3)}),
    path=st.sampled_from(["/predict", "/predict_batch"]),
)
def test_no_json_makes_the_server_fail(fuzzed: Ask, body: Any, path: str) -> None:
    assert fuzzed("POST", path, body)[0] < 500


@given(
    body=st.binary(max_size=200),
    path=st.sampled_from(["/predict", "/predict_batch", "/v1/models/binary:predict", "/v2/models/binary/infer"]),
)
def test_no_bytes_make_the_server_fail(fuzzed: Ask, body: bytes, path: str) -> None:
    assert fuzzed("POST", path, body)[0] in (400, 422)


@pytest.fixture(scope="module")
def fuzzed(packages: Any) -> Ask:
    from tidemill.core.package import Package
    from tidemill.serve.config import ServeConfig
    from tidemill.serve.http import Request
    from tidemill.serve.server import load

    app = load([Package.open(packages / "binary")], config=ServeConfig())

    def ask(method: str, path: str, body: Any) -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = app.handle(Request(method, path, body=content))
        return response.status, json.loads(response.body)

    return ask
