"""A server measured from outside: latency and throughput over a sweep of connections, of rows a request, or at a rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tidemill.bench import load, timings
from tidemill.client import Client, calls
from tidemill.client.asking import Server
from tidemill.core import contract
from tidemill.core.errors import ConfigError, DataError
from tidemill.core.events import Events, now

# Different bodies that are sent in turn.
NUM_BODIES = 500


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What is tried, and for how long."""

    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Connections, each with one request under way; with a rate, the most of them is how many there may be."""
    batch: tuple[int, ...] = (1,)
    """Rows a request: 1 asks `/predict`, more `/predict_batch`."""
    rate: tuple[float, ...] = ()
    """Requests a second that are sent whether answers come or not; each is a run of its own. None: connections are swept."""
    seconds: float = field(default=3.0, metadata={"min": 0.05})
    """Length of each run, in seconds."""
    warmup_s: float = field(default=0.5, metadata={"min": 0.0})
    """Before each run, in seconds; not counted."""
    repeats: int = field(default=1, metadata={"min": 1})
    """Rounds over all runs; the run of median throughput is kept."""

    def check(self) -> None:
        for name in ("concurrency", "batch", "rate"):
            values: Iterable[float] = getattr(self, name)
            if any(not value > 0 for value in values):
                raise ConfigError(f"{name}: must be > 0, got {', '.join(map(str, values))}")
        if not self.concurrency or not self.batch:
            raise ConfigError("concurrency and batch: must name at least one number each")


def bench_server(
    url: str,
    *,
    model: str | None = None,
    version: str | None = None,
    records: Callable[[Sequence[Mapping[str, Any]]], Sequence[calls.Record]] | None = None,
    plan: LoadPlan | None = None,
    events: Events | None = None,
    **access: Any,
) -> dict[str, Any]:
    """Measure a server.

    Connections are swept at the first number of rows; rows a request at the knee of the connections.

    Args:
        records: Rows to send, made from the model's columns; its example when absent.
        access: Arguments of `Client`: `api_key`, `token`, `ca`.

    Returns:
        `points`, each a run with its latencies, and the `knee` of each sweep.

    Raises:
        Unavailable: If the server does not answer.
        DataError: If it does not take a row.
    """
    plan, events = plan or LoadPlan(), events or Events()
    plan.check()
    with Client(url, model=model, version=version, **access) as client:
        info = client.model_info()
        rows = list(records(info["signature"]["inputs"])) if records else [info["signature"]["example"]]
        if not rows:
            raise DataError("at least one row must be given, got none")
        client.predict(rows[0])
    subject = _Subject(
        Server.at(url, timeout_s=30.0, retries=0, **access),
        calls.address(model, version),
        rows[: max(NUM_BODIES, *plan.batch)],
        plan,
        events,
    )
    connections = max(plan.concurrency)
    points: list[dict[str, Any]]
    if plan.rate:
        points = subject.measured([(batch, connections, rate) for batch in plan.batch for rate in plan.rate])
        knees: dict[str, Any] = {}
    else:
        first = plan.batch[0]
        points = subject.measured([(first, count, None) for count in plan.concurrency])
        knees = {"concurrency": timings.knee(points, by="concurrency", gain="rows_per_s")}
        if len(plan.batch) > 1:
            at = (knees["concurrency"] or {"at": connections})["at"]
            others = subject.measured([(batch, at, None) for batch in plan.batch[1:]])
            swept = [*(point for point in points if point["concurrency"] == at), *others]
            knees["batch"] = timings.knee(swept, by="batch", gain="rows_per_s")
            points += others
    events.emit("bench.done", "measured")
    return {
        "of": "server",
        "url": subject.server.url,
        "name": info["name"],
        "version": info["version"],
        "framework": info.get("framework"),
        "bodies": len(rows),
        "points": points,
        "knee": {name: found for name, found in knees.items() if found is not None},
        "seconds": plan.seconds,
        "repeats": plan.repeats,
        "client": contract.hardware(),
        "at": now(),
    }


@dataclass(frozen=True)
class _Subject:
    server: Server
    address: str
    rows: Sequence[calls.Record]
    plan: LoadPlan
    events: Events

    def measured(self, wanted: Sequence[tuple[int, int, float | None]]) -> list[dict[str, Any]]:
        """The median run of each (rows, connections, rate)."""
        runs: dict[tuple[int, int, float | None], list[dict[str, Any]]] = {key: [] for key in wanted}
        for _ in range(self.plan.repeats):
            for batch, connections, rate in wanted:
                at = f" at {rate:g} requests/s" if rate else ""
                self.events.emit("bench.run", f"{connections} connections, {batch} rows a request{at}", level="progress")
                runs[batch, connections, rate].append(self._run(batch, connections, rate))
        return [dict(timings.middle(runs[key], gain="rows_per_s")) for key in wanted]

    def _run(self, batch: int, connections: int, rate: float | None) -> dict[str, Any]:
        plan = self.plan
        requests = [self.server.written(outgoing) for outgoing in self._bodies(batch)]
        found = load.run(self.server, requests, connections=connections, seconds=plan.seconds, warmup_s=plan.warmup_s, rate=rate)
        refused = {str(status): count for status, count in sorted(found.statuses.items()) if status != 200}
        answers = found.answers
        return {
            "concurrency": connections,
            "batch": batch,
            **({"rate": rate} if rate else {}),
            "requests_per_s": round(answers / found.wall_s, 2),
            "rows_per_s": round(answers * batch / found.wall_s, 2),
            "answers": answers,
            "latency": timings.summary(np.array(found.seconds)),
            "refused": refused,
            "lost": found.lost,
            "unanswered": found.unanswered,
            "client_cores": round(found.cpu_s / found.wall_s, 3),
            "client_limited": found.is_limited,
        }

    def _bodies(self, batch: int) -> Iterable[calls.Outgoing]:
        if batch == 1:
            return [calls.predict(self.address, row) for row in self.rows]
        count = max(4, NUM_BODIES // batch)
        ring = [self.rows[i % len(self.rows)] for i in range(count * batch)]
        return [calls.predict_batch(self.address, ring[i * batch : (i + 1) * batch]) for i in range(count)]
