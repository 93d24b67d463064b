"""`[serve.trace]`: requests as OpenTelemetry spans, each with a span for every part of its way, sent over OTLP/HTTP.

A request only hands over numbers; spans are made of them, and sent, by a thread of its own. A collector that does not answer loses spans, never
requests, and what waits for it is bounded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from tidemill.core.errors import ConfigError
from tidemill.core.events import Events
from tidemill.core.load import need
from tidemill.serve.access_log import Trace
from tidemill.serve.background import Background

# Requests that wait to be sent; beyond, their spans are dropped.
MOST_WAITING = 10_000
# Time that one sending may take, repetitions included, and that the last one is given when the server stops.
SEND_S = 10.0
STOP_S = 3.0

_PURPOSE = "serve.trace"
_PATH = "/v1/traces"

# A part of a request's way: its name, and from when to when, of `perf_counter`.
Part = tuple[str, float, float]


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """`[serve.trace]`: where spans go, and of how many requests. Needs the extra [otel]."""

    endpoint: str | None = None
    """Address that takes OTLP over HTTP, such as http://collector:4318; the standard variables OTEL_EXPORTER_OTLP_ENDPOINT and its kin say
    it when absent, and headers with secrets in either case."""
    ratio: float = field(default=1.0, metadata={"min": 0.0, "max": 1.0})
    """Share of the traces that begin here which are sent; a caller's `traceparent` says it for its own."""
    service: str | None = None
    """Name of the service that the spans are of; OTEL_SERVICE_NAME, else tidemill, when absent."""

    def check(self) -> None:
        if self.endpoint is not None and (urlsplit(self.endpoint).scheme not in ("http", "https") or not urlsplit(self.endpoint).hostname):
            raise ConfigError(f"serve.trace.endpoint: must be an http or https address, got {self.endpoint!r}")


@dataclass(frozen=True, slots=True)
class Told:
    """One request as it is told to the tracer; `at_ns` is the time of the day at `ended`."""

    trace: Trace
    name: str
    arrived: float
    ended: float
    at_ns: int
    parts: Sequence[Part]
    is_failed: bool
    attributes: dict[str, str | int]


class Tracer:
    """Sends what requests did. Safe from several threads.

    Args:
        count: Called with what became of requests' spans, sent, failed or dropped, and of how many requests.

    Raises:
        MissingDependency: If the extra [otel] is not installed.
    """

    def __init__(self, config: TraceConfig, *, events: Events, count: Callable[[str, int], None]) -> None:
        exporter = need("opentelemetry.exporter.otlp.proto.http.trace_exporter", _PURPOSE)
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # what it would say again and again is said once, here
        self._ratio = config.ratio
        self._events = events
        self._count = count
        self._exporter = exporter.OTLPSpanExporter(endpoint=_full(config.endpoint), timeout=SEND_S)
        self._spans = Spans(config.service)
        self._lock = threading.Lock()
        self._waiting = 0
        self._is_lost = False
        self._pending: Background[Told] = Background(self._send, name="trace")

    def trace(self, header: str | None) -> Trace:
        """A request's place: in the caller's trace, or in one that begins here, which is sampled by its own number."""
        return Trace.of(header, ratio=self._ratio)

    def tell(
        self, trace: Trace, *, name: str, arrived: float, parts: Sequence[Part], is_failed: bool, attributes: dict[str, str | int]
    ) -> None:
        """Have a request that has ended now sent, where its trace is sampled."""
        if not trace.is_sampled:
            return
        with self._lock:
            is_taken = self._waiting < MOST_WAITING
            self._waiting += is_taken
        if is_taken:
            self._pending.put(Told(trace, name, arrived, perf_counter(), time.time_ns(), parts, is_failed, attributes))
        else:
            self._count("dropped", 1)

    def close(self) -> None:
        """Send what is pending; what cannot be sent within some seconds is lost."""
        late = threading.Timer(STOP_S, self._exporter.shutdown)
        late.daemon = True
        late.start()
        self._pending.close()
        late.cancel()

    def _send(self, told: list[Told]) -> None:
        try:
            is_sent = self._exporter.export([span for one in told for span in self._spans.of(one)]).name == "SUCCESS"
            reason = "the collector does not take them"
        except Exception as error:  # noqa: BLE001 - the edge of the thread; what the library did not foresee loses spans alone
            is_sent, reason = False, f"{type(error).__name__}: {error}"
        with self._lock:
            self._waiting -= len(told)
        self._count("sent" if is_sent else "failed", len(told))
        if not is_sent and not self._is_lost:
            self._events.warn("serve.trace_lost", f"spans are lost: {reason}")
        elif is_sent and self._is_lost:
            self._events.emit("serve.trace_sent", "the collector takes spans again")
        self._is_lost = not is_sent


class Spans:
    """Makes OpenTelemetry's spans of what was told."""

    def __init__(self, service: str | None) -> None:
        self._api: Any = need("opentelemetry.trace", _PURPOSE)
        self._sdk: Any = need("opentelemetry.sdk.trace", _PURPOSE)
        resources: Any = need("opentelemetry.sdk.resources", _PURPOSE)
        ids: Any = need("opentelemetry.sdk.trace.id_generator", _PURPOSE)
        scopes: Any = need("opentelemetry.sdk.util.instrumentation", _PURPOSE)
        base = {"service.name": "tidemill", "service.version": version("tidemill"), "process.pid": os.getpid()}
        resource = resources.Resource(base).merge(resources.OTELResourceDetector().detect())
        self._resource = resource.merge(resources.Resource({"service.name": service})) if service else resource
        self._scope = scopes.InstrumentationScope("tidemill.serve", version("tidemill"))
        self._new_id = ids.RandomIdGenerator().generate_span_id

    def of(self, told: Told) -> list[Any]:
        """The span of the request, and below it one for each part."""
        api = self._api
        trace = int(told.trace.trace, 16)
        here = self._place(trace, int(told.trace.span, 16))
        parent = self._place(trace, int(told.trace.parent, 16), remote=True) if told.trace.parent else None
        status = api.Status(api.StatusCode.ERROR if told.is_failed else api.StatusCode.UNSET)

        def moment(at: float) -> int:
            return told.at_ns - round((told.ended - at) * 1e9)

        whole = self._span(
            told.name, here, parent, api.SpanKind.SERVER, moment(told.arrived), told.at_ns, status=status, attributes=told.attributes
        )
        below = [
            self._span(name, self._place(trace, self._new_id()), here, api.SpanKind.INTERNAL, moment(begun), moment(ended))
            for name, begun, ended in told.parts
        ]
        return [whole, *below]

    def _span(self, name: str, here: Any, parent: Any, kind: Any, begun: int, ended: int, **more: Any) -> Any:
        return self._sdk.ReadableSpan(
            name, here, parent, self._resource, kind=kind, start_time=begun, end_time=ended, instrumentation_scope=self._scope, **more
        )

    def _place(self, trace: int, span: int, *, remote: bool = False) -> Any:
        return self._api.SpanContext(trace, span, remote, self._api.TraceFlags(self._api.TraceFlags.SAMPLED))


def _full(endpoint: str | None) -> str | None:
    """The address with the protocol's own path where it has none."""
    return endpoint.rstrip("/") + _PATH if endpoint is not None and urlsplit(endpoint).path in ("", "/") else endpoint
