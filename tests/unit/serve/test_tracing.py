"""Spans of requests, as a collector receives them: read from the bytes that come over the wire."""

from __future__ import annotations

import gzip
import http.server
import itertools
import json
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tidemill.core.errors import ConfigError
from tidemill.core.events import Event, Events
from tidemill.core.package import Package
from tidemill.core.project import build
from tidemill.serve import tracing
from tidemill.serve.access_log import Trace
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request, Response
from tidemill.serve.model import Model
from tidemill.serve.tracing import TraceConfig
from tidemill.testing.packages import EXAMPLE, tiny_package

BODY = json.dumps(EXAMPLE).encode()
SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PARTS = ["queue", "preprocess", "queue", "infer", "postprocess"]


class Collector:
    """Takes OTLP over HTTP, or refuses it."""

    def __init__(self) -> None:
        self.got: queue.Queue[tuple[str, dict[str, str], Any]] = queue.Queue()
        self.status = 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if outer.status == 200:
                    outer.got.put((self.path, dict(self.headers.items()), ExportTraceServiceRequest.FromString(body)))
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self) -> list[Any]:
        found = []
        while not self.got.empty():
            request = self.got.get()[2]
            found += [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("packages") / "tiny", version="3")


@pytest.fixture
def ask(package: Package) -> Callable[..., list[Response]]:
    """Answers requests by an application of the given configuration, and closes it."""

    def asked(*requests: Request, seen: list[Event] | None = None, **config: Any) -> list[Response]:
        app = App([Model(package)], config=ServeConfig(**config), events=Events(*([seen.append] if seen is not None else [])))
        responses = [app.handle(request) for request in requests]
        app.close()
        return responses

    return asked


def predict(**headers: str) -> Request:
    return Request("POST", "/predict", headers=headers, body=BODY, client="10.0.0.1")


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_request_is_a_span_with_one_for_each_of_its_parts(ask: Any, collector: Collector) -> None:
    (response,) = ask(predict(**{"x-request-id": "order-17"}), trace=TraceConfig(endpoint=collector.url))
    whole, *parts = collector.spans()
    assert whole.name == "POST /predict"
    assert whole.kind == whole.SPAN_KIND_SERVER
    assert whole.parent_span_id == b""
    assert attributes(whole) == {
        "http.request.method": "POST", "http.route": "/predict", "http.response.status_code": 200, "client.address": "10.0.0.1",
        "tidemill.request_id": "order-17", "tidemill.model": "tiny", "tidemill.version": "3", "tidemill.rows": 1,
    }  # fmt: skip
    assert [part.name for part in parts] == PARTS
    assert {part.parent_span_id for part in parts} == {whole.span_id}
    assert {part.trace_id for part in parts} == {whole.trace_id}
    assert len({part.span_id for part in parts}) == len(PARTS)
    # One after the other, from the first moment to the last but for what the writing takes.
    assert parts[0].start_time_unix_nano == whole.start_time_unix_nano
    for before, after in itertools.pairwise(parts):
        assert before.start_time_unix_nano <= before.end_time_unix_nano == after.start_time_unix_nano
    assert parts[-1].end_time_unix_nano <= whole.end_time_unix_nano
    assert dict(response.headers)["traceparent"] == f"00-{whole.trace_id.hex()}-{whole.span_id.hex()}-01"


def test_a_callers_trace_goes_on_where_it_is_sampled(ask: Any, collector: Collector) -> None:
    responses = ask(
        predict(traceparent=SAMPLED), predict(traceparent=SAMPLED[:-2] + "00"), trace=TraceConfig(endpoint=collector.url, ratio=0.0)
    )
    whole, *_ = spans = collector.spans()
    assert len(spans) == 1 + len(PARTS)
    assert whole.trace_id.hex() == SAMPLED.split("-")[1]
    assert whole.parent_span_id.hex() == SAMPLED.split("-")[2]
    assert [dict(response.headers)["traceparent"][-2:] for response in responses] == ["01", "00"]


def test_a_share_of_new_traces_is_sampled() -> None:
    sampled = [Trace.of(None, ratio=0.25).is_sampled for _ in range(4000)]
    assert 800 < sum(sampled) < 1200  # 7 standard deviations
    assert not any(Trace.of(None).is_sampled for _ in range(100))
    assert all(Trace.of(None, ratio=1.0).is_sampled for _ in range(100))


def test_refusals_have_a_span_and_failures_say_so(ask: Any, collector: Collector) -> None:
    requests = [Request("POST", "/predict", body=b"{"), Request("EVIL\n", "/a-secret"), Request("GET", "/health")]
    ask(*requests, trace=TraceConfig(endpoint=collector.url))
    spans = collector.spans()
    assert [span.name for span in spans] == ["POST /predict", "_OTHER none", "GET /health"]
    assert [attributes(span)["http.response.status_code"] for span in spans] == [400, 404, 200]
    assert not any(b"secret" in span.SerializeToString() for span in spans)
    assert [span.status.code for span in spans] == [0, 0, 0]


def test_the_line_of_the_access_log_and_the_span_are_of_one_trace(ask: Any, collector: Collector, tmp_path: Path) -> None:
    ask(predict(), trace=TraceConfig(endpoint=collector.url), access_log=tmp_path / "access.jsonl")
    line = json.loads((tmp_path / "access.jsonl").read_text())
    whole = collector.spans()[0]
    assert (line["trace"], line["span"]) == (whole.trace_id.hex(), whole.span_id.hex())


def test_the_standard_variables_say_where_and_who(ask: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=mill")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "flights")
    ask(predict(), trace=TraceConfig())
    path, headers, request = collector.got.get(timeout=10)
    assert path == "/v1/traces"
    assert headers["x-tenant"] == "mill"
    resource = attributes(request.resource_spans[0].resource)
    assert resource["service.name"] == "flights"
    assert resource["process.pid"] > 0
    ask(predict(), trace=TraceConfig(service="mill"))
    assert attributes(collector.got.get(timeout=10)[2].resource_spans[0].resource)["service.name"] == "mill"


def test_a_collector_that_refuses_loses_spans_alone_and_is_told_of_once(
    package: Package, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Event] = []
    collector.status = 400
    app = App([Model(package)], config=ServeConfig(trace=TraceConfig(endpoint=collector.url)), events=Events(seen.append))
    assert app._tracer is not None
    monkeypatch.setattr(tracing, "MOST_WAITING", 0)
    assert app.handle(predict()).status == 200
    monkeypatch.undo()
    for _ in range(2):
        assert app.handle(predict()).status == 200
        until(lambda: app._tracer is not None and app._tracer._waiting == 0)
    collector.status = 200
    assert app.handle(predict()).status == 200
    app.close()
    assert [event.kind for event in seen] == ["serve.trace_lost", "serve.trace_sent"]
    lines = app.metrics.render().decode().splitlines()
    for outcome, count in {"dropped": 1, "failed": 2, "sent": 1}.items():
        assert f'tidemill_traced_requests_total{{outcome="{outcome}"}} {count}' in lines


def test_a_collector_that_is_away_holds_up_no_end(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "STOP_S", 0.1)
    seen: list[Event] = []
    assert [response.status for response in ask(predict(), trace=TraceConfig(endpoint="http://127.0.0.1:1"), seen=seen)] == [200]
    assert [event.kind for event in seen] == ["serve.trace_lost"]


def test_nothing_is_said_without_the_section(ask: Any) -> None:
    assert "traceparent" not in dict(ask(predict(traceparent=SAMPLED))[0].headers)


@pytest.mark.parametrize("endpoint", ["collector:4317", "grpc://collector", "http://", "/v1/traces"])
def test_a_wrong_address(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"serve\.trace\.endpoint: must be an http or https address"):
        build(ServeConfig, {"trace": {"endpoint": endpoint}}, path="serve", where="tidemill.toml")


def until(holds: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(2000):
        if holds():
            return
        done.wait(0.01)
    raise AssertionError("it must come true within twenty seconds")
