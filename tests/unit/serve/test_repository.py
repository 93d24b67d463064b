"""Loading and unloading by name: who may, what is refused, over REST and gRPC."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tidemill.core.errors import ContractViolation, NotFound, Unavailable
from tidemill.core.package import Package
from tidemill.serve.access import keys
from tidemill.serve.access.config import AuthConfig
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.deployment.slot import Standing
from tidemill.serve.grpc.messages import METHODS, PACKAGE, SERVICE, messages
from tidemill.serve.http import Request
from tidemill.serve.model import Model

STANDINGS = (
    Standing(model="binary", alias="champion", version="3", wanted="3", state="serving"),
    Standing(model="other", alias="champion", version="1", wanted="2", state="failed", reason="it is broken"),
    Standing(model="gone", alias=None, version="1", wanted="1", state="unloaded"),
)


class Names:
    """Notes what it is told; raises `error` where there is one."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.error: Exception | None = None

    def load(self, ref: str) -> None:
        self._note("load", ref)

    def unload(self, name: str) -> None:
        self._note("unload", name)

    def _note(self, action: str, name: str) -> None:
        if self.error is not None:
            raise self.error
        self.told.append((action, name))


Make = Callable[..., tuple[App, Names]]


@pytest.fixture
def make(packages: Path, tmp_path: Path) -> Make:
    def made(**config: Any) -> tuple[App, Names]:
        app = App([Model(Package.open(packages / "binary", version="3"))], config=ServeConfig(**config), folder=tmp_path)
        app.stand(STANDINGS)
        names = Names()
        app.repository = names
        return app, names

    return made


def post(app: App, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    response = app.handle(Request("POST", path, "", {key.replace("_", "-"): value for key, value in headers.items()}, body))
    return response.status, json.loads(response.body)


def test_the_index_says_how_all_stand(make: Make) -> None:
    app, _ = make()
    entries = [
        {"name": "binary", "version": "3", "state": "READY", "reason": ""},
        {"name": "other", "version": "1", "state": "READY", "reason": "version 2 could not be deployed: it is broken"},
        {"name": "gone", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
    ]
    assert post(app, "/v2/repository/index") == (200, entries)
    assert post(app, "/v2/repository/index", b'{"ready": true}') == (200, entries[:2])
    assert post(app, "/v2/repository/index", b"[1]")[0] == 400


def test_names_are_taken_from_the_address(make: Make) -> None:
    app, names = make()
    assert post(app, "/v2/repository/models/binary/load", b'{"parameters": {"config": "{}"}}') == (200, {})
    assert post(app, "/v2/repository/models/a%2Fb%40x/unload") == (200, {})
    assert names.told == [("load", "binary"), ("unload", "a/b@x")]
    for path in ("/v2/repository/models/binary", "/v2/repository/models/binary/eject", "/v2/repository/models//load"):
        assert post(app, path)[0] == 404
    response = app.handle(Request("GET", "/v2/repository/models/binary/load"))
    assert (response.status, dict(response.headers)["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotFound("model", "x", ["binary"]), 404), (ContractViolation(["p99"]), 400), (Unavailable("no replica answers now"), 503)],
)
def test_what_cannot_be_done_is_said(make: Make, error: Exception, status: int) -> None:
    app, names = make()
    names.error = error
    found, said = post(app, "/v2/repository/models/x/unload")
    assert (found, said["error"]) == (status, str(error))


def test_it_needs_a_scope_of_its_own(make: Make, tmp_path: Path) -> None:
    made = {
        scope: keys.add(tmp_path / "keys.json", scope.replace(":", "-"), scopes=[scope])
        for scope in ("read", "predict", "admin", "admin:binary")
    }
    app, names = make(auth=AuthConfig(keys=Path("keys.json")))
    path = "/v2/repository/models/{}/unload"
    assert post(app, path.format("binary"))[0] == 401
    found = {(scope, name): post(app, path.format(name), x_api_key=key)[0] for scope, key in made.items() for name in ("binary", "other")}
    assert found == {
        ("read", "binary"): 403, ("read", "other"): 403, ("predict", "binary"): 403, ("predict", "other"): 403,
        ("admin", "binary"): 200, ("admin", "other"): 200, ("admin:binary", "binary"): 200, ("admin:binary", "other"): 403,
    }  # fmt: skip
    assert len(names.told) == 3
    assert post(app, "/v2/repository/index", x_api_key=made["predict"])[0] == 403
    assert post(app, "/v2/repository/index", x_api_key=made["read"])[0] == 200


def test_on_an_open_address_nobody_may_where_nobody_is_asked_who_he_is(make: Make) -> None:
    app, names = make(host="0.0.0.0")
    assert post(app, "/v2/repository/models/binary/unload")[0] == 404
    assert names.told == []


def test_the_same_over_grpc(make: Make, grpc_served: Callable[..., Any]) -> None:
    app, names = make()
    with grpc_served(app) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

        def ask(method: str, **fields: Any) -> Any:
            request, response = (messages()[name] for name in METHODS[method])
            call = channel.unary_unary(
                f"/{PACKAGE}.{SERVICE}/{method}", request_serializer=request.SerializeToString, response_deserializer=response.FromString
            )
            return call(request(**fields), timeout=20)

        assert [(entry.name, entry.state) for entry in ask("RepositoryIndex").models] == [
            ("binary", "READY"), ("other", "READY"), ("gone", "UNAVAILABLE"),
        ]  # fmt: skip
        ask("RepositoryModelLoad", model_name="gone")
        ask("RepositoryModelUnload", repository_name="binary")  # as KServe numbers its fields
        assert names.told == [("load", "gone"), ("unload", "binary")]
        names.error = NotFound("model", "x", ["binary"])
        with pytest.raises(grpc.RpcError) as caught:
            ask("RepositoryModelLoad", model_name="x")
        assert caught.value.code().name == "NOT_FOUND"  # type: ignore[attr-defined]
