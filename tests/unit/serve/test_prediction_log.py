from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemill.core.errors import ConfigError
from tidemill.core.package import Package
from tidemill.serve import prediction_log
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request
from tidemill.serve.model import Model
from tidemill.serve.prediction_log import PredictionLog
from tidemill.testing.packages import EXAMPLE

NULLS = dict.fromkeys(EXAMPLE)


def logged(app: App, *asked: tuple[str, Any]) -> list[dict[str, Any]]:
    for path, body in asked:
        response = app.handle(Request("POST", path, headers={"x-request-id": "call"}, body=json.dumps(body).encode()))
        assert response.status == 200, response.body
    app.close()
    return [
        json.loads(line) for path in sorted(app.config.log_folder.glob("predictions-*.jsonl")) for line in path.read_bytes().splitlines()
    ]


def make(packages: Path, folder: Path, *names: str) -> App:
    models = [Model(Package.open(packages / name, version="3")) for name in names]
    return App(models, config=ServeConfig(log=True, log_folder=folder / "log"))


def test_a_row_is_a_line_with_what_came_and_what_went(packages: Path, tmp_path: Path) -> None:
    [line] = logged(make(packages, tmp_path, "binary"), ("/predict", {**EXAMPLE, "surplus": 1}))
    assert list(line) == ["at", "model", "version", "id", "inputs", "prediction", "probability"]
    assert (line["model"], line["version"], line["id"]) == ("binary", "3", "call")
    assert line["inputs"] == EXAMPLE
    assert line["prediction"] is True
    assert line["probability"] == pytest.approx(0.9537, abs=1e-4)
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(line["at"])
    assert dt.timedelta(seconds=-1) < age < dt.timedelta(minutes=5)


def test_nulls_stay_nulls_and_rows_of_a_batch_are_told_apart(packages: Path, tmp_path: Path) -> None:
    lines = logged(make(packages, tmp_path, "binary"), ("/predict_batch", {"records": [EXAMPLE, NULLS]}))
    assert [line["id"] for line in lines] == ["call-0", "call-1"]
    assert [line["inputs"] for line in lines] == [EXAMPLE, NULLS]


def test_every_protocol_and_task_is_logged(packages: Path, tmp_path: Path) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["awful"]}
    lines = logged(
        make(packages, tmp_path, "multiclass", "regression", "text"),
        ("/predict", EXAMPLE),
        ("/v1/models/regression:predict", {"instances": [EXAMPLE]}),
        ("/v2/models/text/infer", {"inputs": [tensor]}),
    )
    assert [line["model"] for line in lines] == ["multiclass", "regression", "text"]
    assert list(lines[0]["probability"]) == ["high", "low", "mid"]
    assert lines[1]["probability"] is None
    assert (lines[2]["inputs"], lines[2]["prediction"]) == ({"text": "awful"}, "NEGATIVE")


def test_what_is_refused_is_not_logged(packages: Path, tmp_path: Path) -> None:
    app = make(packages, tmp_path, "binary")
    assert app.handle(Request("POST", "/predict", body=b"{}")).status == 422
    assert logged(app) == []


def test_no_log_is_written_unless_asked_for(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = App([Model(Package.open(packages / "binary"))])
    app.handle(Request("POST", "/predict", body=json.dumps(EXAMPLE).encode()))
    app.close()
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_dropped_and_counted(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_log, "MAX_PENDING_ROWS", 3)
    app = make(packages, tmp_path, "binary")
    lines = logged(app, ("/predict_batch", {"records": [EXAMPLE] * 4}), ("/predict", EXAMPLE))
    assert len(lines) == 1
    assert b'tidemill_prediction_log_rows_total{outcome="dropped"} 4' in app.metrics.render()
    assert b'tidemill_prediction_log_rows_total{outcome="written"} 1' in app.metrics.render()


def test_a_folder_that_goes_away_stops_no_answer(packages: Path, tmp_path: Path) -> None:
    app = make(packages, tmp_path, "binary")
    (tmp_path / "log").rmdir()
    assert logged(app, ("/predict", EXAMPLE)) == []
    assert b'tidemill_prediction_log_rows_total{outcome="dropped"} 1' in app.metrics.render()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"serve\.log_folder: must be a folder"):
        PredictionLog(tmp_path / "file" / "log")


def test_times_beyond_the_calendar_stay_numbers() -> None:
    from tidemill.core.schema import Column

    column = Column(name="t", type="timestamp")
    values = prediction_log.plain_values(column, {"t": np.array([[0], [2**62], [-(2**63)]])})
    assert values == ["1970-01-01T00:00:00Z", 2**62, None]
