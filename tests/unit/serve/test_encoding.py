"""Compressed bodies: read as they were, never unpacked beyond the limit, answered as the caller takes them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.package import Package
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.encoding import WORTH_BYTES, decoded, encode
from tidemill.serve.http import Refused, Request, Response
from tidemill.serve.model import Model
from tidemill.testing.packages import EXAMPLE, tiny_package

PACK = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}
UNPACK = {"gzip": gzip.decompress, "zstd": zstandard.ZstdDecompressor().decompress}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    package: Package = tiny_package(Path(tmp_path_factory.mktemp("package")) / "tiny")
    return App([Model(package)], config=ServeConfig(max_body_mb=0.5))


@pytest.mark.parametrize("kind", PACK)
@given(content=st.binary(max_size=5000), parts=st.integers(1, 3))
def test_what_was_packed_comes_back(kind: str, content: bytes, parts: int) -> None:
    assert decoded(PACK[kind](content) * parts, kind, max_bytes=20_000) == content * parts


@pytest.mark.parametrize("kind", PACK)
def test_a_bomb_is_refused_before_it_goes_off(kind: str) -> None:
    bomb = PACK[kind](bytes(300_000_000))
    assert len(bomb) < 1_000_000
    with pytest.raises(Refused, match="at most 1000000 bytes") as caught:
        decoded(bomb, kind, max_bytes=1_000_000)
    assert caught.value.status == 413
    assert len(decoded(PACK[kind](bytes(1_000_000)), kind, max_bytes=1_000_000)) == 1_000_000


@pytest.mark.parametrize("kind", PACK)
def test_torn_and_wrong_bodies(kind: str) -> None:
    whole = PACK[kind](os.urandom(50_000))
    for body in (whole[:10], whole[:25_000], whole[:-1], b"{}", whole + b"more", b"\x00" * 100):
        with pytest.raises(Refused) as caught:
            decoded(body, kind, max_bytes=1_000_000)
        assert caught.value.status == 400


def test_other_encodings_are_not_taken() -> None:
    assert decoded(b"x", "identity", max_bytes=9) == b"x"
    with pytest.raises(Refused, match="gzip or zstd") as caught:
        decoded(b"x", "br", max_bytes=9)
    assert caught.value.status == 415


@pytest.mark.parametrize("kind", PACK)
def test_a_request_and_its_answer(kind: str, app: App) -> None:
    body = json.dumps({"records": [EXAMPLE] * 200}).encode()
    plain = app.handle(Request("POST", "/predict_batch", body=body))
    headers = {"content-encoding": kind, "accept-encoding": f"{kind};q=1.0"}
    packed = app.handle(Request("POST", "/predict_batch", headers=headers, body=PACK[kind](body)))
    assert packed.status == plain.status == 200
    assert ("content-encoding", kind) in packed.headers
    assert ("vary", "accept-encoding") in packed.headers
    assert json.loads(UNPACK[kind](packed.body)) == json.loads(plain.body)
    refused = app.handle(Request("POST", "/predict_batch", headers=headers, body=PACK[kind](b" " * 500_001)))
    assert refused.status == 413


@pytest.mark.parametrize(
    ("accept", "size", "expected"),
    [
        ("gzip, zstd", WORTH_BYTES, "zstd"),
        ("gzip;q=0.5", WORTH_BYTES, "gzip"),
        ("*", WORTH_BYTES, "gzip"),
        ("gzip;q=0, identity", WORTH_BYTES, None),
        ("br", WORTH_BYTES, None),
        ("gzip", WORTH_BYTES - 1, None),
    ],
)
def test_what_the_caller_takes(accept: str, size: int, expected: str | None) -> None:
    response = Response(200, [], b"x" * size)
    encode(response, accept)
    assert dict(response.headers).get("content-encoding") == expected
    assert (len(response.body) < size) == (expected is not None)
