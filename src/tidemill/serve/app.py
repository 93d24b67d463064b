"""The application: a request in, a response out. Knows models and addresses, and no transport.

`handle` does it all in one call. A transport does the steps itself: `admit` before it reads the body, `read`, `begin` where there is work for
a model, and, when that is done, `finish`.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

from tidemill.core.errors import ConfigError, DataError, Unavailable
from tidemill.core.events import Events
from tidemill.serve import docs, encoding, kserve, metrics, oip, plain
from tidemill.serve.access import Access, Caller
from tidemill.serve.access_log import TRACEPARENT, AccessLog, Trace
from tidemill.serve.address import is_loopback
from tidemill.serve.batching.batches import Batches
from tidemill.serve.batching.job import Job
from tidemill.serve.batching.wishes import wishes
from tidemill.serve.cache import Cache, CacheConfig, Kept, LocalKept, RedisKept
from tidemill.serve.config import ServeConfig
from tidemill.serve.cors import Cors
from tidemill.serve.deployment import repository
from tidemill.serve.deployment.repository import Repository
from tidemill.serve.deployment.slot import Standing
from tidemill.serve.http import Refused, Request, Response, json_response
from tidemill.serve.limits import Limits
from tidemill.serve.metrics import Metrics
from tidemill.serve.model import Model
from tidemill.serve.prediction_log import PredictionLog
from tidemill.serve.routes import Route, Work
from tidemill.serve.table import Table
from tidemill.serve.tracing import Part, Tracer

# Up to this size a request is read on the event loop, in bytes; one of a slow model, whose texts are taken apart there too.
INLINE_BYTES = 16_384
PREPARED_BYTES = 2_048

# Versions that answer no more whose counts are shown still.
PAST_VERSIONS = 4

_ID = "x-request-id"
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE")
_NOWHERE = Route(method="", path="", label="none", handle=lambda _: Response(404, []))


@dataclass(slots=True)
class Call:
    """One request on its way: admitted (`route`, `caller`), read (`work`), answered by the model (`job`), written (`response`)."""

    request: Request
    started: float
    route: Route = _NOWHERE
    caller: Caller | None = None
    work: Work | None = None
    job: Job | None = None
    response: Response | None = None
    held: Model | None = None
    parsed: float = 0.0


class App:
    """Answers for one or more models, the first being the default. Safe from several threads.

    Args:
        folder: What paths in the configuration are relative to; the current folder when absent.

    Raises:
        ConfigError: If two models have the same name and version, or a file that the configuration names is not there.
    """

    def __init__(
        self, models: Sequence[Model], *, config: ServeConfig | None = None, folder: Path | None = None, events: Events | None = None
    ) -> None:
        self.config = config or ServeConfig()
        self.metrics = Metrics()
        self.draining = False
        self.repository: Repository | None = None
        """Loads and unloads by name; without one nobody can."""
        self.view: Callable[[], bytes] | None = None
        """Metrics of all processes of a server; of this one alone where absent."""
        self._standings: tuple[Standing, ...] = ()
        self._events = events or Events()
        folder = folder or Path()
        self.access = Access(self.config.auth, folder=folder, events=self._events) if self.config.auth is not None else None
        self.limits = Limits(self.config.limits, events=self._events) if self.config.limits is not None else None
        self.cors = Cors(self.config.cors) if self.config.cors is not None else None
        self._kept = self._made_kept(self.config.cache) if self.config.cache is not None else None
        self.keeps_answers = self._kept is not None
        """Whether a call may wait for what is computed for another one, on whichever thread."""
        self.asks_elsewhere = self.config.cache is not None and self.config.cache.redis is not None
        """Whether looking for a kept answer takes a way over the network."""
        self._batches: dict[Model, Batches] = {}
        self._started = time.time()
        self._log = PredictionLog(self.config.log_folder, count=self._count_log) if self.config.log else None
        self._access_log = AccessLog(self.config.access_log) if self.config.access_log is not None else None
        self._tracer = Tracer(self.config.trace, events=self._events, count=self._count_traces) if self.config.trace is not None else None
        self._ids = itertools.count(1)
        self._id_prefix = secrets.token_hex(4)
        self._past: list[tuple[str, str]] = []
        self._forgetting = threading.Lock()
        self._table = Table(models=(), routes={})
        if not models:
            raise ConfigError("at least one package must be served, got none")
        self.replace(models)

    @property
    def models(self) -> tuple[Model, ...]:
        """Those that answer now; the first is the default."""
        return self._table.models

    def replace(self, models: Sequence[Model]) -> None:
        """Answer with these models from the next request on; requests that were admitted keep theirs.

        Whoever takes a model out waits for its `holds`, and closes it.

        Raises:
            ConfigError: If two have the same name and version.
        """
        table = Table.of(models, self._all_routes(models), more=self._more_routes)
        for model in models:
            if model not in self._batches:
                self._batches[model] = self._made_batches(model)
        before, self._table = self._table, table
        with self.metrics.lock:
            for model in before.models:
                self.metrics.models.drop(model.name, model.version, model.package.identity, model.package.task)
            for model in models:
                self.metrics.models.sample(model.name, model.version, model.package.identity, model.package.task).value = 1

    def stand(self, standings: Sequence[Standing]) -> None:
        """Say from now on that this is how what is deployed stands."""
        before, self._standings = self._standings, tuple(standings)
        with self.metrics.lock:
            for one in before:
                self.metrics.deployments.drop(*_stood(one))
            for one in standings:
                self.metrics.deployments.sample(*_stood(one)).value = 1

    def forget(self, model: Model) -> None:
        """Let go of what belongs to a model that answers no more."""
        batches = self._batches.pop(model, None)
        if batches is not None:
            batches.close()
        with self._forgetting:
            if (model.name, model.version) in self._past:
                self._past.remove((model.name, model.version))
            self._past.append((model.name, model.version))
            old = self._past.pop(0) if len(self._past) > PAST_VERSIONS else None
        if old is not None and old not in [(one.name, one.version) for one in self.models]:
            self.metrics.forget(*old)

    def handle(self, request: Request) -> Response:
        """The response, whatever the request; never raises."""
        return self.answer(self.admit(request))

    def admit(self, request: Request) -> Call:
        """The request's way, from its head alone: a call that has its response where it may not go on."""
        call = Call(request, request.arrived)
        try:
            if self.cors is not None and request.method == "OPTIONS":
                call.response = self.cors.preflight(request)
                return call
            methods = self._table.methods(request.path)
            route = methods.get("GET" if request.method == "HEAD" else request.method)
            counted = self.limits if route is None or route.verb != "open" else None
            if counted is not None:
                counted.check_address(request)
            if self.access is not None:  # whoever may not ask does not learn either what there is
                call.caller = self.access.check(request, route)
                if counted is not None:
                    counted.check_caller(call.caller)
            call.route = route or self._missing(request, methods)
            if call.route.model is not None:
                self._hold(call, call.route.model)
        except Exception as error:  # noqa: BLE001 - the process edge: every failure becomes a response
            self._fail(call, error)
        return call

    def answer(self, call: Call) -> Response:
        """The response to an admitted call whose body is here; never raises."""
        self.read(call)
        self.infer(call)
        return self.finish(call)

    def read(self, call: Call) -> None:
        """The request read: the call has its response, or work for a model."""
        call.started = perf_counter()
        if call.response is None:
            try:
                request = call.request
                if request.body and (packed := request.headers.get("content-encoding")):
                    request.body = encoding.decoded(request.body, str(packed), max_bytes=int(self.config.max_body_mb * 1e6))
                result = call.route.handle(request)
                if isinstance(result, Work):
                    call.work = result
                else:
                    call.response = result
            except Exception as error:  # noqa: BLE001 - as above
                self._fail(call, error)
        call.parsed = perf_counter()

    def infer(self, call: Call) -> None:
        """Have the call's rows answered, and wait until they are."""
        if call.work is None:
            return
        ended = threading.Event()
        self.begin(call, ended.set)
        ended.wait()

    def begin(self, call: Call, done: Callable[[], None], *, on_loop: bool = False, alone: bool = False) -> None:
        """Have the rows of a call with work answered: `done` is called once, from whichever thread, and maybe before this returns.

        Args:
            on_loop: Whether this is the event loop, where what comes in one turn of it for a quick model goes through together.
            alone: Whether nobody else asks.
        """
        work, request = call.work, call.request
        if work is None:
            return done()
        try:
            batches = self._batches[work.model]
            due, priority = wishes(request, work, default_ms=None if work.rows <= batches.quick_rows else batches.deadline_ms)
            as_row = self._log is None and work.encode_row is not None
            call.job = Job([], work.rows, partial(self._ended, call, done), request.arrived, due, priority, request.wanted, as_row=as_row)
            batches.ask(work, call.job, tenant=call.caller.name if call.caller is not None else "", on_loop=on_loop, alone=alone)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(call, error)
            done()
        return None

    def _ended(self, call: Call, done: Callable[[], None], job: Job) -> None:
        if job.error is not None:
            self._fail(call, job.error)
        done()

    def finish(self, call: Call) -> Response:
        """The call's response, counted and logged; a call with work must have its answers."""
        work, job = call.work, call.job
        if call.response is None and work is not None and job is not None:
            try:
                if job.row is not None and work.encode_row is not None:
                    call.response = work.encode_row(job.row)
                elif job.answers is not None:
                    call.response = work.encode(job.answers)
            except Exception as error:  # noqa: BLE001 - as above
                self._fail(call, error)
        response = call.response or Response(500, [])
        request_id = self._request_id(call.request)
        if self._log is not None and work is not None and job is not None and job.answers is not None:
            self._log.append(work.model, request_id, work.inputs, job.answers)
        if accept := call.request.headers.get("accept-encoding"):
            encoding.encode(response, str(accept))
        response.headers.append((_ID, request_id))
        if self._access_log is not None or self._tracer is not None:
            self._note(call, response, request_id)
        if self.cors is not None:
            response.headers += self.cors.marks(call.request)
        self._count(call, response.status)
        self.release(call)
        return response

    def release(self, call: Call) -> None:
        """The call needs its model no more; for those that end before they are finished. May be said again."""
        held, call.held = call.held, None
        if held is not None:
            held.holds.leave()

    def refuse(self, call: Call, refused: Refused) -> Response:
        """The response to a call whose body the transport could not read whole."""
        call.parsed = call.started = perf_counter()
        self._fail(call, refused)
        return self.finish(call)

    def waits(self, call: Call) -> bool:
        """Whether answering may take long without a model being asked."""
        return call.response is None and (call.route.waits or (call.route.verb == "metrics" and self.view is not None))

    def is_quick(self, call: Call) -> bool:
        """Whether reading takes so little time that it may be done on the event loop."""
        model, request = call.route.model, call.request
        if model is None:
            return True
        is_short = len(request.body) <= (INLINE_BYTES if model.row_ms <= self.config.inline_ms else PREPARED_BYTES)
        return is_short and request.headers.get("content-encoding") is None  # a thousand times as much may be in it

    def queues(self, call: Call) -> bool:
        """Whether the call's work waits for a runner, rather than being done where it was read."""
        return call.work is not None and call.work.rows > self._batches[call.work.model].quick_rows

    def close(self) -> None:
        """Answer what waits, and write what is left of the logs."""
        for batches in self._batches.values():
            batches.close()
        for log in (self._log, self._access_log, self._tracer):
            if log is not None:
                log.close()

    def _made_kept(self, config: CacheConfig) -> Kept:
        return RedisKept(config.redis, ttl_s=config.ttl_s, events=self._events) if config.redis else LocalKept(config)

    def _made_cache(self, kept: Kept, model: Model) -> Cache:
        def count(outcome: str, rows: int) -> None:
            with self.metrics.lock:
                self.metrics.cache_rows.sample(model.name, model.version, outcome).value += rows

        max_rows = self.config.cache.max_rows if self.config.cache is not None else 0
        return Cache(kept, identity=model.package.identity, max_rows=max_rows, count=count)

    def _made_batches(self, model: Model) -> Batches:
        config = self.config
        return Batches(
            model,
            config.batch,
            slots=config.workers or config.cores,
            inline_ms=config.inline_ms,
            cache=self._made_cache(self._kept, model) if self._kept is not None else None,
            metrics=self.metrics,
            arrays=self._log is not None,
        )

    def _hold(self, call: Call, model: Model) -> None:
        """Keep the call's model open; where it was replaced since the call found it, the one in its place."""
        while not model.holds.enter():
            route = self._table.methods(call.request.path).get(call.request.method)
            if route is None or route.model is None:
                raise self._table.unknown(call.request.path)
            call.route, model = route, route.model
        call.held = model

    def _missing(self, request: Request, methods: Mapping[str, Route]) -> NoReturn:
        """Say what there is instead.

        Raises:
            Refused: With 404, or with 405 where other methods are taken.
        """
        if not methods:
            raise self._table.unknown(request.path)
        allowed = ", ".join(sorted(methods))
        raise Refused(405, "method", f"{request.path} takes {allowed}, got {request.method[:20]}", headers=(("allow", allowed),))

    def _fail(self, call: Call, error: Exception) -> None:
        refused = _refusal(error)
        if refused is None:
            details = "".join(traceback.format_exception(error))
            self._events.emit("serve.failed", f"{call.request.method} {call.request.path}: {error}", level="error", traceback=details)
            refused = Refused(500, "internal", "the server failed to answer", hint="its log says why")
        call.job = None
        is_protocol = call.request.path.startswith(("/v1/", "/v2/")) or call.request.path == "/v2"
        call.response = Response(
            refused.status, [("content-type", "application/json"), *refused.headers], refused.body(plain=not is_protocol)
        )
        with self.metrics.lock:
            self.metrics.errors.sample(refused.cause).value += 1

    def _note(self, call: Call, response: Response, request_id: str) -> None:
        """Write the request down where that is wanted: one line, one trace."""
        header = call.request.headers.get(TRACEPARENT)
        trace = self._tracer.trace(header) if self._tracer is not None else Trace.of(header)
        response.headers.append((TRACEPARENT, trace.header))
        if self._access_log is not None:
            self._note_line(self._access_log, call, response, request_id, trace)
        if self._tracer is not None:
            self._note_trace(self._tracer, call, response, request_id, trace)

    def _note_line(self, log: AccessLog, call: Call, response: Response, request_id: str, trace: Trace) -> None:
        request, work = call.request, call.work
        log.append(
            id=request_id, trace=trace.trace, span=trace.span, parent=trace.parent,
            client=request.client, caller=call.caller.name if call.caller is not None else None,
            method=request.method[:20], route=call.route.label, status=response.status,
            ms=round((perf_counter() - request.arrived) * 1e3, 3), received=len(request.body), sent=len(response.body),
            model=work.model.name if work is not None else None, version=work.model.version if work is not None else None,
            rows=work.rows if work is not None else None,
        )  # fmt: skip

    def _note_trace(self, tracer: Tracer, call: Call, response: Response, request_id: str, trace: Trace) -> None:
        request, work, method = call.request, call.work, call.request.method if call.request.method in _METHODS else "_OTHER"
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": call.route.label,
            "http.response.status_code": response.status,
            "client.address": request.client,
            "tidemill.request_id": request_id,
        }
        if work is not None:
            attributes |= {"tidemill.model": work.model.name, "tidemill.version": work.model.version, "tidemill.rows": work.rows}
        tracer.tell(
            trace,
            name=f"{method} {call.route.label}",
            arrived=request.arrived,
            parts=_parts(call, perf_counter()),
            is_failed=response.status >= 500,
            attributes=attributes,
        )

    def _count(self, call: Call, status: int) -> None:
        ended, request, work, job = perf_counter(), call.request, call.work, call.job
        with self.metrics.lock:
            self.metrics.answered(call.route.label, status, ended - request.arrived)
            if work is not None and job is not None:
                queued = call.started - request.arrived + job.begun - call.parsed
                batches = self._batches[work.model]
                batches.counted.call(work.rows, queued, call.parsed - call.started, job.ended - job.begun, ended - job.ended)
                batches.queue.learn(job, ended)

    def _count_traces(self, outcome: str, requests: int) -> None:
        with self.metrics.lock:
            self.metrics.traces.sample(outcome).value += requests

    def _count_log(self, outcome: str, rows: int) -> None:
        with self.metrics.lock:
            self.metrics.log_rows.sample(outcome).value += rows

    def _request_id(self, request: Request) -> str:
        """The caller's, where it is short plain text; else one of our own."""
        given = request.headers.get(_ID)
        if given and len(given) <= 128 and given.isascii() and given.isprintable():
            return str(given)
        return f"{self._id_prefix}-{next(self._ids):x}"

    def _is_ready(self) -> bool:
        return not self.draining

    def _all_routes(self, models: Sequence[Model]) -> Iterator[Route]:
        yield from self._own_routes(models)
        yield from oip.server_routes(self._is_ready)
        yield repository.index_route(lambda: self._standings)
        yield kserve.list_route(list(dict.fromkeys(model.name for model in models)))
        seen: dict[str, list[str]] = {}
        for model in models:
            seen.setdefault(model.name, [])
            if model.version in seen[model.name]:
                raise ConfigError(f"a model must be served once, got {model.name!r} version {model.version!r} twice")
            seen[model.name].append(model.version)
        for i, model in enumerate(models):
            versions = seen[model.name]
            first = versions[0] == model.version
            yield from plain.routes(model, self.config, default=i == 0, first=first)
            yield from oip.routes(model, self.config, versions=versions, first=first, is_ready=self._is_ready)
            yield from kserve.routes(model, self.config, first=first, is_ready=self._is_ready)

    def _more_routes(self, path: str) -> Mapping[str, Route]:
        """What loads and unloads; on an address that others reach only where callers are asked who they are."""
        if self.repository is None or (self.access is None and not is_loopback(self.config.host)):
            return {}
        return repository.named_routes(path, self.repository)

    def _own_routes(self, models: Sequence[Model]) -> Iterator[Route]:
        page, specification = (
            docs.page(models),
            docs.openapi(models, guarded=self.access is not None, limited=self.limits is not None),
        )
        handlers: dict[str, Callable[[Request], Response]] = {
            "/": _front,
            "/docs": lambda _: Response(200, [("content-type", "text/html; charset=utf-8"), *docs.PAGE_HEADERS], page),
            "/openapi.json": lambda _: json_response(specification),
            "/health": self._health,
            "/health/live": lambda _: json_response({"status": "live"}),
            "/health/ready": lambda _: (
                json_response({"status": "ready"}) if self._is_ready() else json_response({"status": "draining"}, 503)
            ),
            "/models": self._list,
            "/metrics": lambda _: Response(
                200, [("content-type", metrics.TEXT)], self.view() if self.view is not None else self.metrics.render()
            ),
        }
        verbs: dict[str, Any] = {"/metrics": "metrics", "/docs": "read", "/openapi.json": "read", "/models": "read"}
        for path, handle in handlers.items():
            yield Route(method="GET", path=path, label=path, handle=handle, verb=verbs.get(path, "open"))

    def _health(self, _: Request) -> Response:
        return json_response({
            "status": "healthy" if self._is_ready() else "draining",
            "model_loaded": True,
            "models": [{"name": model.name, "version": model.version} for model in self.models],
            "deployment": [
                {"model": one.model, "alias": one.alias, "version": one.version, "wanted": one.wanted, "state": one.state}
                for one in self._standings
            ],
            "uptime_s": round(time.time() - self._started, 3),
        })  # fmt: skip

    def _list(self, _: Request) -> Response:
        listed = [{"name": m.name, "version": m.version, "task": m.package.task, "default": i == 0} for i, m in enumerate(self.models)]
        failed = [
            {"name": s.model, "alias": s.alias, "version": s.wanted, "reason": s.reason} for s in self._standings if s.state == "failed"
        ]
        return json_response({"models": listed, **({"failed": failed} if failed else {})})


def _front(request: Request) -> Response:
    """The page, for who reads pages; else that the server lives, as KServe's first protocol has it."""
    return Response(307, [("location", "/docs")]) if request.accepts("text/html") else json_response({"status": "alive"})


def _parts(call: Call, now: float) -> list[Part]:
    """What an answered call's time went to; the queue comes twice, as in the metrics: for the body, and for its turn."""
    job = call.job
    if call.work is None or job is None:
        return []
    return [
        ("queue", call.request.arrived, call.started),
        ("preprocess", call.started, call.parsed),
        ("queue", call.parsed, job.begun),
        ("infer", job.begun, job.ended),
        ("postprocess", job.ended, now),
    ]


def _stood(standing: Standing) -> tuple[str, ...]:
    return standing.model, standing.alias or "", standing.version, standing.wanted, standing.state


def _refusal(error: Exception) -> Refused | None:
    """What the caller is told about an error; None for one that is not the caller's."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, DataError):
        return Refused(422, "field", error.message, field=error.field, hint=error.hint)
    if isinstance(error, Unavailable):
        wait = str(max(1, round(error.retry_after_s)))
        return Refused(503, "unavailable", error.message, hint=error.hint, headers=(("retry-after", wait),))
    return None
