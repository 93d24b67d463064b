"""Who may ask what: keys, tokens, and the answers to those who may not."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tidemill.core.errors import ConfigError, Conflict, NotFound
from tidemill.core.events import Event, Events
from tidemill.core.package import Package
from tidemill.core.project import build
from tidemill.serve.access import keys, tokens
from tidemill.serve.access.config import AuthConfig, JwtConfig
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request
from tidemill.serve.model import Model
from tidemill.testing.packages import EXAMPLE, tiny_package

BODY = json.dumps(EXAMPLE).encode()
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())

Make = Callable[..., App]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    tiny_package(folder / "flights", name="flights")
    tiny_package(folder / "other", name="other")
    return folder


@pytest.fixture
def make(package: Path, tmp_path: Path) -> Make:
    def made(auth: Any = None, events: Events | None = None, **more: Any) -> App:
        config = build(ServeConfig, {**({"auth": auth} if auth else {}), **more}, path="serve")
        models = [Model(Package.open(package / name)) for name in ("flights", "other")]
        return App(models, config=config, folder=tmp_path, events=events)

    return made


def status(app: App, path: str = "/predict", *, method: str = "POST", **headers: str) -> int:
    body = BODY if path.endswith("predict") else b""
    return app.handle(Request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()}, body=body)).status


def bearer(credential: str) -> str:
    return f"Bearer {credential}"


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), **more}


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "one", **claims: Any) -> str:
    said = {"aud": "tidemill", "sub": "alice", "scope": "predict read", "exp": time.time() + 60, **claims}
    return jwt.encode({k: v for k, v in said.items() if v is not None}, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def confused() -> str:
    """A token signed by HMAC with the public key for its secret."""
    public = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "kid": "one"}, {"aud": "tidemill", "scope": "predict", "exp": time.time() + 60})
    )
    signature = hmac.new(public, head + b"." + body, hashlib.sha256).digest()
    return (head + b"." + body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.fixture
def guarded(make: Make, tmp_path: Path) -> App:
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [jwk(RSA, kid="one"), jwk(CURVE, kid="two")]}))
    return make({"jwt": {"jwks": "jwks.json", "audience": "tidemill"}})


def test_nothing_is_asked_for_without_the_section(make: Make) -> None:
    assert status(make()) == 200


def test_the_matrix_of_keys(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    everything = keys.add(path, "everything", scopes=["predict", "read", "metrics"])
    only = keys.add(path, "only", scopes=["predict:flights"])
    reader = keys.add(path, "reader", scopes=["read"])
    app = make({"keys": "keys.json"})
    wanted = {
        "/predict": (200, 200, 403),
        "/models/flights/predict": (200, 200, 403),
        "/models/other/predict": (200, 403, 403),
        "/v1/models/flights:predict": (422, 422, 403),
        "/v2/models/other/infer": (400, 403, 403),
        "/model_info": (200, 403, 200),
        "/v2/models/flights": (200, 403, 200),
        "/docs": (200, 403, 200),
        "/metrics": (200, 403, 403),
        "/nowhere": (404, 404, 404),
    }
    for address, expected in wanted.items():
        method = "POST" if address.endswith(("predict", "infer")) else "GET"
        assert status(app, address, method=method) == 401, address
        found = tuple(status(app, address, method=method, authorization=bearer(key)) for key in (everything, only, reader))
        assert found == expected, address
    assert status(app, x_api_key=everything) == 200
    for address in ("/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
        assert status(app, address, method="GET") == 200


@pytest.mark.parametrize("credential", ["", "tm_", "tm__", "tm_00000000_guess", "x", "a.b.c", "tm_\udcff_\udcff", "Bearer"])
def test_what_is_no_key(make: Make, tmp_path: Path, credential: str) -> None:
    keys.add(tmp_path / "keys.json", "alice", scopes=["predict"])
    app = make({"keys": "keys.json"})
    response = app.handle(Request("POST", "/predict", headers={"authorization": f"Bearer {credential}"}, body=BODY))
    assert response.status == 401
    assert ("www-authenticate", 'Bearer realm="tidemill"') in response.headers


def test_a_right_id_with_a_wrong_secret_is_refused(make: Make, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys.json", "alice", scopes=["predict"])
    app = make({"keys": "keys.json"})
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert status(app, authorization=bearer(key)) == 200
    assert status(app, authorization=bearer(wrong)) == 401


def test_the_description_says_what_is_asked_for(make: Make, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys.json", "alice", scopes=["read"])
    app = make({"keys": "keys.json"}, limits={"per_key": {"per_s": 9}})
    described = json.loads(app.handle(Request("GET", "/openapi.json", headers={"x-api-key": key})).body)
    assert set(described["components"]["securitySchemes"]) == {"bearer", "key"}
    post = described["paths"]["/predict"]["post"]
    assert {"401", "403", "429"} <= set(post["responses"])
    assert post["security"] == [{"bearer": []}, {"key": []}]
    assert "security" not in described["paths"]["/health"]["get"]
    plain = json.loads(make().handle(Request("GET", "/openapi.json")).body)
    assert "securitySchemes" not in plain["components"]
    assert "401" not in plain["paths"]["/predict"]["post"]["responses"]


def test_verbs_may_be_open(make: Make, tmp_path: Path) -> None:
    keys.add(tmp_path / "keys.json", "alice", scopes=["predict"])
    app = make({"keys": "keys.json", "open": ["metrics"]})
    assert status(app, "/metrics", method="GET") == 200
    assert status(app) == 401


def test_the_file_holds_no_secret_and_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = keys.add(path, "alice", scopes=["predict"])
    secret = key.split("_", 2)[2]
    assert secret not in path.read_text()
    assert hashlib.sha256(secret.encode()).hexdigest() in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert secret not in json.dumps(keys.listed(path))


def test_no_log_holds_a_credential(make: Make, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys.json", "alice", scopes=["read"])
    said: list[Event] = []
    app = make({"keys": "keys.json", "jwt": {"jwks": str(_key_set(tmp_path)), "audience": "tidemill"}}, events=Events(said.append))
    bad = token(OTHER)
    wrong = key[:-4] + "AAAA"
    for credential in (key, bad, wrong):
        status(app, authorization=bearer(credential))
    text = repr(said)
    assert len(said) == 2
    secrets = [key.split("_", 2)[2], wrong.split("_", 2)[2], *bad.split(".")]
    assert not any(secret in text for secret in secrets)


def test_rotation_overlaps_and_revoking_is_seen_by_a_running_server(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_S", 0.0)
    path = tmp_path / "keys.json"
    first = keys.add(path, "alice", scopes=["predict"])
    app = make({"keys": "keys.json"})
    second = keys.rotate(path, "alice", overlap=dt.timedelta(hours=1))
    assert [status(app, authorization=bearer(key)) for key in (first, second)] == [200, 200]
    third = keys.rotate(path, "alice", overlap=dt.timedelta(0))
    assert [status(app, authorization=bearer(key)) for key in (first, second, third)] == [401, 401, 200]
    assert keys.revoke(path, "alice") == 1
    assert status(app, authorization=bearer(third)) == 401


def test_an_expired_key_is_refused(make: Make, tmp_path: Path) -> None:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    key = keys.add(tmp_path / "keys.json", "alice", scopes=["predict"], expires=past)
    assert status(make({"keys": "keys.json"}), authorization=bearer(key)) == 401


def test_a_damaged_file_leaves_the_keys_of_a_running_server(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_S", 0.0)
    key = keys.add(tmp_path / "keys.json", "alice", scopes=["predict"])
    app = make({"keys": "keys.json"})
    (tmp_path / "keys.json").write_text("{")
    assert status(app, authorization=bearer(key)) == 200
    with pytest.raises(ConfigError, match="file of keys"):
        make({"keys": "keys.json"})


def test_wrong_uses_of_the_key_file(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(ConfigError, match="must exist"):
        make({"keys": "keys.json"})
    keys.add(path, "alice", scopes=["predict"])
    with pytest.raises(Conflict, match="rotate alice"):
        keys.add(path, "alice", scopes=["predict"])
    with pytest.raises(ConfigError, match="did you mean 'predict'"):
        keys.add(path, "bob", scopes=["predit"])
    with pytest.raises(NotFound, match="bob"):
        keys.rotate(path, "bob", overlap=dt.timedelta(0))
    with pytest.raises(NotFound, match="bob"):
        keys.revoke(path, "bob")


def test_two_processes_lose_no_key(tmp_path: Path) -> None:
    threads = [threading.Thread(target=keys.add, args=(tmp_path / "keys.json", f"k{i}"), kwargs={"scopes": ["read"]}) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key["name"] for key in keys.listed(tmp_path / "keys.json")} == {f"k{i}" for i in range(8)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (token, 200),
        (lambda: token(CURVE, "ES256", "two"), 200),
        (lambda: token(scope="predict:flights"), 200),
        (lambda: token(scope=None, scp=["predict"]), 200),
        (lambda: token(scope="read"), 403),
        (lambda: token(scope=None), 403),
        (lambda: token(exp=time.time() - 60), 401),
        (lambda: token(exp=None), 401),
        (lambda: token(nbf=time.time() + 600), 401),
        (lambda: token(aud="elsewhere"), 401),
        (lambda: token(aud=None), 401),
        (lambda: token(OTHER), 401),
        (lambda: token(kid="three"), 401),
        (lambda: token(CURVE, "ES256", "one"), 401),
        (lambda: token(RSA, "RS512"), 401),
        (lambda: jwt.encode({"aud": "tidemill", "scope": "predict", "exp": time.time() + 60}, "", algorithm="none"), 401),
        (confused, 401),
        (lambda: token()[:-2], 401),
        (lambda: "..", 401),
    ],
    ids=[
        "right", "curve", "one model", "scp", "other verb", "no scope", "expired", "no end", "not yet", "other audience", "no audience",
        "other key", "unknown kid", "key of another kind", "algorithm not taken", "none", "confusion", "torn", "empty",
    ],
)  # fmt: skip
def test_tokens(guarded: App, given: Callable[[], str], expected: int) -> None:
    assert status(guarded, authorization=bearer(given())) == expected


def test_the_issuer_is_checked_where_one_is_named(make: Make, tmp_path: Path) -> None:
    app = make({"jwt": {"jwks": str(_key_set(tmp_path)), "audience": "tidemill", "issuer": "https://id.example"}})
    assert status(app, authorization=bearer(token(iss="https://id.example"))) == 200
    assert status(app, authorization=bearer(token(iss="https://evil.example"))) == 401
    assert status(app, authorization=bearer(token())) == 401


@pytest.fixture
def issuer() -> Iterator[Any]:
    """A server of a key set; `issuer.keys` is what it answers, `issuer.asked` how often it was."""

    class Issuer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked += 1
            body = json.dumps({"keys": server.keys}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Issuer)
    server.asked, server.keys = 0, [jwk(RSA, kid="one")]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_new_key_of_the_issuer_is_fetched_and_a_flood_of_unknown_ones_is_not(
    make: Make, issuer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make({"jwt": {"jwks": f"http://127.0.0.1:{issuer.server_port}/jwks", "audience": "tidemill"}})
    assert issuer.asked == 1
    assert status(app, authorization=bearer(token())) == 200
    issuer.keys.append(jwk(OTHER, kid="new"))
    new = bearer(token(OTHER, kid="new"))
    assert status(app, authorization=new) == 401  # asked a moment ago
    monkeypatch.setattr(tokens, "PATIENCE_S", 0.0)
    assert status(app, authorization=new) == 503
    monkeypatch.setattr(tokens, "PATIENCE_S", 60.0)
    end = time.monotonic() + 10
    while status(app, authorization=new) == 503 and time.monotonic() < end:
        time.sleep(0.01)
    assert status(app, authorization=new) == 200
    for i in range(20):
        assert status(app, authorization=bearer(token(OTHER, kid=f"guess{i}"))) == 401
    assert issuer.asked == 2


def test_an_issuer_that_is_away_leaves_its_known_keys(make: Make, issuer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make({"jwt": {"jwks": f"http://127.0.0.1:{issuer.server_port}/jwks", "audience": "tidemill"}})
    issuer.shutdown()
    issuer.server_close()
    monkeypatch.setattr(tokens, "FRESH_S", 0.0)
    monkeypatch.setattr(tokens, "PATIENCE_S", 0.0)
    assert status(app, authorization=bearer(token())) == 200


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "must name keys or jwt"),
        ({"keys": "keys.json", "open": ["predict", "read", "metrics"]}, "must leave a verb"),
        ({"jwt": {"jwks": "http://id.example/keys", "audience": "a"}}, "https address or a file"),
        ({"jwt": {"jwks": "x", "audience": ""}}, "audience"),
        ({"jwt": {"jwks": "x", "audience": "a", "algorithms": ["HS256"]}}, "algorithms"),
    ],
)
def test_a_wrong_section(tree: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(AuthConfig, tree, path="serve.auth").check()


def test_a_key_set_that_is_none(tmp_path: Path) -> None:
    for text in ("{", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "AAAA"}]}'):
        (tmp_path / "jwks.json").write_text(text)
        with pytest.raises(ConfigError, match="key set"):
            tokens.Tokens(JwtConfig(jwks="jwks.json", audience="a"), folder=tmp_path)


def _key_set(folder: Path) -> Path:
    (folder / "jwks.json").write_text(json.dumps({"keys": [jwk(RSA, kid="one")]}))
    return folder / "jwks.json"
