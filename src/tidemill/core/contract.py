"""Promises, what was measured of them, and whether they hold.

A contract is a list of promises; evidence is a set of dated measurements, each with the hardware that it was taken on.
Quality, parity and size bind everywhere. Latency and precision bind on hardware of the same fingerprint; elsewhere they are measured anew.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.errors import ConfigError, ContractViolation
from tidemill.core.events import now

# The measure of the promise that ranks of PyTorch answer as the graph does; the promise says on which layout.
TORCH = "torch.max_difference"


@dataclass(frozen=True, kw_only=True)
class Quality:
    """`quality = { metric = "roc_auc", min = 0.68, max_drop = 0.005 }`."""

    metric: str | None = None
    """Metric of the promise; the task's default when absent."""
    min: float | None = None
    """Point estimate on the test split that must be reached (for a metric where less is better, see `max`)."""
    max: float | None = None
    """Point estimate on the test split that must not be passed, for metrics where less is better."""
    max_drop: float | None = field(default=None, metadata={"min": 0.0})
    """Largest loss against the champion: one-sided 95 % bound of the paired difference on the same test rows."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """`latency = { p99_ms = 5 }`, of one row through the whole graph on one thread."""

    p50_ms: float | None = field(default=None, metadata={"min": 0.0})
    """Median in milliseconds."""
    p99_ms: float | None = field(default=None, metadata={"min": 0.0})
    """99th percentile in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """`interval = { min_coverage = 0.88 }`, of the intervals around predictions, on the test split."""

    min_coverage: float | None = field(default=None, metadata={"min": 0.0, "max": 1.0})
    """Share of rows whose true value must lie inside; a little below `model.interval`, since it is a measured share."""
    max_width: float | None = field(default=None, metadata={"min": 0.0})
    """Mean width that must not be passed, in the target's unit."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """`size = { max_mb = 20 }`."""

    max_mb: float = field(metadata={"min": 0.0})
    """Bytes of all graphs, in 10^6."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """`precision = { min_cosine = 0.999 }`: how far answers computed in bf16 may be from those in single precision.

    Without it no server rounds: answers in bf16 would have to be as near as `parity` says.
    """

    max_difference: float | None = field(default=None, metadata={"min": 0.0})
    """Largest difference of one number: absolute in probability and in an embedding's numbers, relative in regression."""
    min_cosine: float | None = field(default=None, metadata={"min": 0.0, "max": 1.0})
    """Smallest cosine of the angle between an embedding and itself in single precision."""


@dataclass(frozen=True, kw_only=True)
class Divided:
    """`torch = { tensor = 2 }`: the package carries its network, and answers by PyTorch on so many ranks as its graph does."""

    tensor: int = field(default=1, metadata={"min": 1, "max": 1024})
    """Ranks that divide single layers, as the network's `tp_plan` says."""
    pipeline: int = field(default=1, metadata={"min": 1, "max": 1024})
    """Ranks that hold consecutive layers, from the network's `split_points`."""


@dataclass(frozen=True, kw_only=True)
class ContractConfig:
    """What a package promises. Parity, schema and being better than the trivial model are always promised."""

    quality: Quality | None = None
    """Quality on the untouched test split."""
    interval: Interval | None = None
    """Coverage and width of the intervals, where `model.interval` asks for them."""
    latency: Latency | None = None
    """Time for one row."""
    size: Size | None = None
    """Size of the graphs."""
    precision: Rounding | None = None
    """Answers in reduced precision, where they are quicker; none are given when absent."""
    parity: float = field(default=1e-5, metadata={"min": 0.0, "max": 1.0})
    """Largest difference between the graph and the native path: absolute in probability, relative in regression."""
    torch: Divided | None = None
    """Ranks of PyTorch that answer as the graph does, within `parity`, for the runtime torch; the package has no network when absent."""

    def check(self) -> None:
        if self.quality and self.quality.min is None and self.quality.max is None and self.quality.max_drop is None:
            raise ConfigError("contract.quality: must promise min, max or max_drop, got none of them")
        if self.precision and self.precision.max_difference is None and self.precision.min_cosine is None:
            raise ConfigError("contract.precision: must promise max_difference or min_cosine, got neither")
        if self.interval and self.interval.min_coverage is None and self.interval.max_width is None:
            raise ConfigError("contract.interval: must promise min_coverage or max_width, got none of them")

    def promises(self) -> list[dict[str, Any]]:
        """The contract as `contract.json` holds it: `{name, measure, limit, relation, [metric]}` each.

        `measure` is the path of the measured value in the evidence: file, then keys.
        """
        made: list[dict[str, Any]] = [_promise("parity", "parity.max_difference", "<=", self.parity)]
        made.append(_promise("better than trivial", "quality.gain_over_trivial", ">", 0.0))
        if self.torch is not None:
            made.append(_promise("torch parity", TORCH, "<=", self.parity, tensor=self.torch.tensor, pipeline=self.torch.pipeline))
        if self.quality is not None:
            metric = self.quality.metric or "default"
            for name, limit, relation in (("min", self.quality.min, ">="), ("max", self.quality.max, "<=")):
                if limit is not None:
                    made.append(_promise(f"quality {name}", "quality.value", relation, limit, metric=metric))
            if self.quality.max_drop is not None:
                made.append(_promise("quality max_drop", "drop.bound", "<=", self.quality.max_drop, metric=metric))
        if self.interval is not None:
            if self.interval.min_coverage is not None:
                made.append(_promise("interval min_coverage", "interval.coverage", ">=", self.interval.min_coverage))
            if self.interval.max_width is not None:
                made.append(_promise("interval max_width", "interval.mean_width", "<=", self.interval.max_width))
        if self.latency is not None:
            for name, limit in (("p50_ms", self.latency.p50_ms), ("p99_ms", self.latency.p99_ms)):
                if limit is not None:
                    made.append(_promise(f"latency {name}", f"latency.{name}", "<=", limit))
        if self.precision is not None:
            if self.precision.max_difference is not None:
                made.append(_promise("precision max_difference", "precision.max_difference", "<=", self.precision.max_difference))
            if self.precision.min_cosine is not None:
                made.append(_promise("precision min_cosine", "precision.min_cosine", ">=", self.precision.min_cosine))
        if self.size is not None:
            made.append(_promise("size max_mb", "size.mb", "<=", self.size.max_mb))
        return made


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One promise held against its measurement. `kept` is None where nothing binding was measured."""

    promise: dict[str, Any]
    measured: float | None
    kept: bool | None

    def __str__(self) -> str:
        p = self.promise
        label = p["name"] + (f" ({p['metric']})" if p.get("metric", "default") != "default" else "")
        got = "was not measured" if self.measured is None else f"measured {self.measured:.6g}"
        return f"{label}: promised {p['relation']} {p['limit']:g}, {got}"


def judge(promises: list[dict[str, Any]], evidence: Mapping[str, Any], *, hardware: str | None = None) -> list[Verdict]:
    """Each promise against the evidence; latency and precision taken on another fingerprint than `hardware` do not bind."""
    verdicts = []
    for promise in promises:
        file, _, key = promise["measure"].partition(".")
        entry = evidence.get(file) or {}
        value = entry.get(key)
        foreign = file in ("latency", "precision") and hardware is not None and entry.get("hardware", {}).get("fingerprint") != hardware
        if value is None or foreign:
            verdicts.append(Verdict(promise=promise, measured=value, kept=None))
            continue
        holds = {"<=": value <= promise["limit"], ">=": value >= promise["limit"], ">": value > promise["limit"]}[promise["relation"]]
        verdicts.append(Verdict(promise=promise, measured=float(value), kept=bool(holds)))
    return verdicts


def enforce(verdicts: list[Verdict]) -> None:
    """Let pass what keeps every promise.

    Raises:
        ContractViolation: If a promise is broken; says each promise and its measurement.
    """
    broken = [str(verdict) for verdict in verdicts if verdict.kept is False]
    if broken:
        raise ContractViolation(broken)


def measure_latency(run: Callable[[int], Any], *, rows: int, seconds: float = 1.0, warmup: int = 20) -> dict[str, Any]:
    """Evidence of the time that `run(i)` takes for row `i`: p50, p99, mean in milliseconds, calls, hardware, date.

    A call during which the system gave the processor to somebody else counts with the processor time that it took itself:
    what else runs on the machine is not the package's doing. `interrupted` says how many calls that were.
    """
    for i in range(warmup):
        run(i % rows)
    times: list[float] = []
    interrupted = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 200:
        switches, busy, start = _involuntary_switches(), time.thread_time(), time.perf_counter()
        run(len(times) % rows)
        took, busy = time.perf_counter() - start, time.thread_time() - busy
        if _involuntary_switches() != switches:
            interrupted += 1
            took = min(took, busy)
        times.append(took * 1e3)
    p50, p99 = np.percentile(times, [50, 99])
    return {
        "p50_ms": round(float(p50), 6),
        "p99_ms": round(float(p99), 6),
        "mean_ms": round(float(np.mean(times)), 6),
        "calls": len(times),
        "interrupted": interrupted,
        "threads": 1,
        "hardware": hardware(),
        "at": now(),
    }


def _involuntary_switches() -> int:
    """How often this thread was made to wait for the processor; 0 where the system does not say."""
    try:
        import resource

        return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    except (ImportError, AttributeError):
        return 0


def hardware() -> dict[str, Any]:
    """What this machine is, and a fingerprint that is equal on machines of the same kind."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gb = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9) if hasattr(os, "sysconf") else 0
    return {
        "cpu": model,
        "cores": cores,
        "memory_gb": memory_gb,
        "system": f"{platform.system()} {platform.machine()}",
        "fingerprint": f"{model} x{cores}",
    }


def _promise(name: str, measure: str, relation: str, limit: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "measure": measure, "relation": relation, "limit": float(limit), **more}
