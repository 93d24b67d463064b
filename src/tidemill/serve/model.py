"""One package, ready to answer: loaded, warmed up, its contract held on this hardware."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tidemill.core import contract
from tidemill.core.errors import ContractViolation, Unsupported
from tidemill.core.events import Events
from tidemill.core.graph import Arrays
from tidemill.core.package import Answers, Package, add_evidence
from tidemill.core.precision import PRECISION
from tidemill.core.runtime import RanksConfig
from tidemill.core.schema import Column
from tidemill.serve.answers import AnswerForm
from tidemill.serve.choice import choose
from tidemill.serve.holds import Holds
from tidemill.serve.rows import RowReader

KINDS = ("row", "text", "image")
WARM_UP_RUNS = 20
MOST_THREADS = 4

_BLANKS: dict[str, Any] = {"boolean": False, "int64": 0, "float32": 0.0, "float64": 0.0, "string": "", "timestamp": 0}


class Model:
    """A package that answers. Safe from several threads.

    `name` and `version` are how callers address it; a package that came from no ledger has the first twelve digits of
    its identity for a version.

    Args:
        threads: Threads that one prediction may use; 0 for one where rows are small, and all cores up to `MOST_THREADS` where each is much work.
        cores: How many of the machine's it may count on; 0 for all.
        ranks: What the runtime torch divides the network over; by default as the package promises.
    """

    def __init__(
        self,
        package: Package,
        *,
        threads: int = 0,
        cores: int = 0,
        runtime: str = "auto",
        precision: str = "auto",
        parallel: int = 1,
        ranks: RanksConfig | None = None,
        events: Events | None = None,
    ) -> None:
        if package.kind not in KINDS:
            raise Unsupported(f"{package.path}: a package of {package.kind!r} cannot be served", hint=f"served are {' and '.join(KINDS)}")
        self.threads = threads = threads or (1 if package.kind == "row" else min(MOST_THREADS, cores or os.cpu_count() or 1))
        chosen = choose(package, runtime=runtime, precision=precision, threads=threads, parallel=parallel, ranks=ranks, events=events)
        self.package = package = chosen.package
        self.holds = Holds()
        self.name = package.name
        self.version = str(package.version or package.identity[:12])
        self.schema = package.schema
        self.form = AnswerForm(package)
        self.predictor = chosen.predictor
        self._precision = chosen.evidence
        # Other processes that answer may hang, and are never asked where everyone else would wait too.
        self.waits = bool(getattr(self.predictor.runtime, "takes_network", False))
        self.signature = self.predictor.signature
        self.reader = RowReader(self.schema) if package.kind == "row" else None
        self.example = package.example or {column.name: _blank(column) for column in self.schema}
        self.row_ms, self.example_answer = self._warm_up()
        self.promises: list[dict[str, Any]] = []

    @property
    def text_column(self) -> str | None:
        """The column that `text` and `texts` stand for, in a text package."""
        return self.schema.names[0] if self.package.kind == "text" and len(self.schema) == 1 else None

    @property
    def has_tokens(self) -> bool:
        """Whether its rows are texts that are taken apart before the graph."""
        return self.package.kind == "text" and "preprocess" in self.package.manifest["signature"]

    @property
    def image_column(self) -> str | None:
        """The column that `image` and `images` stand for, in an image package."""
        return self.schema.names[0] if self.package.kind == "image" else None

    def answer(self, inputs: Arrays) -> Answers:
        return self.predictor.run(inputs)

    def answer_values(self, values: Sequence[Any], *, alone: bool = True) -> Answers:
        """Answers for rows that `reader` read or `predictor` prepared, whichever calls they came in."""
        return self.predictor.run_prepared(values, alone=alone) if self.reader is None else self.answer(self.reader.inputs(values))

    @property
    def promised_ms(self) -> float | None:
        """The 99th percentile of latency that the contract promises; None where it promises none."""
        return next((float(p["limit"]) for p in self.package.contract() if p["measure"] == "latency.p99_ms"), None)

    def keep_contract(self, *, accept_latency: bool, events: Events, seconds: float = 2.0) -> None:
        """Hold the package's promises on this hardware; latency that was measured elsewhere, or broken, is measured anew.

        Raises:
            ContractViolation: If a promise is broken; a broken latency passes with `accept_latency`, and is recorded.
        """
        promises, evidence = self.package.contract(), self.package.evidence() | {PRECISION: self._precision}
        fingerprint = contract.hardware()["fingerprint"]
        verdicts = contract.judge(promises, evidence, hardware=fingerprint)
        if any(verdict.kept is not True and _is_latency(verdict) for verdict in verdicts):
            measured = self._measure_latency(events, seconds)
            verdicts = contract.judge(promises, {**evidence, "latency": measured}, hardware=fingerprint)
        self.promises = [{**v.promise, "measured": v.measured, "kept": v.kept} for v in verdicts]
        broken = [verdict for verdict in verdicts if verdict.kept is False]
        if accept_latency:
            for verdict in filter(_is_latency, broken):
                events.warn("serve.latency_accepted", f"{self.name}: {verdict}; accepted", model=self.name, version=self.version)
            broken = [verdict for verdict in broken if not _is_latency(verdict)]
        if broken:
            only_latency = all(map(_is_latency, broken))
            raise ContractViolation(
                [f"{self.name} {self.version}: {verdict}" for verdict in broken],
                hint="--accept-latency serves it all the same, and is recorded" if only_latency else None,
            )

    def close(self) -> None:
        """Let go of the runtime and its memory; nobody may ask any more."""
        self.predictor.close()
        del self.predictor

    def info(self) -> dict[str, Any]:
        """What `/model_info` answers."""
        package, runtime = self.package, self.predictor.runtime
        return {
            "name": self.name,
            "version": self.version,
            "identity": package.identity,
            "model_path": str(package.path),
            "device": runtime.device,
            "framework": f"{runtime.name} {runtime.version}",
            "precision": runtime.precision,
            "task": package.task,
            "signature": {
                "kind": package.kind,
                "inputs": self.schema.to_json(),
                "outputs": package.outputs,
                "classes": package.classes,
                "example": self.example,
            },
            "contract": self.promises,
            "created": package.manifest.get("created"),
            "row_ms": round(self.row_ms, 4),
        }

    def _measure_latency(self, events: Events, seconds: float) -> dict[str, Any]:
        """New evidence, entered into the package where its folder may be written."""
        inputs = self.signature.from_records([self.example])
        measured = contract.measure_latency(lambda _: self.answer(inputs), rows=1, seconds=seconds) | {"threads": self.threads}
        told = f"{self.name}: p99 {measured['p99_ms']:.3g} ms on this hardware"
        events.emit("serve.latency_measured", told, model=self.name, version=self.version, evidence=measured)
        try:
            self.package = add_evidence(self.package, "latency", measured)
        except OSError as error:
            events.warn("serve.evidence_not_written", f"{self.package.path}: the new latency stays out of the package: {error.strerror}")
        return measured

    def _warm_up(self) -> tuple[float, Answers]:
        """Median time of the example row in milliseconds, and its answer; the slow first runs are done then."""
        times = []
        answers = Answers(np.empty(0))
        for _ in range(WARM_UP_RUNS):
            start = time.perf_counter()
            answers = self.answer(self.signature.from_records([self.example]))
            times.append((time.perf_counter() - start) * 1e3)
        prepared = self.predictor.prepare(self.signature.from_records([self.example]))
        if prepared is not None:  # what runs beside others may be other threads and kernels
            self.answer_values(prepared, alone=False)
        return float(np.median(times)), answers


def _is_latency(verdict: contract.Verdict) -> bool:
    return str(verdict.promise["measure"]).startswith("latency.")


def _blank(column: Column) -> Any:
    return None if column.nullable else _BLANKS[column.type]
