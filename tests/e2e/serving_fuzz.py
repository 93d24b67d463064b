"""Malformed requests without end, the same ones for the same seed: what a careless or hostile program may send over HTTP and gRPC."""

from __future__ import annotations

import copy
import gzip
import json
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import numpy as np

from tidemill.serve.grpc.messages import METHODS, PACKAGE, SERVICE, messages
from tidemill.testing.packages import EXAMPLE, tiny_probability

PATIENCE_S = 30.0
DEPARTS = 1_370_115_000_000_000
COLUMNS = {
    "distance": ("FP64", 1400.0), "fare": ("FP32", 12.5), "seats": ("INT64", 3), "carrier": ("BYTES", "UA"), "weekend": ("BOOL", True),
    "departs": ("INT64", DEPARTS),
}  # fmt: skip
NUMPY = {"FP64": np.float64, "FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_}

# Values where others belong. Those of bytes go into the text as they are: no JSON writer makes them.
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, -1e308, 5e-324, "", "\0", "a" * 5000, "\ud800", "航空", "😀",
    "NaN", "2013-13-45T99:99:99Z", "9999-12-31T23:59:59Z", "FP16", "BF16", "INT8", "UINT64", "prediction", "__valid", [], {}, [[]], [[[1]]], [None],
    [1, 2, 3], [2**31 - 1], [2**31, 2**31], [0], [-1, 1], [1, 1, 1], {"b64": "AAAA"}, {"binary_data_size": 3}, {"binary_data_size": -1}, {"binary_data_size": 2**70},
]  # fmt: skip
RAW = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 10_000,
    b"0." + b"1" * 10_000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xff\xfe",
    b'"\\ud800"',
    b"\0",
    b"01",
    b"'a'",
    b"// a",
]
TOKEN = b"@@raw@@"

HEADERS = {
    "content-type": ["", "text/plain", "application/json; charset=utf-16", "image/png", "application/vnd.apache.arrow.stream", "multipart/form-data", "\xff"],
    "content-encoding": ["gzip", "zstd", "br", "gzip, gzip", "identity", "x" * 300],
    "accept": ["application/vnd.apache.arrow.file", "*/*;q=9", "\xff"],
    "accept-encoding": ["gzip", "zstd;q=0, gzip", ";;;,,,q=", "identity;q=0"],
    "inference-header-content-length": ["0", "-1", "1", "5", "99999999", "9" * 6000, "٣", "1.5", "", "0x10"],
    "x-request-timeout-ms": ["0", "-1", "nan", "inf", "1e400", "abc", "0.0001"],
    "x-request-priority": ["0", "1", "10", "a", "9" * 5000],
    "x-request-id": ["", "\xff", "a" * 300, "a\tb"],
    "traceparent": ["00-0-0-00", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"],
    "authorization": ["Bearer", "Bearer tm_a_b", "Basic \xff", "Bearer " + "a." * 3000],
    "x-forwarded-for": ["::::", ","], "expect": ["100-continue", "200-maybe"], "origin": ["null"], "cookie": ["a" * 3000],
}  # fmt: skip
PATHS = [
    "/predict", "/predict_batch", "/v1/models/rows:predict", "/v1/models/texts:predict", "/v2/models/rows/infer", "/v2/models/rows/versions/1/infer",
    "/v2/models/texts/infer", "/models/rows/predict", "/v2/repository/index",
]  # fmt: skip
STRANGE_PATHS = [
    "/",
    "//",
    "/v2/models/%00/infer",
    "/v2/models/rows%2finfer",
    "/v2/models/../rows",
    "/v1/models/:predict",
    "/%",
    "/?a=%zz",
    "*",
    "/" + "a" * 9000,
]
# What breaks the frame around a request, after which the connection is over.
FRAMES = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n", b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
    b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: " + b"9" * 40 + b"\r\n\r\n{}", b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{}",
    b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
    b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n", b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n{}",
    b"GET /health HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n", b"GET /health HTTP/1.1\nhost: a\n\n", b"GET  /health\r\n\r\n", b"\r\n\r\n\r\n", b"\0" * 100,
    b"GET /health HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 65_536 + b"\r\n\r\n", b"GET /health HTTP/1.1\r\n" + b"x: a\r\n" * 3000 + b"\r\n",
]  # fmt: skip


def torn(draw: random.Random, body: bytes, *, put_in: Callable[[], bytes], longest: int) -> bytes:
    """A body with some bytes changed, put in or left out at random places."""
    made = bytearray(body)
    for _ in range(draw.choice((1, 2, 8))):
        at = draw.randrange(len(made) + 1)
        kind = draw.randrange(3)
        if kind == 0 and made:
            made[at % len(made)] = draw.randrange(256)
        elif kind == 1:
            made[at:at] = put_in()
        else:
            del made[at : at + draw.choice((1, 4, longest))]
    return bytes(made)


class HttpFuzz:
    """Sends malformed HTTP over a connection that it keeps, and good requests between; counts the statuses of both."""

    def __init__(self, url: str, seed: int) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._address = (host, int(port))
        self._draw = random.Random(seed)
        self._file: Any = None
        self.statuses: Counter[int] = Counter()
        self.failures: list[tuple[int, bytes, bytes]] = []

    def send(self) -> None:
        """One malformed request."""
        if self._draw.random() < 0.04:
            return self._send_frame(self._draw.choice(FRAMES))
        method, path, headers, body = self._request()
        lines = [
            f"{method} {path} HTTP/1.1",
            "host: a",
            f"content-length: {len(body)}",
            *(f"{key}: {value}" for key, value in headers.items()),
        ]
        content = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body
        status, answer = self._asked(content)
        self._note(status, content, answer)
        return None

    def check(self) -> None:
        """One good request: it must have its own answer."""
        self.close()  # the server may have had enough of the other one
        record = {**EXAMPLE, "distance": float(self._draw.randrange(3000)), "carrier": self._draw.choice(["UA", "DL", "航空"])}
        body = json.dumps(record).encode()
        content = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        status, answer = self._asked(content)
        assert status == 200, answer
        assert abs(json.loads(answer)["probability"] - tiny_probability(record)) < 1e-6

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what was not sent is nobody's any more
                self._file.close()
            self._file = None

    def _note(self, status: int, sent: bytes, answer: bytes) -> None:
        self.statuses[status] += 1
        if status >= 500 and status not in (503, 504):
            self.failures.append((status, sent[:2000], answer[:500]))

    def _request(self) -> tuple[str, str, dict[str, str], bytes]:
        draw = self._draw
        path, tree = draw.choice(PATHS), None
        headers = {"content-type": "application/json"}
        raw = b""
        if path.endswith("/infer"):
            tree, raw = self._inference("texts" in path)
        elif path.endswith("index"):
            tree = {"ready": True}
        else:
            record: Any = {"text": "great"} if "texts" in path else dict(EXAMPLE)
            tree = {"records": [record] * 2} if path.endswith("batch") else {"instances": [record]} if "v1" in path else record
        kind = draw.random()
        if kind < 0.7:
            for _ in range(draw.choice((1, 1, 1, 2, 4))):
                tree = self._spoilt(tree)
        body = json.dumps(tree).encode("utf-8", "surrogatepass")
        body = body.replace(b'"' + TOKEN + b'"', draw.choice(RAW))
        if raw:
            headers["inference-header-content-length"] = str(len(body))
            body += raw
        if kind > 0.6:
            body = self._torn(body)
        if draw.random() < 0.05:
            body = gzip.compress(body, 1)
            headers["content-encoding"] = "gzip"
        for _ in range(draw.choice((0, 0, 0, 1, 2))):
            name = draw.choice(list(HEADERS))
            headers[name] = draw.choice(HEADERS[name])
        method = "POST" if draw.random() < 0.97 else draw.choice(["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW", "post"])
        return method, path if draw.random() < 0.97 else draw.choice(STRANGE_PATHS), headers, body

    def _inference(self, text: bool) -> tuple[dict[str, Any], bytes]:
        """A right request of tensors, raw or not."""
        columns = {"text": ("BYTES", "great")} if text else COLUMNS
        is_raw = self._draw.random() < 0.5
        inputs, raw = [], b""
        for name, (kind, value) in columns.items():
            tensor: dict[str, Any] = {"name": name, "shape": [1, 1], "datatype": kind}
            if is_raw:
                content = packed(kind, value)
                tensor["parameters"] = {"binary_data_size": len(content)}
                raw += content
            else:
                tensor["data"] = [value]
            inputs.append(tensor)
        return {"id": "7", "inputs": inputs, "outputs": [{"name": "probability"}], "parameters": {"priority": 1}}, raw

    def _spoilt(self, tree: Any) -> Any:
        """The tree with one of its nodes changed, left out or doubled."""
        draw = self._draw
        tree = copy.deepcopy(tree)
        places: list[tuple[Any, Any]] = []

        def walk(node: Any) -> None:
            for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
                places.append((node, key))
                walk(node[key])

        walk(tree)
        if not places or draw.random() < 0.02:
            return draw.choice(VALUES)
        node, key = draw.choice(places)
        kind = draw.random()
        if kind < 0.6:
            node[key] = copy.deepcopy(draw.choice(VALUES))
        elif kind < 0.7:
            node[key] = TOKEN.decode()
        elif kind < 0.85:
            del node[key]
        elif isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[str(draw.choice(["", "a", "name", "id", "\0", key + "__valid"]))] = node.pop(key)
        return tree

    def _torn(self, body: bytes) -> bytes:
        return torn(self._draw, body, put_in=lambda: self._draw.choice(RAW), longest=1000)

    def _send_frame(self, frame: bytes) -> None:
        self.close()
        with socket.create_connection(self._address, timeout=PATIENCE_S) as once:
            try:
                once.sendall(frame)
                once.shutdown(socket.SHUT_WR)
                answer = once.makefile("rb").read()
            except OSError:
                answer = b""
        found = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
        self._note(int(found[1]) if found else 0, frame, answer)

    def _asked(self, content: bytes) -> tuple[int, bytes]:
        """Status and body; 0 where the server closed the connection instead."""
        try:
            if self._file is None:
                made = socket.create_connection(self._address, timeout=PATIENCE_S)
                self._file = made.makefile("rwb")
                made.close()  # the file holds it
            self._file.write(content)
            self._file.flush()
            status, headers = self._head()
            while status == 100:
                status, headers = self._head()
            is_head = content.startswith(b"HEAD ") or status == 204
            body = b"" if is_head else self._file.read(int(headers.get(b"content-length", b"0")))
            if headers.get(b"connection", b"").lower() == b"close":
                self.close()
            return status, body
        except (ConnectionError, ValueError):
            self.close()
            return 0, b""

    def _head(self) -> tuple[int, dict[bytes, bytes]]:
        first = self._file.readline().split()
        headers = {}
        while (line := self._file.readline()) not in (b"\r\n", b""):
            key, _, value = line.partition(b":")
            headers[key.strip().lower()] = value.strip()
        if len(first) < 2:
            raise ConnectionError("closed")
        return int(first[1]), headers


class GrpcFuzz:
    """Sends malformed messages to every method, and good ones between; counts the codes."""

    def __init__(self, address: str, seed: int) -> None:
        self._draw = random.Random(seed)
        self._channel = grpc.insecure_channel(address)
        self._calls: dict[str, Callable[..., Any]] = {
            method: self._channel.unary_unary(f"/{PACKAGE}.{SERVICE}/{method}") for method in [*METHODS, "NoSuchMethod"]
        }
        self._messages = messages()
        self.codes: Counter[str] = Counter()
        self.failures: list[tuple[str, str, bytes, str | None]] = []

    def send(self) -> None:
        draw = self._draw
        method = "ModelInfer" if draw.random() < 0.8 else draw.choice(list(self._calls))
        body = self._message(method)
        if draw.random() < 0.6:
            body = self._torn(body)
        metadata = [(name, draw.choice(["", "a", "-1", "9" * 300])) for name in draw.sample(("x-request-timeout-ms", "x-request-priority", "x-request-id", "authorization"), draw.choice((0, 0, 0, 1)))]  # fmt: skip
        try:
            self._calls[method](body, metadata=metadata, timeout=PATIENCE_S)
            code, details = "OK", None
        except grpc.RpcError as error:
            code, details = error.code().name, error.details()  # type: ignore[attr-defined]
        self.codes[code] += 1
        if code in ("INTERNAL", "UNKNOWN", "DATA_LOSS") or (code == "UNIMPLEMENTED") != (method == "NoSuchMethod"):
            self.failures.append((method, code, body[:500], details))

    def check(self) -> None:
        record = {**EXAMPLE, "distance": float(self._draw.randrange(3000))}
        answer = self._messages["ModelInferResponse"].FromString(
            self._calls["ModelInfer"](self._whole(record["distance"]).SerializeToString(), timeout=PATIENCE_S)
        )
        assert [output.name for output in answer.outputs] == ["probability"]
        assert abs(np.frombuffer(answer.raw_output_contents[0], np.float32)[1] - tiny_probability(record)) < 1e-6

    def close(self) -> None:
        self._channel.close()

    def _whole(self, distance: float = 1400.0) -> Any:
        columns = {**COLUMNS, "distance": ("FP64", distance)}
        return self._messages["ModelInferRequest"](
            model_name="rows",
            inputs=[{"name": name, "datatype": kind, "shape": [1, 1]} for name, (kind, _) in columns.items()],
            outputs=[{"name": "probability"}],
            raw_input_contents=[packed(kind, value) for kind, value in columns.values()],
        )

    def _message(self, method: str) -> bytes:
        draw = self._draw
        if method != "ModelInfer":
            known = METHODS.get(method)
            names = self._messages[known[0]].DESCRIPTOR.fields_by_name if known else {}
            wrong = ["", "none", "../..", "\0", "a" * 3000, "航空"]  # not a right one to load and unload: the others need it
            texts = {name: draw.choice([*wrong, "rows"]) for name in ("name", "version") if name in names}
            texts |= {name: draw.choice(wrong) for name in ("model_name", "repository_name") if name in names}
            return bytes(self._messages[known[0]](**texts).SerializeToString()) if known else b"\x0a\x01a"
        made = self._whole()
        for _ in range(draw.choice((0, 1, 1, 2))):
            tensor = draw.choice(made.inputs) if made.inputs else made.inputs.add()
            kind = draw.randrange(12)
            if kind == 0:
                tensor.datatype = draw.choice(["", "FP16", "BF16", "INT8", "UINT64", "BYTES", "BOOL", "x" * 1000])
            elif kind == 1:
                tensor.shape[:] = draw.choice([[], [0], [-1, 1], [2**62, 4], [2**31 - 1, 1], [1, 1, 1], [1], [3, 1]])
            elif kind == 2:
                tensor.name = draw.choice(["", "none", "\0", "seats__valid", "distance"])
            elif kind == 3:
                tensor.contents.int_contents.extend(draw.choice([[], [2**31 - 1], [-1] * 50]))
            elif kind == 4 and made.raw_input_contents:
                del made.raw_input_contents[draw.randrange(len(made.raw_input_contents))]
            elif kind == 5:
                made.raw_input_contents.append(draw.choice([b"", b"\xff" * 7, b"\xff\xff\xff\x7f"]))
            elif kind == 6:
                made.model_version = draw.choice(["9", "", "../1", "\0", "a" * 2000])
            elif kind == 7:
                made.outputs.add(name=draw.choice(["", "none", "probability", "prediction"]))
            elif kind == 8:
                made.parameters[draw.choice(["timeout", "priority", "a"])].int64_param = draw.choice([-1, 0, 1, 2**63 - 1, -(2**63)])
            elif kind == 9:
                made.parameters[draw.choice(["timeout", "priority"])].string_param = "a"
            elif kind == 10:
                made.model_name = draw.choice(["", "texts", "none", "rows/infer", "%2e", "a" * 3000])
            else:
                del made.raw_input_contents[:]
        return bytes(made.SerializeToString())

    def _torn(self, body: bytes) -> bytes:
        return torn(self._draw, body, put_in=lambda: self._draw.randbytes(self._draw.randrange(1, 9)), longest=50)


def packed(kind: str, value: Any) -> bytes:
    """One value as a raw tensor."""
    if kind == "BYTES":
        return struct.pack("<I", len(value.encode())) + bytes(value.encode())
    return np.array([value], NUMPY[kind]).tobytes()
