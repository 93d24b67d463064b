"""The access log: what a line holds, what none ever holds, and traces that go on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.errors import ConfigError
from tidemill.core.package import Package
from tidemill.serve.access import keys
from tidemill.serve.access.config import AuthConfig
from tidemill.serve.access_log import AccessLog, Trace
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request, Response
from tidemill.serve.model import Model
from tidemill.testing.packages import EXAMPLE, tiny_package

BODY = json.dumps(EXAMPLE).encode()
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("packages") / "tiny")


def answered(package: Package, folder: Path, *requests: Request, **config: Any) -> tuple[list[Response], list[dict[str, Any]]]:
    app = App([Model(package)], config=ServeConfig(access_log=folder / "logs" / "access.jsonl", **config), folder=folder)
    responses = [app.handle(request) for request in requests]
    app.close()
    text = (folder / "logs" / "access.jsonl").read_text(encoding="utf-8")
    return responses, [json.loads(line) for line in text.splitlines()]


def test_a_line_says_what_was_asked_and_how_it_went(package: Package, tmp_path: Path) -> None:
    request = Request("POST", "/models/tiny/predict", headers={"x-request-id": "order-17"}, body=BODY, client="10.0.0.1")
    (response,), (line,) = answered(package, tmp_path, request)
    assert {key: line[key] for key in ("id", "client", "method", "route", "status", "model", "rows", "received", "sent")} == {
        "id": "order-17", "client": "10.0.0.1", "method": "POST", "route": "/models/{model}/predict", "status": 200, "model": "tiny",
        "rows": 1, "received": len(BODY), "sent": len(response.body),
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["at"])
    assert line["ms"] > 0


def test_refusals_are_lines_too(package: Package, tmp_path: Path) -> None:
    _, lines = answered(package, tmp_path, Request("POST", "/predict", body=b"{"), Request("GET", "/nowhere"), Request("GET", "/health"))
    assert [(line["status"], line["route"]) for line in lines] == [(400, "/predict"), (404, "none"), (200, "/health")]
    assert all("model" not in line for line in lines)


def test_no_line_holds_what_is_nobodys_business(package: Package, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys.json", "alice", scopes=["predict"])
    body = json.dumps({**EXAMPLE, "carrier": "SECRET-VALUE"}).encode()
    requests = [
        Request("POST", "/predict", "token=SECRET-QUERY", {"x-api-key": key}, body),
        Request("POST", "/predict", "", {"authorization": "Bearer SECRET-TOKEN", "cookie": "SECRET-COOKIE"}, body),
        Request("GET", "/SECRET-PATH/\n{}", "", {"x-api-key": key}),
    ]
    _, lines = answered(package, tmp_path, *requests, auth=AuthConfig(keys=Path("keys.json")))
    assert [line["status"] for line in lines] == [200, 401, 404]
    assert lines[0]["caller"] == "alice"
    text = json.dumps(lines)
    assert "SECRET" not in text
    assert key.split("_", 2)[2] not in text


def test_a_trace_goes_on(package: Package, tmp_path: Path) -> None:
    (first, second), (one, other) = answered(
        package, tmp_path, Request("POST", "/predict", headers={"traceparent": PARENT}, body=BODY), Request("POST", "/predict", body=BODY)
    )
    assert one["trace"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert one["parent"] == "00f067aa0ba902b7"
    assert one["span"] != one["parent"]
    assert dict(first.headers)["traceparent"] == f"00-{one['trace']}-{one['span']}-01"
    assert "parent" not in other
    assert dict(second.headers)["traceparent"].startswith(f"00-{other['trace']}-")


@pytest.mark.parametrize(
    "header",
    [
        "", "garbage", PARENT.upper(), PARENT[:-1], "ff" + PARENT[2:], PARENT + "-more",
        "00-" + "0" * 32 + PARENT[35:], PARENT[:36] + "0" * 16 + "-01",
    ],
)  # fmt: skip
def test_a_header_that_is_none_begins_a_new_trace(header: str) -> None:
    trace = Trace.of(header)
    assert trace.parent is None
    assert trace.trace not in PARENT


def test_a_later_version_of_the_header_is_read_as_far_as_it_is_known() -> None:
    assert Trace.of("01" + PARENT[2:] + "-more").parent == "00f067aa0ba902b7"


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"serve\.access_log"):
        AccessLog(tmp_path / "file" / "access.jsonl")


def test_a_rotated_file_is_made_anew(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.jsonl")
    (tmp_path / "access.jsonl").rename(tmp_path / "access.1")
    log.append(id="one")
    log.close()
    assert json.loads((tmp_path / "access.jsonl").read_text())["id"] == "one"
