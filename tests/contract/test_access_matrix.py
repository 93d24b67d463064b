"""Who is let through: every verb, by every protocol, with every kind of credential, on a running server; and what it writes down meanwhile."""

from __future__ import annotations

import datetime as dt
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tidemill.core.events import Event, Events
from tidemill.core.project import build
from tidemill.serve.access import keys
from tidemill.serve.config import ServeConfig
from tidemill.serve.grpc.messages import METHODS, PACKAGE, SERVICE, messages
from tidemill.serve.server import Running, serve
from tidemill.testing.packages import EXAMPLE, tiny_package

pytestmark = pytest.mark.server

CODES = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429}
THROUGH = "through"

TENSORS: dict[str, tuple[str, Any]] = {
    "distance": ("FP64", np.float64(1)), "fare": ("FP32", np.float32(1)), "seats": ("INT64", np.int64(1)), "carrier": ("BYTES", b"\2\0\0\0UA"),
    "weekend": ("BOOL", np.bool_(True)), "departs": ("INT64", np.int64(0)),
}  # fmt: skip
INFER = {
    "model_name": "flights",
    "inputs": [{"name": name, "datatype": kind, "shape": [1, 1]} for name, (kind, _) in TENSORS.items()],
    "raw_input_contents": [bytes(value) if isinstance(value, bytes) else value.tobytes() for _, value in TENSORS.values()],
}
V2 = {
    "inputs": [
        {"name": name, "datatype": kind, "shape": [1, 1], "data": ["UA" if kind == "BYTES" else value.item()]}
        for name, (kind, value) in TENSORS.items()
    ]
}

UNLOAD = "/v2/repository/models/flights/unload"

# Verb and protocol: method and path with a body, or a method of gRPC with its fields. All are about the model `flights`, or about none.
ASKED: dict[tuple[str, str], tuple[str, str, Any]] = {
    ("open", "plain"): ("GET", "/health", None),
    ("open", "v2"): ("GET", "/v2/health/ready", None),
    ("open", "grpc"): ("", "ServerLive", {}),
    ("predict", "plain"): ("POST", "/predict", EXAMPLE),
    ("predict", "plain, by name"): ("POST", "/models/flights/predict_batch", {"records": [EXAMPLE]}),
    ("predict", "v1"): ("POST", "/v1/models/flights:predict", {"instances": [EXAMPLE]}),
    ("predict", "v2"): ("POST", "/v2/models/flights/infer", V2),
    ("predict", "grpc"): ("", "ModelInfer", INFER),
    ("read", "plain"): ("GET", "/models/flights/model_info", None),
    ("read", "v1"): ("GET", "/v1/models/flights", None),
    ("read", "v2"): ("GET", "/v2/models/flights", None),
    ("read", "v2, ready"): ("GET", "/v2/models/flights/ready", None),
    ("read", "grpc"): ("", "ModelMetadata", {"name": "flights"}),
    ("read", "grpc, ready"): ("", "ModelReady", {"name": "flights"}),
    ("metrics", "plain"): ("GET", "/metrics", None),
    ("admin", "v2"): ("POST", "/v2/repository/models/flights/load", {}),
    ("admin", "grpc"): ("", "RepositoryModelLoad", {"model_name": "flights"}),
    ("admin", "v2, unload"): ("POST", UNLOAD, {}),
    ("admin", "grpc, unload"): ("", "RepositoryModelUnload", {"model_name": "flights"}),
}
UNLOADS = [("admin", "v2, unload"), ("admin", "grpc, unload")]  # asked for by those alone who may not: the others need the model
VERBS = ("predict", "read", "metrics", "admin")

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def token(key: Any = KEY, algorithm: str = "RS256", **claims: Any) -> str:
    said = {"aud": "tidemill", "sub": "alice", "scope": " ".join(VERBS), "exp": time.time() + 600, **claims}
    return jwt.encode(said, key, algorithm=algorithm, headers={"kid": "one"})


def credentials(path: Path) -> dict[str, tuple[str | None, Callable[[str], Any]]]:
    """By kind: the credential, and what each verb leads to with it."""
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)
    whole = keys.add(path, "whole", scopes=list(VERBS))
    revoked = keys.add(path, "revoked", scopes=list(VERBS))
    keys.revoke(path, "revoked")
    nobody: Callable[[str], Any] = lambda verb: 401  # noqa: E731
    one = {verb: keys.add(path, verb, scopes=[verb]) for verb in VERBS}
    mine = {verb: keys.add(path, f"{verb}-mine", scopes=[f"{verb}:flights"]) for verb in ("predict", "read", "admin")}
    theirs = keys.add(path, "theirs", scopes=[f"{verb}:other" for verb in VERBS])
    return {
        "none": (None, nobody),
        "empty": ("", nobody),
        "no such id": ("tm_00000000_" + "a" * 43, nobody),
        "wrong secret": (whole[:-1] + ("A" if whole[-1] != "A" else "B"), nobody),
        "cut": (whole[:20], nobody),
        "expired": (keys.add(path, "expired", scopes=list(VERBS), expires=past), nobody),
        "revoked": (revoked, nobody),
        "token expired": (token(exp=time.time() - 600), nobody),
        "token for others": (token(aud="others"), nobody),
        "token of another key": (token(OTHER), nobody),
        "token of none": (jwt.encode({"aud": "tidemill", "scope": "predict", "exp": time.time() + 600}, None, algorithm="none"), nobody),
        "token by a secret": (token("a secret of thirty-two characters", "HS256"), nobody),
        "token without scopes": (token(scope=""), lambda verb: 403),
        "token": (token(), lambda verb: THROUGH),
        "token to predict": (token(scope="predict"), lambda verb: THROUGH if verb == "predict" else 403),
        "whole": (whole, lambda verb: THROUGH),
        "of another model": (theirs, lambda verb: 403),
        **{f"only {verb}": (key, lambda asked, verb=verb: THROUGH if asked == verb else 403) for verb, key in one.items()},
        **{f"{verb} of the model": (key, lambda asked, verb=verb: THROUGH if asked == verb else 403) for verb, key in mine.items()},
    }


@contextmanager
def serving(folder: Path, seen: list[Event], **config: Any) -> Iterator[Running]:
    packages = [tiny_package(folder / name, name=name, version="1") for name in ("flights", "other")]
    ready: queue.Queue[Running] = queue.Queue()
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
    (folder / "jwks.json").write_text(json.dumps({"keys": [{**public, "kid": "one"}]}))
    auth = {"keys": str(folder / "keys.json"), "jwt": {"jwks": str(folder / "jwks.json"), "audience": "tidemill"}}
    built = build(ServeConfig, {"port": 0, "grpc_port": 0, "auth": auth, **config}, path="serve")
    more = {"config": built, "on_ready": ready.put, "events": Events(seen.append)}
    thread = threading.Thread(target=serve, args=(packages,), kwargs=more)
    thread.start()
    running = ready.get(timeout=60)
    yield running
    running.stop()
    thread.join()


def ask(running: Running, asked: tuple[str, str, Any], credential: str | None, *, header: str = "authorization") -> tuple[Any, Any]:
    """The status, or `THROUGH` for any that is not about who asks; and when to come again."""
    method, path, body = asked
    given = {} if credential is None else {header: f"Bearer {credential}" if header == "authorization" else credential}
    if not method:
        with grpc.insecure_channel(running.grpc) as channel:
            call = channel.unary_unary(f"/{PACKAGE}.{SERVICE}/{path}")
            try:
                call(messages()[METHODS[path][0]](**body).SerializeToString(), metadata=list(given.items()), timeout=30)
            except grpc.RpcError as error:
                trailing = dict(error.trailing_metadata())  # type: ignore[attr-defined]
                return CODES.get(error.code().name, THROUGH), trailing.get("retry-after")  # type: ignore[attr-defined]
        return THROUGH, None
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(running.url + path, content, {"content-type": "application/json", **given}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30):
            return THROUGH, None
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 401 and error.headers["www-authenticate"] != 'Bearer realm="tidemill"':
                return "no challenge", None
            return error.code if error.code in CODES.values() else THROUGH, error.headers["retry-after"]


def test_the_whole_matrix(tmp_path: Path) -> None:
    known = credentials(tmp_path / "keys.json")
    seen: list[Event] = []
    with serving(tmp_path, seen, access_log=str(tmp_path / "access.jsonl"), log=True, log_folder=str(tmp_path / "log")) as running:
        wrong = []
        for kind, (credential, expected) in known.items():
            for (verb, protocol), asked in ASKED.items():
                wanted = THROUGH if verb == "open" else expected(verb)
                if wanted == THROUGH and (verb, protocol) in UNLOADS:
                    continue
                found, _ = ask(running, asked, credential)
                if found != wanted:
                    wrong.append((kind, verb, protocol, found, wanted))
        assert wrong == []
        whole = known["whole"][0]
        assert ask(running, ASKED["predict", "plain"], whole, header="x-api-key")[0] == THROUGH
        assert ask(running, ASKED["predict", "grpc"], whole, header="x-api-key")[0] == THROUGH
        with urllib.request.urlopen(urllib.request.Request(f"{running.url}/metrics", headers={"x-api-key": str(whole)})) as answer:
            metrics = answer.read().decode()
    written = repr(seen) + metrics + "".join(path.read_text() for path in [tmp_path / "access.jsonl", *(tmp_path / "log").iterdir()])
    assert written.count('"/predict"') > len(known)  # it was written down who asked for what
    for kind, (credential, _) in known.items():
        for secret in (credential or "").split("_")[2:] if (credential or "").startswith("tm_") else (credential or "").split("."):
            assert len(secret) < 12 or secret not in written, kind


def test_whoever_asks_too_much_is_told_when_to_come_again(tmp_path: Path) -> None:
    """Once a day: the second time is too often, by every protocol, and what is open is never counted."""
    path = tmp_path / "keys.json"
    each = {asked: keys.add(path, f"caller-{i}", scopes=list(VERBS)) for i, asked in enumerate(ASKED) if asked not in UNLOADS}
    with serving(tmp_path, [], limits={"per_key": {"per_day": 1}}) as running:
        for (verb, protocol), key in each.items():
            asked = ASKED[verb, protocol]
            assert ask(running, asked, key)[0] == THROUGH, (verb, protocol)
            found, again = ask(running, asked, key)
            if verb == "open":
                assert found == THROUGH
            else:
                assert found == 429, (verb, protocol)
                assert 1 <= int(again) <= 86_400
