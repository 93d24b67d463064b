"""A package measured in this process, without a server: sessions, threads and rows at once, and which of them answer most."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tidemill.bench import timings
from tidemill.core import contract
from tidemill.core.errors import ConfigError, MissingDependency, Unsupported
from tidemill.core.events import Events, now
from tidemill.core.graph import Arrays
from tidemill.core.load import names
from tidemill.core.package import Package, Predictor
from tidemill.core.precision import keeps, measure_precision
from tidemill.core.runtime import DEFAULT, Precision

EVIDENCE = "bench"

ROW_BATCHES = (1, 4, 16, 64, 256, 1024)
FEW_BATCHES = (1, 2, 4, 8, 16, 32, 64)
# A run gives more rows to a call no further, once one call takes so long, in seconds.
LONG_S = 2.0
MIN_CALLS = 5
# Rows by which the answers of two runtimes are compared.
COMPARED_ROWS = 256

EVERY = "all"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What is tried, and for how long."""

    runtime: tuple[str, ...] = (DEFAULT,)
    """Runtimes by name, `openvino:bf16` with a precision; `all` tries every one, and leaves out what cannot be run here."""
    batch: tuple[int, ...] = ()
    """Rows at once; powers that suit the kind of package when empty."""
    sessions: tuple[int, ...] = ()
    """Sessions that answer at the same time, one thread of the program each; 1 up to one a core when empty."""
    threads: tuple[int, ...] = ()
    """Threads inside a session; 1 up to one a core when empty. Sessions times threads beyond the cores are left out."""
    seconds: float = field(default=0.4, metadata={"min": 0.01})
    """Length of each run, in seconds."""
    repeats: int = field(default=3, metadata={"min": 1})
    """Rounds over all runs, interleaved; the run of median throughput is kept."""

    def check(self) -> None:
        for name in ("batch", "sessions", "threads"):
            values: Sequence[int] = getattr(self, name)
            if any(value < 1 for value in values):
                raise ConfigError(f"{name}: must be >= 1, got {', '.join(map(str, values))}")


def bench_package(
    package: Package, *, records: Sequence[Mapping[str, Any]] | None = None, plan: RunPlan | None = None, events: Events | None = None
) -> dict[str, Any]:
    """Measure a package.

    Args:
        records: Rows to answer; the package's example when absent.

    Returns:
        `points`, each a run; `best`, the fewest rows at once that reach nine tenths of the highest throughput, and how they were run;
        `single`, the way in which one row is answered soonest; both among the `runtimes` whose answers keep the contract.

    Raises:
        Unsupported: If a runtime that is named cannot run the package.
    """
    plan, events = plan or RunPlan(), events or Events()
    plan.check()
    cores = contract.hardware()["cores"]
    ways = _ways(plan, cores)
    batches = plan.batch or (ROW_BATCHES if package.kind == "row" else FEW_BATCHES)
    rows = list(records) if records else [package.example]
    made, left_out = _sessions(package, plan, ways)
    runtimes = _compared(package, made, rows)
    runs: dict[tuple[str, int, int, int], list[dict[str, Any]]] = {}
    for turn in range(plan.repeats):
        for runtime, (sessions, threads) in itertools.product(runtimes, ways):
            predictors = made[runtime, threads][:sessions]
            for batch in sorted(batches):
                key = (runtime, sessions, threads, batch)
                if turn and key not in runs:
                    break
                events.emit("bench.run", f"{runtime}, {sessions} sessions x {threads} threads, {batch} rows at once", level="progress")
                run = _run(predictors, _inputs(predictors[0], rows, batch), batch, threads, plan.seconds)
                runs.setdefault(key, []).append({"runtime": runtime, **run})
                if run["latency"]["p50_ms"] > LONG_S * 1e3:
                    break
    for predictor in itertools.chain(*made.values()):
        predictor.close()
    events.emit("bench.done", "measured")
    points = [dict(timings.middle(found, gain="rows_per_s")) for found in runs.values()]
    kept = [point for point in points if runtimes[point["runtime"]]["kept"]] or points
    return {
        "of": "package",
        "name": package.name,
        "version": package.version,
        "identity": package.identity,
        "rows": len(rows),
        "points": points,
        "best": best(kept, _promised(package)),
        "single": _single(kept),
        "runtimes": runtimes,
        "left_out": left_out,
        "seconds": plan.seconds,
        "repeats": plan.repeats,
        "hardware": contract.hardware(),
        "at": now(),
    }


def best(points: Sequence[dict[str, Any]], p99_ms: float | None = None) -> dict[str, Any]:
    """The point to run at: nine tenths of the highest throughput with the fewest rows at once, then in the least time.

    Args:
        p99_ms: What the contract promises of latency: points whose median call takes longer are left out, unless all do.
    """
    within = [point for point in points if p99_ms is None or point["latency"]["p50_ms"] <= p99_ms] or list(points)
    enough = timings.ENOUGH * max(float(point["rows_per_s"]) for point in within)
    return min((point for point in within if point["rows_per_s"] >= enough), key=lambda point: (point["batch"], point["latency"]["p50_ms"]))


def _single(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The point at which one caller has its answer soonest: fewest rows, one session."""
    alone = min((point["batch"], point["sessions"]) for point in points)
    return min((point for point in points if (point["batch"], point["sessions"]) == alone), key=lambda p: float(p["latency"]["p50_ms"]))


def _ways(plan: RunPlan, cores: int) -> list[tuple[int, int]]:
    """Sessions and threads that fit on the cores."""
    powers = [2**power for power in range(cores.bit_length()) if 2**power < cores] + [cores]
    found = [(sessions, threads) for sessions in plan.sessions or powers for threads in plan.threads or powers]
    fitting = [(sessions, threads) for sessions, threads in found if sessions * threads <= cores]
    if not fitting and found:
        raise ConfigError(f"sessions x threads: must be at most the {cores} cores here, got {found[0][0]} x {found[0][1]}")
    return fitting


def _sessions(package: Package, plan: RunPlan, ways: Sequence[tuple[int, int]]) -> tuple[dict[tuple[str, int], list[Predictor]], list[str]]:
    """Sessions by runtime and threads, as many as any way needs, each made once: a large model takes longer to load than to measure.

    Raises:
        Unsupported: If a runtime that is named cannot run the package.
        MissingDependency: If its library is not installed.
    """
    wanted = [f"{name}:{how}" if how != "fp32" else name for name in names("runtime") for how in ("fp32", "bf16")]
    made: dict[tuple[str, int], list[Predictor]] = {}
    left_out: list[str] = []
    for runtime in wanted if EVERY in plan.runtime else plan.runtime:
        name, _, how = runtime.partition(":")
        if how not in ("", "fp32", "bf16"):
            raise ConfigError(f"runtime: must be a name, or a name and a precision such as openvino:bf16, got {runtime!r}")
        precision: Precision = "bf16" if how == "bf16" else "fp32"
        most = {threads: max(sessions for sessions, of in ways if of == threads) for _, threads in ways}
        try:
            made |= {
                (runtime, threads): [Predictor(package, threads=threads, runtime=name, precision=precision) for _ in range(sessions)]
                for threads, sessions in most.items()
            }
        except (Unsupported, MissingDependency) as error:
            if EVERY not in plan.runtime:
                raise
            if precision == "fp32":  # what cannot run at all is told once
                left_out.append(f"{runtime}: {error}")
    return made, left_out


def _compared(
    package: Package, made: Mapping[tuple[str, int], Sequence[Predictor]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """By runtime, how far its answers are from those of ONNX Runtime in single precision, and whether the contract allows that."""
    usual = Predictor(package)
    inputs = usual.signature.from_records(rows[:: max(1, len(rows) // COMPARED_ROWS)][:COMPARED_ROWS])
    found: dict[str, dict[str, Any]] = {}
    for (runtime, _), predictors in made.items():
        if runtime not in found:
            measured = measure_precision(predictors[0], usual, inputs)
            kept = all(verdict.kept is True for verdict in keeps(package, measured))
            found[runtime] = {name: value for name, value in measured.items() if name not in ("hardware", "at")} | {"kept": kept}
    usual.close()
    return found


def _inputs(predictor: Predictor, rows: Sequence[Mapping[str, Any]], batch: int) -> list[Arrays]:
    """The rows as inputs of `batch` rows each, the first ones again where they do not come out even."""
    count = max(1, min(len(rows) // batch, 200))
    ring = [rows[i % len(rows)] for i in range(batch * count)]
    return [predictor.signature.from_records(ring[i * batch : (i + 1) * batch]) for i in range(count)]


def _run(predictors: Sequence[Predictor], inputs: Sequence[Arrays], batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """All sessions busy for some seconds; the first failure is raised."""
    times: list[list[float]] = [[] for _ in predictors]
    failures: list[Exception] = []
    ready = threading.Barrier(len(predictors) + 1)

    def answer(which: int) -> None:
        try:
            predictor, mine = predictors[which], times[which]
            for i in range(2):
                predictor.run(inputs[(which + i) % len(inputs)])
            ready.wait()
            i, end = which, time.perf_counter() + seconds
            while (start := time.perf_counter()) < end or len(mine) < MIN_CALLS:
                predictor.run(inputs[i % len(inputs)])
                mine.append(time.perf_counter() - start)
                i += 1
        except threading.BrokenBarrierError:
            return
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
            failures.append(error)
            ready.abort()

    workers = [threading.Thread(target=answer, args=(which,)) for which in range(len(predictors))]
    for worker in workers:
        worker.start()
    with suppress(threading.BrokenBarrierError):
        ready.wait()
    busy, start = os.times(), time.perf_counter()
    for worker in workers:
        worker.join()
    wall, after = time.perf_counter() - start, os.times()
    if failures:
        raise failures[0]
    calls = sum(map(len, times))
    return {
        "sessions": len(predictors),
        "threads": threads,
        "batch": batch,
        "rows_per_s": round(calls * batch / wall, 2),
        "calls": calls,
        "latency": timings.summary(np.concatenate([np.array(mine) for mine in times])),
        "cores": round((after.user + after.system - busy.user - busy.system) / wall, 3),
    }


def _promised(package: Package) -> float | None:
    limits = [float(promise["limit"]) for promise in package.contract() if promise["measure"] == "latency.p99_ms"]
    return min(limits) if limits else None
