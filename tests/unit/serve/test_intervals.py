"""A regression with an interval, over every way of asking."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tidemill.core.events import Events
from tidemill.core.package import Package
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.docs import openapi
from tidemill.serve.http import ARROW_STREAM, Request, Response
from tidemill.serve.server import load
from tidemill.testing.packages import EXAMPLE, tiny_package, tiny_score

RECORDS = [EXAMPLE, {**EXAMPLE, "distance": 0.0}]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("package") / "fares", task="interval", name="fares")


@pytest.fixture
def app(package: Package) -> App:
    return load([package], config=ServeConfig(), events=Events())


def post(app: App, path: str, body: Any, **headers: str) -> Response:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return app.handle(Request("POST", path, "", named, json.dumps(body).encode()))


def ends(record: dict[str, Any]) -> list[float]:
    return [tiny_score(record) - 1, tiny_score(record) + 2]


def test_one_record_is_answered_with_both_ends(app: App) -> None:
    answer = json.loads(post(app, "/predict", EXAMPLE).body)
    assert list(answer) == ["prediction", "interval", "model", "version"]
    assert answer["prediction"] == pytest.approx(tiny_score(EXAMPLE), abs=1e-5)
    assert answer["interval"] == pytest.approx(ends(EXAMPLE), abs=1e-5)


def test_many_records_in_json_and_arrow(app: App) -> None:
    rows = json.loads(post(app, "/predict_batch", {"records": RECORDS}).body)["predictions"]
    response = post(app, "/predict_batch", {"records": RECORDS}, accept=ARROW_STREAM)
    table = pa.ipc.open_stream(io.BytesIO(response.body)).read_all()
    assert table.column_names == ["prediction", "prediction_low", "prediction_high"]
    for row, record, columns in zip(rows, RECORDS, table.to_pylist(), strict=True):
        assert row["interval"] == pytest.approx(ends(record), abs=1e-5)
        assert [columns["prediction_low"], columns["prediction_high"]] == row["interval"]


def test_the_protocols_answer_it_as_a_tensor_and_as_objects(app: App) -> None:
    inputs = [
        {"name": name, "shape": [1], "datatype": kind, "data": [EXAMPLE[name]]}
        for name, kind in {"distance": "FP64", "fare": "FP32", "seats": "INT64", "carrier": "BYTES", "weekend": "BOOL"}.items()
    ]
    body = {"inputs": [*inputs, {"name": "departs", "shape": [1], "datatype": "INT64", "data": [1_370_115_000_000_000]}]}
    found = {output["name"]: output for output in json.loads(post(app, "/v2/models/fares/infer", body).body)["outputs"]}
    assert list(found) == ["prediction", "interval"]
    assert (found["interval"]["datatype"], found["interval"]["shape"]) == ("FP32", [1, 2])
    assert found["interval"]["data"] == pytest.approx(ends(EXAMPLE), abs=1e-5)
    described = json.loads(app.handle(Request("GET", "/v2/models/fares", "", {}, b"")).body)["outputs"]
    assert described[-1] == {"name": "interval", "datatype": "FP32", "shape": [-1, 2]}
    (instance,) = json.loads(post(app, "/v1/models/fares:predict", {"instances": [EXAMPLE]}).body)["predictions"]
    assert instance["interval"] == pytest.approx(ends(EXAMPLE), abs=1e-5)


def test_openapi_says_what_it_holds(app: App) -> None:
    (model,) = app.models
    (answer,) = [schema for name, schema in openapi([model])["components"]["schemas"].items() if name.startswith("Answer")]
    assert answer["properties"]["interval"]["description"] == "low and high: holds the true value of 90% of rows"


def test_the_log_keeps_it(package: Package, tmp_path: Path) -> None:
    app = load([package], config=ServeConfig(log=True, log_folder=tmp_path), events=Events())
    post(app, "/predict", EXAMPLE)
    app.close()
    (line,) = [json.loads(line) for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert line["interval"] == pytest.approx(ends(EXAMPLE), abs=1e-5)
