from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.errors import ConfigError
from tidemill.core.package import Package
from tidemill.serve.app import INLINE_BYTES, PREPARED_BYTES, App
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request, Response
from tidemill.serve.model import Model
from tidemill.testing.packages import EXAMPLE

Ask = Callable[..., tuple[int, Any]]
Send = Callable[..., Response]


def test_health_says_what_is_loaded(ask: Ask) -> None:
    status, answer = ask("GET", "/health")
    assert status == 200
    assert (answer["status"], answer["model_loaded"]) == ("healthy", True)
    assert answer["models"][0] == {"name": "binary", "version": "3"}
    assert ask("GET", "/health/live") == (200, {"status": "live"})
    assert ask("GET", "/health/ready") == (200, {"status": "ready"})


def test_a_draining_server_lives_and_is_not_ready(app: App, ask: Ask) -> None:
    app.draining = True
    assert ask("GET", "/health/live")[0] == 200
    for path in ("/health/ready", "/v2/health/ready", "/v2/models/binary/ready", "/v1/models/binary"):
        assert ask("GET", path)[0] == 503
    assert ask("GET", "/health")[1]["status"] == "draining"
    assert ask("POST", "/predict", EXAMPLE)[0] == 200


def test_model_info_holds_what_users_look_for(app: App, ask: Ask) -> None:
    _, info = ask("GET", "/model_info")
    assert {"model_path", "device", "framework", "name", "version", "signature", "contract", "identity"} <= set(info)
    assert info["framework"].startswith("onnxruntime ")
    assert info["signature"]["classes"] == [False, True]
    assert info["signature"]["example"] == EXAMPLE
    assert ask("GET", "/models/text/model_info")[1]["signature"]["kind"] == "text"


def test_every_model_is_found_by_name_and_by_version(app: App, ask: Ask) -> None:
    listed = ask("GET", "/models")[1]["models"]
    assert [model["name"] for model in listed] == ["binary", "multiclass", "regression", "text", "embedding"]
    assert [model["default"] for model in listed] == [True, False, False, False, False]
    assert ask("GET", "/models/binary/versions/3/model_info")[0] == 200
    text = next(model for model in listed if model["name"] == "text")
    assert text["version"] == Package.open(app.models[3].package.path).identity[:12]
    assert ask("POST", f"/models/text/versions/{text['version']}/predict", {"text": "great"})[0] == 200


def test_two_versions_of_a_name_stand_side_by_side(packages: Path) -> None:
    first, second = (Package.open(packages / name, version=version) for name, version in (("binary", "7"), ("binary", "8")))
    app = App([Model(first), Model(second)])
    asked = {path: json.loads(app.handle(Request("POST", path, body=json.dumps(EXAMPLE).encode())).body)["version"] for path in (
        "/predict", "/models/binary/predict", "/models/binary/versions/7/predict", "/models/binary/versions/8/predict",
    )}  # fmt: skip
    assert list(asked.values()) == ["7", "7", "7", "8"]
    assert json.loads(app.handle(Request("GET", "/v2/models/binary")).body)["versions"] == ["7", "8"]


def test_the_same_version_twice_is_refused(packages: Path) -> None:
    model = Model(Package.open(packages / "binary"))
    with pytest.raises(ConfigError, match="must be served once"):
        App([model, model])
    with pytest.raises(ConfigError, match="at least one package"):
        App([])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nowhere", "address '/nowhere' is not known"),
        ("/models/binari/predict", "model 'binari' is not known (did you mean 'binary'?"),
        ("/models/binary/versions/4/predict", "version of 'binary' '4' is not known (known: 3)"),
        ("/models/binary/unknown", "is not known"),
        ("/%2e%2e/%2e%2e/etc/passwd", "is not known"),
    ],
)
def test_what_is_not_there_is_404_and_lists_what_is(ask: Ask, path: str, reason: str) -> None:
    status, answer = ask("POST", path, EXAMPLE)
    assert status == 404
    assert reason in answer["error"]["reason"]


def test_the_protocols_have_their_own_errors(ask: Ask) -> None:
    for path in ("/v2/models/none/infer", "/v1/models/none:predict"):
        status, answer = ask("POST", path, {})
        assert status == 404
        assert answer["error"].startswith("model 'none' is not known")


def test_another_method_is_405_with_what_is_taken(send: Send) -> None:
    response = send("GET", "/predict")
    assert response.status == 405
    assert ("allow", "POST") in response.headers
    assert send("PURGE", "/health").status == 405


def test_head_and_escaped_and_trailing_forms_of_an_address_are_found(ask: Ask) -> None:
    assert ask("HEAD", "/health")[0] == 200
    assert ask("GET", "/health/")[0] == 200
    assert ask("GET", "/models/bin%61ry/model_info")[0] == 200


def test_every_answer_has_a_request_id_and_a_given_one_is_kept(send: Send) -> None:
    first, second = (dict(send("POST", "/predict", EXAMPLE).headers)["x-request-id"] for _ in range(2))
    assert first != second
    assert dict(send("POST", "/predict", EXAMPLE, x_request_id="order-17").headers)["x-request-id"] == "order-17"
    for bad in ("a" * 129, "a\r\nset-cookie: b", "航"):
        assert dict(send("POST", "/predict", EXAMPLE, x_request_id=bad).headers)["x-request-id"] != bad


def test_a_failure_shows_nothing_of_the_inside_and_is_recorded(
    app: App, ask: Ask, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(app.models[0], "answer", fail)
    status, answer = ask("POST", "/predict", EXAMPLE)
    assert status == 500
    assert answer == {"error": {"field": None, "reason": "the server failed to answer", "hint": "its log says why"}}
    [event] = [event for event in seen if event.level == "error"]
    assert event.kind == "serve.failed"
    assert "secret of the inside" in event.fields["traceback"]
    assert b'tidemill_errors_total{reason="internal"} 1' in app.metrics.render()


def test_nan_and_infinity_are_null(app: App, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from tidemill.core.package import Answers

    regression = app.models[2]
    monkeypatch.setattr(
        regression, "answer", lambda inputs: Answers(np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)[: len(inputs["fare"])])
    )
    _, answer = ask("POST", "/models/regression/predict_batch", {"records": [EXAMPLE] * 4})
    assert [row["prediction"] for row in answer["predictions"]] == [None, None, None, 1.5]
    assert ask("POST", "/models/regression/predict", EXAMPLE)[1]["prediction"] is None


def test_what_is_slow_or_large_is_read_on_threads(app: App) -> None:
    small, middle, large = (Request("POST", "/predict", body=b" " * size) for size in (10, PREPARED_BYTES + 1, INLINE_BYTES + 1))
    assert [app.is_quick(app.admit(request)) for request in (small, middle, large)] == [True, True, False]
    app.models[0].row_ms = app.config.inline_ms + 0.1
    assert [app.is_quick(app.admit(request)) for request in (small, middle, large)] == [True, False, False]
    assert app.is_quick(app.admit(Request("GET", "/metrics")))
    assert app.is_quick(app.admit(Request("POST", "/nowhere", body=b" " * 100_000)))


@pytest.mark.parametrize(("above_ms", "one_waits"), [(0.0, False), (0.1, True)])
def test_slow_models_and_many_rows_wait_for_a_runner(packages: Path, above_ms: float, one_waits: bool) -> None:
    model, config = Model(Package.open(packages / "binary")), ServeConfig()
    model.row_ms = config.inline_ms + above_ms
    app = App([model], config=config)

    def queues(path: str, body: Any) -> bool:
        call = app.admit(Request("POST", path, body=json.dumps(body).encode()))
        app.read(call)
        return app.queues(call)

    assert queues("/predict", EXAMPLE) == one_waits
    assert queues("/predict_batch", {"records": [EXAMPLE] * 50})
    assert not queues("/predict", {"wrong": 1})
    app.close()


def test_the_steps_may_be_taken_apart(packages: Path) -> None:
    app = App([Model(Package.open(packages / "binary"))], config=ServeConfig())
    call = app.admit(Request("POST", "/predict", body=json.dumps(EXAMPLE).encode()))
    app.read(call)
    ended: list[bool] = []
    app.begin(call, lambda: ended.append(True))
    assert ended == [True]
    assert app.finish(call).body == app.handle(call.request).body


def test_counts_of_versions_long_gone_are_not_shown(app: App, ask: Ask, packages: Path) -> None:
    models = [Model(Package.open(packages / "binary", version=str(number))) for number in range(10, 18)]
    for model in models:
        app.replace([model])
        assert ask("POST", "/predict", EXAMPLE)[0] == 200
        assert model.holds.enter()
        model.holds.leave()
    for model in models[:-1]:
        app.forget(model)
    text = app.metrics.render().decode()
    assert [number for number in range(10, 18) if f'tidemill_rows_total{{model="binary",version="{number}"}}' in text] == [
        13,
        14,
        15,
        16,
        17,
    ]
    assert ask("POST", "/models/binary/versions/12/predict", EXAMPLE)[0] == 404


def test_a_call_keeps_its_model_until_it_is_finished(app: App, packages: Path) -> None:
    old, new = app.models[0], Model(Package.open(packages / "binary", version="4"))
    call = app.admit(Request("POST", "/predict", "", {}, b""))
    app.replace([new])
    old.holds.retire()
    assert not old.holds.wait(0.01)
    call.request.body = json.dumps(EXAMPLE).encode()
    assert json.loads(app.answer(call).body)["version"] == "3"
    assert old.holds.wait(0)
    late = app.admit(Request("POST", "/predict", "", {}, b""))
    app.release(late)
    new.holds.retire()
    assert new.holds.wait(0)
