from __future__ import annotations

import datetime as dt
import email.utils
import gzip
import json
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tidemill.client.calls import address, predict, predict_batch, read_answer, retry_after, unpacked
from tidemill.client.frames import RecordRows
from tidemill.client.http1 import Reply
from tidemill.core.errors import ConfigError, DataError, TidemillError, Unavailable


def sent(value: Any) -> Any:
    body = predict("", {"a": value}).body
    assert body is not None
    return json.loads(body)["a"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(2**62), 2**62),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("航"), "航"),
        (float("nan"), None),
        (np.float64("inf"), None),
        (-float("inf"), None),
        (pd.NaT, None),
        (pd.NA, None),
        (dt.datetime(2013, 6, 1, 19, 30, tzinfo=dt.UTC), "2013-06-01T19:30:00+00:00"),
        (dt.date(2013, 6, 1), "2013-06-01"),
        (np.datetime64("2013-06-01T19:30"), "2013-06-01T19:30:00"),
        (pd.Timestamp("2013-06-01", tz="UTC"), "2013-06-01T00:00:00+00:00"),
        (None, None),
        ("", ""),
        (b"\xff\xd8", "/9g="),
    ],
)
def test_values_of_notebooks_become_json(value: Any, expected: Any) -> None:
    assert sent(value) == expected


@pytest.mark.parametrize("value", [object(), {1, 2}, "\ud800", np.zeros(2)])
def test_what_json_cannot_hold_is_refused_before_it_is_sent(value: Any) -> None:
    with pytest.raises(DataError):
        sent(value)


def test_texts_go_in_the_shape_of_texts() -> None:
    assert json.loads(predict("", "great").body or b"") == {"text": "great"}
    assert json.loads(predict_batch("", ["a", "b"]).body or b"") == {"texts": ["a", "b"]}
    assert json.loads(predict_batch("", [{"a": 1}]).body or b"") == {"records": [{"a": 1}]}
    assert json.loads(predict_batch("", []).body or b"") == {"records": []}


def test_images_go_in_base64() -> None:
    assert json.loads(predict("", b"\xff\xd8").body or b"") == {"image": "/9g="}
    assert json.loads(predict_batch("", [b"\xff\xd8", b"\xff"]).body or b"") == {"images": ["/9g=", "/w=="]}
    assert RecordRows([b"x" * 3_000_000] * 10).part_rows == 2


def test_a_model_has_an_address_by_name_and_version() -> None:
    assert address(None, None) == ""
    assert address("flights", None) == "/models/flights"
    assert address("a/b", "v 1") == "/models/a%2Fb/versions/v%201"


def error(status: int, headers: dict[str, str] | None = None, **parts: Any) -> Reply:
    return Reply(status, headers or {}, json.dumps({"error": {"field": None, "reason": "why", "hint": None, **parts}}).encode())


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, DataError), (413, DataError), (422, DataError), (401, ConfigError), (403, ConfigError), (404, ConfigError), (405, ConfigError),
     (415, ConfigError), (408, Unavailable), (429, Unavailable), (503, Unavailable), (504, Unavailable), (500, TidemillError)],
)  # fmt: skip
def test_each_refusal_is_its_error(status: int, kind: type[TidemillError]) -> None:
    with pytest.raises(kind, match="why; mend it") as caught:
        read_answer(error(status, {"retry-after": "7"}, field="a", hint="mend it"))
    assert type(caught.value) is kind
    if isinstance(caught.value, DataError):
        assert caught.value.field == "a"
    if isinstance(caught.value, Unavailable):
        assert caught.value.retry_after_s == 7


def test_errors_of_the_protocols_and_of_others_are_read() -> None:
    with pytest.raises(ConfigError, match="model 'a' is not known"):
        read_answer(Reply(404, {}, b'{"error": "model \'a\' is not known"}'))
    with pytest.raises(TidemillError, match="must answer with JSON, got status 502; is it a Tidemill server"):
        read_answer(Reply(502, {}, b"<html>"))
    with pytest.raises(ConfigError, match=r"\[1\]"):
        read_answer(Reply(404, {}, b"[1]"))


@pytest.mark.parametrize(("said", "expected"), [("3", 3.0), ("0", 0.0), ("", None), ("soon", None), ("-3", None)])
def test_the_time_that_a_server_asks_for(said: str, expected: float | None) -> None:
    assert retry_after(Reply(503, {"retry-after": said}, b"")) == expected


def test_the_time_may_be_a_date() -> None:
    wait = retry_after(Reply(503, {"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)}, b""))
    assert wait is not None
    assert 50 < wait <= 60
    assert retry_after(Reply(503, {"retry-after": email.utils.formatdate(0, usegmt=True)}, b"")) == 0


def test_a_compressed_answer_is_unpacked() -> None:
    assert unpacked(Reply(200, {"content-encoding": "gzip"}, gzip.compress(b"{}"))).body == b"{}"
    assert unpacked(Reply(200, {}, b"{}")).body == b"{}"
    with pytest.raises(TidemillError, match="gzip"):
        unpacked(Reply(200, {"content-encoding": "gzip"}, b"{}"))
