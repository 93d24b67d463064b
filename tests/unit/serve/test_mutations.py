"""Whole requests, spoilt here and there: each is answered or refused, none makes the server fail."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tidemill.core.events import Event, Events
from tidemill.core.package import Package
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import ARROW_FILE, ARROW_STREAM, Request
from tidemill.serve.server import load
from tidemill.testing.packages import COLUMNS, EXAMPLE

PIECES = (
    b"null", b"1e308", b"-1", b"9" * 30, b'"\\u0000"', b"[]", b"{}", b"true", '"😀"'.encode(), b"NaN", b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff",
)  # fmt: skip
TYPES = {"boolean": "BOOL", "int64": "INT64", "float32": "FP32", "float64": "FP64", "string": "BYTES", "timestamp": "INT64"}


def ipc(table: pa.Table, *, file: bool = False, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def whole_requests() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    records = [EXAMPLE, {**EXAMPLE, "seats": None}]
    yield "/predict", json.dumps(EXAMPLE).encode(), {}
    yield "/predict_batch", json.dumps({"records": records}).encode(), {}
    yield "/v1/models/binary:predict", json.dumps({"instances": records}).encode(), {}
    yield "/models/text/predict", b'{"text": "great"}', {}
    inputs = [
        {"name": c.name, "shape": [2, 1], "datatype": TYPES[c.type], "data": {"boolean": [True, None], "string": ["UA", None]}.get(c.type, [1, None])}
        for c in COLUMNS
    ]  # fmt: skip
    yield "/v2/models/binary/infer", json.dumps({"id": "a", "inputs": inputs}).encode(), {}
    raw = b"\2\0\0\0UA\0\0\0\0"
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    yield "/v2/models/text/infer", head + raw, {"inference-header-content-length": str(len(head))}
    table = pa.Table.from_pylist([{**EXAMPLE, "departs": None}, dict.fromkeys(EXAMPLE)] * 3, schema=COLUMNS.to_arrow())
    coded = table.set_column(3, "carrier", table.column("carrier").dictionary_encode())
    yield "/predict_batch", ipc(table, file=True), {"content-type": ARROW_FILE}
    for body in (ipc(table), ipc(coded), ipc(table, compression="lz4"), ipc(table, compression="zstd")):
        yield "/predict_batch", body, {"content-type": ARROW_STREAM}


def spoilt(body: bytes, draw: random.Random) -> bytes:
    made = bytearray(body)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at, kind = draw.randrange(len(made) + 1), draw.randrange(4)
        if kind == 0:
            made[at % len(made)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            made[at:at] = draw.choice(PIECES)
        elif kind == 2 and len(made) > 20:
            del made[at : at + draw.randrange(1, 9)]
        else:
            made[at : at + 4] = draw.choice(PIECES)
    return bytes(made)


@pytest.fixture(scope="module")
def watched(packages: Path) -> tuple[App, list[Event]]:
    seen: list[Event] = []
    opened = [Package.open(packages / name) for name in ("binary", "text")]
    return load(opened, config=ServeConfig(), events=Events(seen.append)), seen


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[] if seed < 1 else [pytest.mark.long]) for seed in range(20)])
def test_a_spoilt_request_is_never_a_failure(watched: tuple[App, list[Event]], seed: int) -> None:
    app, seen = watched
    draw = random.Random(seed)
    requests: list[tuple[str, bytes, dict[str, str]]] = list(whole_requests())
    for path, body, headers in requests:
        assert app.handle(Request("POST", path, headers=headers, body=body)).status == 200
    for _ in range(300 if seed < 1 else 5000):
        for path, body, headers in requests:
            bad = spoilt(body, draw)
            response: Any = app.handle(Request("POST", path, headers=headers, body=bad))
            assert response.status in (200, 400, 413, 422), (path, headers, bad)
    assert not [event for event in seen if event.level == "error"]
