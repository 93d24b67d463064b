"""Counters, gauges and histograms in the Prometheus text format. Labels are bounded: routes, models, statuses, causes."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from tidemill.serve.counts import Snapshot, Together

TEXT = "text/plain; version=0.0.4; charset=utf-8"

# Seconds; from a small model's row to a large batch.
BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Rows that went through a model together.
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)

PHASES = ("queue", "preprocess", "infer", "postprocess")


class Sample:
    """One number of a family."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def numbers(self) -> list[float]:
        """What it holds, for another process to `fill` in."""
        return [self.value]

    def fill(self, numbers: Sequence[float]) -> None:
        self.value = numbers[0]

    def lines(self, name: str, labels: str) -> str:
        return f"{name}{labels and '{' + labels + '}'} {_number(self.value)}\n"


class Distribution(Sample):
    """One histogram of a family; `value` is the sum of what it has observed."""

    __slots__ = ("counts",)
    bounds: ClassVar[tuple[float, ...]] = BUCKETS

    def __init__(self) -> None:
        super().__init__()
        self.counts = [0] * (len(self.bounds) + 1)

    def numbers(self) -> list[float]:
        return [self.value, *self.counts]

    def fill(self, numbers: Sequence[float]) -> None:
        self.value, self.counts = numbers[0], [int(count) for count in numbers[1:]]

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.value += value

    def lines(self, name: str, labels: str) -> str:
        made, total, comma = [], 0, labels and ","
        for bound, count in zip([*self.bounds, float("inf")], self.counts, strict=True):
            total += count
            made.append(f'{name}_bucket{{{labels}{comma}le="{_number(bound)}"}} {total}\n')
        outer = labels and "{" + labels + "}"
        return "".join(made) + f"{name}_sum{outer} {_number(self.value)}\n{name}_count{outer} {total}\n"


class RowDistribution(Distribution):
    """A histogram of numbers of rows."""

    __slots__ = ()
    bounds = ROW_BUCKETS


S = TypeVar("S", bound=Sample)


class Family(Generic[S]):
    """All samples of one metric; `together` says how those of several processes become one."""

    def __init__(self, make: type[S], name: str, kind: str, text: str, labels: Sequence[str], *, together: Together = "sum") -> None:
        self.name = name
        self._together = together
        self._make = make
        self._kind = kind
        self._text = text
        self._labels = tuple(labels)
        self._samples: dict[tuple[str, ...], S] = {}

    def sample(self, *values: str) -> S:
        """The sample of these label values, made when first asked for."""
        found = self._samples.get(values)
        return found if found is not None else self._samples.setdefault(values, self._make())

    def drop(self, *values: str) -> None:
        """Show the sample of these label values no more."""
        self._samples.pop(values, None)

    def forget(self, **labels: str) -> None:
        """Show no sample any more that has all of these labels."""
        if set(labels) <= set(self._labels):
            places = [(self._labels.index(name), value) for name, value in labels.items()]
            for values in [values for values in self._samples if all(values[place] == value for place, value in places)]:
                del self._samples[values]

    def snapshot(self) -> dict[str, Any]:
        """The samples as plain data."""
        samples = [[list(values), sample.numbers()] for values, sample in self._samples.items()]
        return {"together": self._together, "gauge": self._kind == "gauge", "samples": samples}

    def of(self, samples: Sequence[Any]) -> Family[S]:
        """A family of the same name with the samples of several processes."""
        labels = (*self._labels, "replica") if self._together == "each" else self._labels
        made = Family(self._make, self.name, self._kind, self._text, labels)
        for values, numbers in samples:
            made.sample(*values).fill(numbers)
        return made

    def render(self) -> str:
        head = f"# HELP {self.name} {self._text}\n# TYPE {self.name} {self._kind}\n"
        lines = [
            sample.lines(self.name, ",".join(f'{key}="{_escaped(value)}"' for key, value in zip(self._labels, values, strict=True)))
            for values, sample in sorted(self._samples.items())
        ]
        return head + "".join(lines) if lines else ""


class Metrics:
    """Everything that the server counts. Change samples only while holding `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests = Family(Sample, "tidemill_requests_total", "counter", "Requests answered.", ("route", "status"))
        self.request_seconds = Family(
            Distribution, "tidemill_request_duration_seconds", "histogram", "Time from a request's head to its answer.", ("route",)
        )
        self.phase_seconds = Family(
            Distribution, "tidemill_phase_duration_seconds", "histogram",
            "Time of one request's parts: queue (until its body is here, and until its turn has come), preprocess, infer, postprocess.",
            ("model", "version", "phase"),
        )  # fmt: skip
        self.rows = Family(Sample, "tidemill_rows_total", "counter", "Rows predicted.", ("model", "version"))
        self.executions = Family(
            Sample, "tidemill_executions_total", "counter", "Runs of a model; rows by executions is the mean batch.", ("model", "version")
        )
        self.batch_rows = Family(RowDistribution, "tidemill_batch_rows", "histogram", "Rows of one run of a model.", ("model", "version"))
        self.tokens = Family(
            Sample, "tidemill_tokens_total", "counter", "Tokens of texts that went through a model: of texts, or padding beside them.",
            ("model", "version", "kind"),
        )  # fmt: skip
        self.cache_rows = Family(
            Sample, "tidemill_cache_rows_total", "counter",
            "Rows that met the cache: hit, miss, or shared with a caller who asked for the same.", ("model", "version", "outcome"),
        )  # fmt: skip
        self.errors = Family(Sample, "tidemill_errors_total", "counter", "Requests refused or failed.", ("reason",))
        self.in_flight = Family(Sample, "tidemill_requests_in_flight", "gauge", "Requests whose answer is not sent.", ())
        self.models = Family(
            Sample, "tidemill_model_info", "gauge", "Models that answer.", ("model", "version", "identity", "task"), together="max"
        )
        self.deployments = Family(
            Sample, "tidemill_deployment_info", "gauge",
            "What is deployed: the version that answers, the one that its alias wants, and serving, failed or unloaded.",
            ("model", "alias", "version", "wanted", "state"), together="max",
        )  # fmt: skip
        self.traces = Family(
            Sample, "tidemill_traced_requests_total", "counter", "Requests whose spans were sent, failed to be, or were dropped before.",
            ("outcome",),
        )  # fmt: skip
        self.log_rows = Family(Sample, "tidemill_prediction_log_rows_total", "counter", "Rows of the prediction log.", ("outcome",))
        self.started = Family(
            Sample, "tidemill_start_time_seconds", "gauge", "When the server started, since the epoch.", (), together="min"
        )
        self.started.sample().value = time.time()
        self._cpu = Family(Sample, "tidemill_process_cpu_seconds_total", "counter", "CPU time of the process.", ())
        self._memory = Family(
            Sample, "tidemill_process_resident_memory_bytes", "gauge", "Resident memory of the process.", (), together="each"
        )
        self._answered: dict[tuple[str, int], tuple[Sample, Distribution]] = {}
        self.replicas = Family(Sample, "tidemill_replicas", "gauge", "Processes that answer.", ())
        self.restarts = Family(Sample, "tidemill_replica_restarts_total", "counter", "Processes that ended and were started again.", ())

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request; while holding the lock."""
        found = self._answered.get((route, status))
        if found is None:
            found = self._answered[route, status] = self.requests.sample(route, str(status)), self.request_seconds.sample(route)
        found[0].value += 1
        found[1].observe(seconds)

    def render(self) -> bytes:
        """Every family in the text format."""
        self._look_at_process()
        with self.lock:
            return "".join(family.render() for family in self._families()).encode()

    def snapshot(self) -> Snapshot:
        """Every family as plain data, for whoever shows several processes as one."""
        self._look_at_process()
        with self.lock:
            return {family.name: family.snapshot() for family in self._families()}

    def render_all(self, together: Snapshot) -> bytes:
        """What several processes counted, in the text format."""
        families = [family.of(together[family.name]["samples"]) for family in self._families() if family.name in together]
        return "".join(family.render() for family in families).encode()

    def forget(self, model: str, version: str) -> None:
        """Show no longer what a version counted that is long gone: labels stay few, however often versions change."""
        with self.lock:
            for family in self._families():
                family.forget(model=model, version=version)

    def _families(self) -> list[Family[Any]]:
        return [family for family in vars(self).values() if isinstance(family, Family)]

    def _look_at_process(self) -> None:
        times = os.times()
        self._cpu.sample().value = times.user + times.system
        self._memory.sample().value = _resident_bytes()


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _resident_bytes() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
